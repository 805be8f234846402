//! A host that is made up: files below a temporary directory.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::host::Host;

/// Goes with its files.
#[derive(Debug)]
pub struct FakeHost(TempDir);

impl FakeHost {
    /// With these files: paths without the first slash, and what is in them.
    pub fn new<P: AsRef<Path>, C: AsRef<[u8]>>(files: &[(P, C)]) -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        for (path, contents) in files {
            this.write(path, contents);
        }
        this
    }

    /// One file more.
    pub fn write(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    /// Where a file of it really is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(path)
    }

    /// As the doctor reads it.
    pub fn host(&self) -> Host {
        Host::at(self.0.path())
    }
}
