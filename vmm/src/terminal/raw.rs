//! A terminal in raw mode, and its way back.
//!
//! Raw means that every key goes to the guest, Ctrl-C too, and that what the guest prints is shown as it is. The former mode comes
//! back when the [`RawMode`] is dropped, and on a panic through [`restore`], which a panic hook calls; the signals that end
//! a process are caught elsewhere and end it in order.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::termios::{self, OptionalActions, Termios};

/// The terminal that is in raw mode, with its former mode. There is one standard input, so there is one.
static SAVED: Mutex<Option<Saved>> = Mutex::new(None);

struct Saved {
    terminal: OwnedFd,
    mode: Termios,
}

/// Keeps the terminal in raw mode while it lives.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Puts `terminal` into raw mode.
    ///
    /// # Errors
    /// When it is no terminal, cannot be changed, or another one is in raw mode already.
    pub fn enter(terminal: impl AsFd) -> io::Result<Self> {
        let mut saved = SAVED.lock();
        if saved.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mode = termios::tcgetattr(&terminal)?;
        let terminal = rustix::io::fcntl_dupfd_cloexec(&terminal, 3)?;
        make_raw(&terminal, &mode)?;
        *saved = Some(Saved { terminal, mode });
        Ok(Self(()))
    }

    /// Raw mode again after the process was suspended and continued: the shell has set the terminal to its liking meanwhile.
    pub fn renew(&self) {
        if let Some(saved) = &*SAVED.lock() {
            if let Err(error) = make_raw(&saved.terminal, &saved.mode) {
                tracing::warn!(%error, "the terminal cannot be put into raw mode again");
            }
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn make_raw(terminal: &OwnedFd, mode: &Termios) -> io::Result<()> {
    let mut raw = mode.clone();
    raw.make_raw();
    termios::tcsetattr(terminal, OptionalActions::Now, &raw)?;
    Ok(())
}

/// Gives the terminal its former mode back, if it is in raw mode. Never waits, so a panic hook may call it.
pub fn restore() {
    let Some(mut saved) = SAVED.try_lock() else {
        return;
    };
    if let Some(Saved { terminal, mode }) = saved.take() {
        // Not "flush": what was typed ahead belongs to the shell. A terminal that is gone needs no mode.
        let _ = termios::tcsetattr(&terminal, OptionalActions::Now, &mode);
    }
}

/// Whether `input` is a terminal whose keyboard is ours: a background job that reads from its terminal is stopped by the kernel.
#[must_use]
pub fn is_our_terminal(input: impl AsFd) -> bool {
    if !termios::isatty(&input) {
        return false;
    }
    match termios::tcgetpgrp(&input) {
        Ok(foreground) => foreground == rustix::process::getpgrp(),
        // A terminal that does not control us does not stop us either.
        Err(error) => error == Errno::NOTTY,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::LocalModes;

    use super::*;

    fn pty() -> (OwnedFd, std::fs::File) {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let terminal = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OpenptFlags::NOCTTY.bits().cast_signed())
            .open(name.to_str().unwrap())
            .unwrap();
        (controller, terminal)
    }

    fn echoes(terminal: &std::fs::File) -> bool {
        let mode = termios::tcgetattr(terminal).unwrap();
        mode.local_modes
            .contains(LocalModes::ECHO | LocalModes::ISIG)
    }

    // One test: raw mode is a state of the process.
    #[test]
    fn raw_and_back() {
        let (_controller, terminal) = pty();
        assert!(echoes(&terminal));
        let raw = RawMode::enter(&terminal).unwrap();
        assert!(!echoes(&terminal));
        assert_eq!(
            RawMode::enter(&terminal).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        // As a shell does while the process is stopped.
        let mut cooked = termios::tcgetattr(&terminal).unwrap();
        cooked.local_modes |= LocalModes::ECHO | LocalModes::ISIG;
        termios::tcsetattr(&terminal, OptionalActions::Now, &cooked).unwrap();
        raw.renew();
        assert!(!echoes(&terminal));
        drop(raw);
        assert!(echoes(&terminal));

        let raw = RawMode::enter(&terminal).unwrap();
        restore();
        assert!(echoes(&terminal), "as a panic hook does");
        drop(raw);
        assert!(echoes(&terminal));

        let (pipe, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(RawMode::enter(&pipe).is_err());
        assert!(!is_our_terminal(&pipe));
    }
}
