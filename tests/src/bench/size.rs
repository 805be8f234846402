//! The size of a VMM's binary. Distributions strip theirs; ours is stripped by the release profile.

use std::path::{Path, PathBuf};

use super::{BenchError, Vmm};

/// MiB.
pub(super) fn measure(vmm: &Vmm) -> Result<f64, BenchError> {
    let path = found(vmm.binary());
    let metadata = std::fs::metadata(&path).map_err(|source| BenchError::Host {
        what: format!("looking for {}", path.display()),
        source,
    })?;
    // f64 holds any file's size that is less than 8 PiB exactly.
    #[expect(clippy::cast_precision_loss)]
    Ok(metadata.len() as f64 / f64::from(1 << 20))
}

/// Where the shell would find it.
fn found(binary: &Path) -> PathBuf {
    if binary.components().count() > 1 {
        return binary.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).map(|directory| directory.join(binary));
    let mut files = places.filter(|place| place.is_file());
    files.next().unwrap_or_else(|| binary.to_owned())
}
