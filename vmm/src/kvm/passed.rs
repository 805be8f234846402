//! A `/dev/kvm` that was opened by somebody else, for a process that may not open it.
//!
//! Set once, before the first VM is built; each VM of the process has a duplicate of it.

use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::OnceLock;

use paddock_api::spec::PassedFd;
use rustix::fs::{FileType, OFlags, Stat};

use super::KvmError;
use crate::systemd::descriptors::{Descriptors, KVM, PassedError};

static DEVICE: OnceLock<OwnedFd> = OnceLock::new();

/// `/dev/kvm`: a misc device, with the number that is reserved for KVM.
const NUMBER: (u32, u32) = (10, 232);

/// Why a passed descriptor is not used.
#[derive(Debug, thiserror::Error)]
pub enum PassedKvmError {
    /// It cannot be had.
    #[error("--kvm")]
    Passed(#[from] PassedError),
    /// It is something else.
    #[error("--kvm: {0}: the passed descriptor is not /dev/kvm, opened for reading and writing")]
    Wrong(PassedFd),
}

/// Has all VMs of this process use the descriptor that is asked for, or the one that the service manager calls `kvm`, if there is one.
///
/// # Errors
/// When it was not passed, or is something else.
pub fn use_passed(
    asked: Option<&PassedFd>,
    descriptors: &Descriptors,
) -> Result<(), PassedKvmError> {
    let named = PassedFd::Name(KVM.to_owned());
    let asked = match asked {
        Some(asked) => asked,
        None if descriptors.has(&named) => &named,
        None => return Ok(()),
    };
    let device = take(asked, descriptors)?;
    // Asked for once a process.
    let _ = DEVICE.set(device);
    Ok(())
}

fn take(asked: &PassedFd, descriptors: &Descriptors) -> Result<OwnedFd, PassedKvmError> {
    let device = descriptors.take(asked, "/dev/kvm")?;
    if is_kvm(&device) {
        Ok(device)
    } else {
        Err(PassedKvmError::Wrong(asked.clone()))
    }
}

fn is_kvm(device: impl AsFd) -> bool {
    let flags = rustix::fs::fcntl_getfl(&device);
    let stat = rustix::fs::fstat(device);
    matches!((flags, stat), (Ok(flags), Ok(stat)) if is_kvm_with(flags, &stat))
}

fn is_kvm_with(flags: OFlags, stat: &Stat) -> bool {
    let device = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    let kind = FileType::from_raw_mode(stat.st_mode);
    flags.contains(OFlags::RDWR) && kind == FileType::CharacterDevice && device == NUMBER
}

/// KVM: the device that was passed, or `/dev/kvm` as it is found.
#[expect(unsafe_code, reason = "kvm-ioctls takes the number of a descriptor")]
pub(super) fn open() -> Result<kvm_ioctls::Kvm, KvmError> {
    match DEVICE.get() {
        Some(device) => {
            let device = device.try_clone().map_err(KvmError::Open)?;
            // SAFETY: the descriptor is open, and nobody else has this duplicate.
            Ok(unsafe { kvm_ioctls::Kvm::from_raw_fd(device.into_raw_fd()) })
        }
        None => kvm_ioctls::Kvm::new()
            .map_err(|error| KvmError::Open(io::Error::from_raw_os_error(error.errno()))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::error::chain;
    use crate::systemd::descriptors::Passed;

    #[test]
    fn what_is_not_kvm_is_refused() {
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let descriptors = Descriptors::new([Passed {
            number: 3,
            listed: true,
            name: Some("kvm".to_owned()),
            fd: null.into(),
        }]);
        let absent = use_passed(Some(&PassedFd::Number(9)), &descriptors).unwrap_err();
        let text = chain(&absent);
        assert!(
            text.starts_with("--kvm: fd:9: no descriptor was passed"),
            "{text}"
        );
        let wrong = use_passed(None, &descriptors).unwrap_err();
        let text = chain(&wrong);
        assert!(
            text.starts_with("--kvm: fd:kvm: the passed descriptor is not"),
            "{text}"
        );
        use_passed(None, &Descriptors::default()).unwrap();
    }

    /// That the real one is known is seen where there is one, in the end-to-end tests.
    #[test]
    fn kvm_is_known_by_its_number() {
        let null = rustix::fs::stat("/dev/null").unwrap();
        let with = |major, minor| {
            let mut stat = null;
            stat.st_rdev = rustix::fs::makedev(major, minor);
            stat
        };
        let kvm = with(10, 232);
        assert!(is_kvm_with(OFlags::RDWR | OFlags::NONBLOCK, &kvm));
        assert!(!is_kvm_with(OFlags::RDONLY, &kvm));
        assert!(!is_kvm_with(OFlags::WRONLY, &kvm));
        assert!(!is_kvm_with(OFlags::RDWR, &with(10, 200)));
        assert!(!is_kvm_with(OFlags::RDWR, &with(1, 232)));
        let mut disk = kvm;
        disk.st_mode = FileType::BlockDevice.as_raw_mode() | 0o600;
        assert!(!is_kvm_with(OFlags::RDWR, &disk));
    }
}
