//! Two system calls that only ask. They change nothing and take nothing from outside.
#![expect(
    unsafe_code,
    reason = "no crate in use wraps adjtimex, and userfaultfd's wrapper is unsafe"
)]

use std::fs::OpenOptions;
use std::io;
use std::mem::MaybeUninit;

use rustix::mm::UserfaultfdFlags;

/// Whether something keeps the kernel's clock right; `None` if the kernel does not say.
#[must_use]
pub fn clock_is_synchronized() -> Option<bool> {
    // SAFETY: timex is made of integers, for which all zeros are valid; zero modes make the call a question.
    let mut timex: libc::timex = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the kernel writes one timex, and that is one.
    match unsafe { libc::adjtimex(&raw mut timex) } {
        -1 => None,
        state => Some(state != libc::TIME_ERROR),
    }
}

/// Whether this process can take page faults that KVM causes, which post-copy lives by: by the system call, or by its device.
///
/// # Errors
/// What the kernel said to the system call.
pub fn userfaultfd() -> io::Result<()> {
    // SAFETY: the descriptor is closed at once, and no memory was registered with it.
    let called = unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC) };
    match called {
        Ok(_) => Ok(()),
        Err(_)
            if OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/userfaultfd")
                .is_ok() =>
        {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
