//! The thread that makes attempts, while a disk is not well: it waits for the time, tries the handle there is, opens a new one.
//!
//! Opening may block for as long as a dead path does, so that is done on a thread of its own: the deadline holds also then.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::state::{CLOSE_DEADLINE, Phase, Shared};
use super::{News, Policy};
use crate::{Capabilities, Disk};

/// Bytes of its stack; see the queues' threads of raw images.
const STACK_SIZE: usize = 1 << 20;

/// How often one who waits for a disk to be opened looks whether anybody wants it still.
const LOOK: Duration = Duration::from_secs(1);

/// Starts it. It ends by itself, and starts with taking the lock that the caller holds.
pub(super) fn start(shared: Arc<Shared>) -> io::Result<()> {
    spawn("disk-retry", move || {
        while next(&shared) {
            attempt(&shared);
        }
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.stack_size(STACK_SIZE).spawn(body).map(drop)
}

/// Waits for the time of the next attempt. `false` when there is to be none.
fn next(shared: &Shared) -> bool {
    let mut state = shared.lock();
    loop {
        let reporting = state.phase == Phase::Reporting;
        if state.episode.is_some() && !state.closed && std::mem::take(&mut state.hurry) {
            return true;
        }
        let (Some(episode), false) = (&state.episode, state.closed) else {
            break;
        };
        let Policy::Retry(retry) = shared.policy else {
            break;
        };
        if episode.stopped || reporting && !state.stale || state.is_idle() {
            break;
        }
        let now = Instant::now();
        let due = episode.attempted.checked_add(retry.interval);
        let end = shared.deadline(&state).filter(|_| !reporting);
        match end {
            Some((end, retry)) if end <= now => {
                shared.expire(&mut state, retry);
                continue;
            }
            _ if due.is_some_and(|due| due <= now) => return true,
            _ => {}
        }
        let until = [due, end.map(|(end, _)| end)].into_iter().flatten().min();
        state = shared.wait(state, until);
    }
    state.supervised = false;
    state.hurry = false;
    false
}

/// One attempt: on the handle there is, then on a new one.
fn attempt(shared: &Arc<Shared>) {
    let has_handle = {
        let mut state = shared.lock();
        if let Some(episode) = &mut state.episode {
            episode.attempts = episode.attempts.saturating_add(1);
            episode.attempted = Instant::now();
        }
        state.disk.is_some()
    };
    if has_handle && try_out(shared) {
        return;
    }
    let opened = if shared.opener.is_some() && is_wanting(shared) {
        open_anew(shared)
    } else {
        Ok(false)
    };
    match opened {
        Ok(true) if try_out(shared) => return,
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "a disk that fails cannot be opened anew"),
    }
    let mut state = shared.lock();
    if state.phase != Phase::Held || shared.policy != Policy::Stop || state.hurry {
        return;
    }
    if let Some(episode) = &mut state.episode {
        episode.stopped = true;
        shared.tell(News::Stopped(episode.failure));
    }
}

/// Whether a new handle is of use.
fn is_wanting(shared: &Shared) -> bool {
    let state = shared.lock();
    !state.closed && matches!(state.phase, Phase::Held | Phase::Reporting)
}

/// Lets queues replay what they hold, and waits for the outcome. Whether all is well, or nobody waits for anything.
fn try_out(shared: &Shared) -> bool {
    let mut state = shared.lock();
    if state.phase == Phase::Held {
        if let Some(episode) = &mut state.episode {
            episode.proven = false;
        }
        shared.enter(&mut state, Phase::Trying);
    }
    while state.phase == Phase::Trying && !state.is_idle() && !state.closed {
        let end = shared.deadline(&state);
        match end {
            Some((end, retry)) if end <= Instant::now() => shared.expire(&mut state, retry),
            _ => state = shared.wait(state, end.map(|(end, _)| end)),
        }
    }
    state.phase == Phase::Open || state.is_idle()
}

/// Replaces the handle. Whether there is a new one to try.
fn open_anew(shared: &Arc<Shared>) -> io::Result<bool> {
    let fresh = match open(shared) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            // It may be busy with us. Only now is the old handle given up: where there is nothing to open, it is all there is.
            close_everywhere(shared)?;
            open(shared)?
        }
        fresh => fresh?,
    };
    let capabilities = fresh.capabilities();
    let mut state = shared.lock();
    if state.closed {
        return Err(io::ErrorKind::Interrupted.into());
    }
    check(&state.capabilities, &capabilities)?;
    if !state.repeats_flush && shared.unflushed.swap(false, Ordering::AcqRel) {
        shared.lost.store(true, Ordering::Release);
    }
    state.capabilities = capabilities;
    state.repeats_flush = fresh.repeats_flush();
    state.generation += 1;
    state.stale = false;
    let old = state.disk.replace(fresh);
    shared.ring(&state);
    let wanted = state.phase == Phase::Held;
    drop(state);
    drop(old);
    Ok(wanted)
}

