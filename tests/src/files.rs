//! Where the tests find what they run: the `paddock` binary and the guests' files.

use std::path::PathBuf;

/// The `paddock` binary: `$PADDOCK_BIN`, or the release build.
#[must_use]
pub fn paddock() -> PathBuf {
    std::env::var_os("PADDOCK_BIN").map_or_else(|| target().join("release/paddock"), PathBuf::from)
}

/// A file that `guests/build` made.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn guest(name: &str) -> PathBuf {
    let path = target().join("guests").join(name);
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
