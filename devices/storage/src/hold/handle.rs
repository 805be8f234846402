//! A queue's own opening of the handle that is in use: taken when the disk is opened anew, let go of before that.
//!
//! Runs on the queue's thread, as the queue of a backend has to be used by the thread that opened it.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::queue::HoldQueue;
use super::state::Phase;
use crate::{Disk, DiskQueue};

/// The handle that a queue has open.
pub(super) struct Handle {
    pub queue: Box<dyn DiskQueue>,
    pub generation: u64,
    pub repeats_flush: bool,
    /// It waits for what the user watches, and not the other way round.
    pub waits: bool,
}

impl HoldQueue {
    /// Opens the handle in use, if there is one and the queue has none.
    pub(super) fn take_handle(&mut self) -> io::Result<()> {
        let (disk, generation, repeats_flush) = {
            let mut state = self.shared.lock();
            let (Some(disk), None) = (&state.disk, &self.handle) else {
                return Ok(());
            };
            if state.phase == Phase::Closing {
                return Ok(());
            }
            let found = (Arc::clone(disk), state.generation, state.repeats_flush);
            state.users += 1;
            found
        };
        match self.make_handle(disk.as_ref(), generation, repeats_flush) {
            Ok(handle) => {
                self.handle = Some(handle);
                Ok(())
            }
            Err(error) => {
                drop(disk);
                self.shared.let_go();
                Err(error)
            }
        }
    }

    fn make_handle(
        &self,
        disk: &dyn Disk,
        generation: u64,
        repeats_flush: bool,
    ) -> io::Result<Handle> {
        let mut queue = disk.open_queue(self.depth)?;
        let waits = match &self.watched {
            Some(watched) => queue.watch(watched.as_fd())?,
            None => false,
        };
        self.listen(queue.as_ref(), waits)?;
        Ok(Handle {
            queue,
            generation,
            repeats_flush,
            waits,
        })
    }

    /// Adds what wakes the handle's user to our events.
    pub(super) fn listen(&self, queue: &dyn DiskQueue, waits: bool) -> io::Result<()> {
        let event = if waits {
            queue.notice()
        } else {
            Some(queue.completion_event())
        };
        event.map_or(Ok(()), |event| self.events.add(event))
    }

    pub(super) fn close_handle(&mut self) {
        let Some(handle) = self.handle.take() else {
            return;
        };
        self.events.remove(handle.queue.completion_event());
        if let Some(notice) = handle.queue.notice() {
            self.events.remove(notice);
        }
        drop(handle);
        self.shared.let_go();
    }

    /// Whether the handle is not the one in use.
    pub(super) fn is_behind(&self) -> bool {
        let state = self.shared.lock();
        let ours = self.handle.as_ref().map(|handle| handle.generation);
        ours != state.disk.as_ref().map(|_| state.generation)
    }
}