/// Opens the disk by its name. What is held does not wait for that beyond the deadline.
fn open(shared: &Arc<Shared>) -> io::Result<Arc<dyn Disk>> {
    let (reply, answer) = channel();
    let theirs = Arc::clone(shared);
    spawn("disk-open", move || {
        if let Some(opener) = &theirs.opener {
            // Whoever asked may be gone.
            let _ = reply.send(opener());
        }
    })?;
    loop {
        let patience = {
            let mut state = shared.lock();
            if state.closed {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let stopped = state.episode.as_ref().is_none_or(|episode| episode.stopped);
            match shared.deadline(&state) {
                Some((end, retry)) if state.phase == Phase::Held && !stopped => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        shared.expire(&mut state, retry);
                    }
                    left.min(LOOK)
                }
                _ => LOOK,
            }
        };
        match answer.recv_timeout(patience) {
            Ok(opened) => return opened,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("opening the disk ended unexpectedly"));
            }
        }
    }
}

/// Has every queue let go of the handle, and lets go of it.
fn close_everywhere(shared: &Shared) -> io::Result<()> {
    let deadline = Instant::now() + CLOSE_DEADLINE;
    let mut state = shared.lock();
    let Some(disk) = state.disk.take() else {
        return Ok(());
    };
    let before = state.phase;
    state.capabilities = disk.capabilities();
    shared.enter(&mut state, Phase::Closing);
    while state.users > 0 && Instant::now() < deadline && !state.closed {
        state = shared.wait(state, Some(deadline));
    }
    let in_use = state.users > 0;
    if in_use {
        // The host still has requests of it, or a queue's thread is busy: it stays as it was.
        state.disk = Some(Arc::clone(&disk));
    }
    shared.enter(&mut state, before);
    drop(state);
    drop(disk);
    if in_use {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the host still works on requests of the disk as it was opened before",
        ));
    }
    Ok(())
}

/// Whether what was opened can be the same disk.
fn check(old: &Capabilities, new: &Capabilities) -> io::Result<()> {
    let differs = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if new.size < old.size {
        let (old, new) = (old.size, new.size);
        return differs(format!(
            "it has {new} bytes where it had {old}: another disk?"
        ));
    }
    if new.logical_block_size != old.logical_block_size {
        let (old, new) = (old.logical_block_size, new.logical_block_size);
        return differs(format!(
            "its blocks have {new} bytes where they had {old}: another disk?"
        ));
    }
    if new.read_only && !old.read_only {
        return differs("it has become read-only".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_differs_is_not_the_same() {
        let disk = crate::testing::MemoryDisk::new(8192).capabilities();
        let with = |change: fn(&mut Capabilities)| {
            let mut other = disk.clone();
            change(&mut other);
            check(&disk, &other).map_err(|error| error.to_string())
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(with(|other| other.size *= 2), Ok(()));
        let smaller = "it has 4096 bytes where it had 8192: another disk?";
        assert_eq!(with(|other| other.size /= 2), Err(smaller.to_owned()));
        assert!(with(|other| other.logical_block_size = 4096).is_err());
        assert!(with(|other| other.read_only = true).is_err());
    }
}
