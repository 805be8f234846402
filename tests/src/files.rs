//! Where the tests find what they run, the `paddock` binary and the guests' files, and the empty disks that they make.

use std::fs::File;
use std::path::{Path, PathBuf};

/// The `paddock` binary: `$PADDOCK_BIN`, or the release build.
#[must_use]
pub fn paddock() -> PathBuf {
    std::env::var_os("PADDOCK_BIN").map_or_else(|| target().join("release/paddock"), PathBuf::from)
}

/// A file that `guests/build` made: in `$PADDOCK_GUESTS`, where some of them may be, or where it makes them.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn guest(name: &str) -> PathBuf {
    let nearby = std::env::var_os("PADDOCK_GUESTS").map(|nearby| Path::new(&nearby).join(name));
    let path = nearby
        .filter(|path| path.exists())
        .unwrap_or_else(|| target().join("guests").join(name));
    assert!(
        path.exists(),
        "{} is missing: run guests/build",
        path.display()
    );
    path
}

/// Where the build and the guests are.
#[must_use]
pub fn target() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target"))
}

/// A program of the release build, beside [`paddock`].
#[must_use]
pub fn release(name: &str) -> PathBuf {
    paddock().with_file_name(name)
}

/// Makes an empty disk: the sparse file `name` of `size` bytes.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn empty_disk(directory: &Path, name: &str, size: u64) -> PathBuf {
    let path = directory.join(name);
    let made = File::create(&path).and_then(|file| file.set_len(size));
    made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    path
}
