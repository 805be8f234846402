//! Debian's firmware, as guests/build unpacks it, and what VMs that boot by it write.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::host::run;
use crate::vm::text;
use crate::{Vm, VmBuilder, files, is_soak};

/// UEFI's code in either release.
pub const CODE: &str = "OVMF_CODE_4M.fd";

/// From power-on to the EFI application.
pub const APP_DEADLINE: Duration = Duration::from_secs(120);

/// A release of Debian whose firmware is tried.
#[derive(Debug, Clone, Copy)]
pub enum Suite {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Suite {
    /// Itself in CI, both under the soak: for tests of what differs by the image or the drive more than by the firmware. Some take the one and some the other.
    #[must_use]
    pub fn or_both(self) -> &'static [Self] {
        match self {
            _ if is_soak() => &[Self::Bookworm, Self::Trixie],
            Self::Bookworm => &[Self::Bookworm],
            Self::Trixie => &[Self::Trixie],
        }
    }

    /// A file of its packages.
    ///
    /// # Panics
    /// When guests/build has not made it.
    #[must_use]
    pub fn file(self, name: &str) -> PathBuf {
        let suite = match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        };
        files::guest(&format!("firmware/{suite}/{name}"))
    }

    /// A VM that boots by its usual image.
    ///
    /// # Panics
    /// When guests/build has not made that.
    #[must_use]
    pub fn vm(self) -> VmBuilder {
        Vm::builder().firmware(&self.file(CODE))
    }
}

/// A directory for what a VM writes: copies of images, variables.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// An empty one.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap_or_else(|error| panic!("temporary directory: {error}")))
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `--disk` with a copy of an image.
    ///
    /// # Panics
    /// When guests/build has not made the image, or it cannot be copied.
    #[must_use]
    pub fn disk(&self, image: &str) -> [String; 2] {
        let copy = self.path(image);
        let original = files::guest(image);
        let (original, shown) = (original.display(), copy.display());
        run(&format!("cp --sparse=always {original} {shown}"));
        ["--disk".to_owned(), shown.to_string()]
    }

    /// `--variables` with a file that is the same each time.
    #[must_use]
    pub fn variables(&self) -> [String; 2] {
        let file = self.path("variables.fd");
        ["--variables".to_owned(), text(&file).to_owned()]
    }
}

/// What the EFI application is to do: `--oem-string` with these commands.
#[must_use]
pub fn script(commands: &str) -> [String; 2] {
    ["--oem-string".to_owned(), format!("efi-app:{commands}")]
}

/// Waits until the EFI application has run for the `boots`th time on these variables without a fault.
///
/// # Panics
/// When it does not in time, or has found one.
#[track_caller]
pub fn app_is_fine(vm: &Vm, boots: usize) {
    vm.wait_until("the EFI application does not end", APP_DEADLINE, || {
        let console = vm.console();
        console.contains("EFI-APP-FAILED") || console.contains(&format!("EFI-APP-OK boots={boots}"))
    });
    let console = vm.console();
    if console.contains("EFI-APP-FAILED") {
        vm.fail("the EFI application has found a fault");
    }
}

/// The console must say this.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn says(vm: &Vm, wanted: &str) {
    if !vm.console().contains(wanted) {
        vm.fail(&format!("{wanted:?} is not on the console"));
    }
}
