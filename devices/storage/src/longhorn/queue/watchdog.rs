//! A timer for a queue over which nobody else watches: it ticks as long as something is asked, and has the queue look for who does not answer.

use std::io;
use std::time::Duration;

use rustix::event::epoll;
use vmm_sys_util::timerfd::TimerFd;

use super::session::Session;
use super::{VolumeQueue, WATCHDOG};

/// Ticks until a silence is as long as it may be.
const TICKS: u32 = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Watchdog {
    timer: TimerFd,
    /// How long there may be no answer.
    patience: Duration,
    /// It will tick.
    armed: bool,
}

impl Watchdog {
    /// # Errors
    /// When the host gives no timer.
    fn new(patience: Duration) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        Ok(Self {
            timer,
            patience,
            armed: false,
        })
    }

    /// Has it tick once more, for something is asked. It is left alone when all is answered: with one request at a time it would be set twice for each.
    pub(super) fn arm(&mut self) {
        if self.armed {
            return;
        }
        match self.timer.reset(self.patience / TICKS, None) {
            Ok(()) => self.armed = true,
            Err(error) => {
                tracing::error!(%error, "the timer of an engine's queue cannot be set");
            }
        }
    }

    /// It has ticked.
    fn ticked(&mut self) {
        self.armed = false;
        // Not readable any more. Where that fails, so will setting it.
        let _ = self.timer.clear();
    }
}

impl VolumeQueue {
    /// Has the queue itself leave who answers nothing for longer than `patience`, or something for longer than four times that.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub(in crate::longhorn) fn watch_over(&mut self, patience: Duration) -> io::Result<()> {
        let watchdog = Watchdog::new(patience)?;
        let token = epoll::EventData::new_u64(WATCHDOG);
        let timer = crate::fd::borrow(&watchdog.timer);
        epoll::add(&self.epoll, timer, token, epoll::EventFlags::IN)?;
        self.watchdog = Some(watchdog);
        Ok(())
    }

    /// Leaves who is silent for too long, now that what has come was received.
    pub(super) fn look_for_silence(&mut self) {
        let Some(watchdog) = &mut self.watchdog else {
            return;
        };
        watchdog.ticked();
        let (now, patience) = (self.shared.now(), watchdog.patience);
        let silent = |session: &Session| session.silence(now, patience);
        while let Some((index, reason)) = self
            .sessions
            .iter()
            .enumerate()
            .find_map(|(index, session)| Some((index, silent(session)?)))
        {
            self.lose(index, &reason);
        }
    }
}
