//! What the end-to-end tests share: a `paddock` process with its guest's console and probe, and the host around it; and the real Longhorn.
//!
//! The tests are compiled outside and run inside the lab, as root, one at a time (`tests/run --only vm`); those of [`longhorn`] run right on this
//! machine (`tests/run --only conformance`). Every wait has a deadline; what fails shows the guest's console and the processes' logs.

pub mod api;
pub mod bench;
pub mod blocks;
pub mod cdrom;
pub mod ctl;
pub mod files;
pub mod firmware;
pub mod host;
pub mod longhorn;
pub mod memory;
pub mod metrics;
pub mod netboot;
pub mod systemd;
pub mod threads;
mod transcript;
pub mod viewer;
pub mod vm;

pub use api::{Answer, Api, Events};
pub use ctl::Ctl;
pub use metrics::Metrics;
pub use vm::{Kernel, Vm, VmBuilder};

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How much of something a test does: `usual` in CI, `soak` under `tests/run --soak`.
#[must_use]
pub fn amount(usual: u64, soak: u64) -> u64 {
    if is_soak() { soak } else { usual }
}

/// Whether this is `tests/run --soak`, which has the time for every combination.
#[must_use]
pub fn is_soak() -> bool {
    std::env::var_os("PADDOCK_SOAK").is_some()
}

/// Waits until something is so; whether it is before the deadline. Looks ten times a second.
#[must_use]
pub fn within(deadline: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    while !done() {
        if Instant::now() > end {
            return false;
        }
        sleep(Duration::from_millis(100));
    }
    true
}
