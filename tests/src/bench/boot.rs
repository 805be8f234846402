//! From the VMM's start to the guest's init.

use super::BenchError;
use super::vmm::{Guest, Vmm};

/// Seconds.
pub(super) fn measure(vmm: &Vmm) -> Result<f64, BenchError> {
    let guest = Guest {
        memory: 256,
        ..Guest::default()
    };
    let (_running, took) = vmm.boot(&guest)?;
    Ok(took.as_secs_f64())
}
