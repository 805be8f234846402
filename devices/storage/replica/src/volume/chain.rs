//! The layers of an open volume, as the data path sees them. It never changes: who takes a snapshot or removes a layer makes a new chain, and
//! publishes it while nobody is inside the old one.
//!
//! Used by all connections at once. Offsets and lengths are the peers', and are checked here.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::table::{Table, WINDOW, WINDOW_SECTORS, Window, for_windows};
use crate::files::counter::Counter;
use crate::files::image::{Image, SECTOR};

/// What outlives changes of the chain.
#[derive(Debug, Default)]
pub struct Flags {
    /// It was written since it was opened.
    pub dirty: AtomicBool,
    error: Mutex<Option<String>>,
    failed: AtomicBool,
}

impl Flags {
    /// What is wrong with the replica, for good.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        if !self.failed.load(Ordering::Acquire) {
            return None;
        }
        self.error.lock().clone()
    }

    /// Something is wrong; the first error counts.
    pub fn fail(&self, error: String) {
        let mut place = self.error.lock();
        if place.is_none() {
            tracing::error!(%error, "the replica is in error");
            *place = Some(error);
        }
        self.failed.store(true, Ordering::Release);
    }
}

/// A piece of a read: all in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The layer, from the bottom.
    pub layer: usize,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// The chain.
#[derive(Debug)]
pub struct Chain {
    /// From the bottom up; the last one is the head.
    pub layers: Vec<Arc<Image>>,
    /// Where each sector is.
    pub table: Arc<Table>,
    /// Bytes of the volume.
    pub size: u64,
    /// Counts writes.
    pub counter: Option<Arc<Counter>>,
    /// What outlives it.
    pub flags: Arc<Flags>,
    /// How many layers directly below the head an unmap gives back, for their snapshots are to go.
    pub unmappable: usize,
    /// Layers below the head are to be marked as removed before an unmap.
    pub mark_before_unmap: bool,
}

impl Chain {
    /// The layer that is written.
    #[must_use]
    pub fn head(&self) -> usize {
        self.layers.len() - 1
    }

    /// Whether the range is one of the volume's.
    #[must_use]
    pub fn check(&self, offset: i64, length: u64) -> Option<u64> {
        let offset = u64::try_from(offset).ok()?;
        (offset.checked_add(length)? <= self.size).then_some(offset)
    }

    /// The whole sectors around a range of the volume: the first byte, and the one after the last, which is not beyond the volume's end.
    #[must_use]
    pub fn widen(&self, offset: u64, length: u64) -> (u64, u64) {
        let end = (offset + length).next_multiple_of(SECTOR).min(self.size);
        (offset / SECTOR * SECTOR, end)
    }

    /// Learns where the sectors of a range are.
    ///
    /// # Errors
    /// When the file system cannot tell.
    pub fn load(&self, offset: u64, end: u64) -> io::Result<()> {
        let mut result = Ok(());
        for_windows(offset / SECTOR, end.div_ceil(SECTOR), |window, _, _| {
            if result.is_ok() && self.table.window(window).is_none() {
                result = self
                    .look(window)
                    .map(|content| self.table.learn(window, content));
            }
        });
        result
    }

    /// Looks for the sectors of a window, from the head down. What is nowhere is at the bottom.
    fn look(&self, window: u64) -> io::Result<Window> {
        let start = window * WINDOW * SECTOR;
        let end = (start + WINDOW * SECTOR).min(self.size);
        let mut layers = [0_u8; WINDOW_SECTORS];
        let mut unknown = layers.len();
        for (index, image) in self.layers.iter().enumerate().skip(1).rev() {
            if unknown == 0 {
                break;
            }
            let index = u8::try_from(index).unwrap_or(u8::MAX);
            for range in image.data(start, end)? {
                let first = (range.start - start) / SECTOR;
                let last = (range.end - start).div_ceil(SECTOR).min(WINDOW);
                for sector in first..last {
                    // Less than a window.
                    let place = &mut layers[usize::try_from(sector).unwrap_or(0)];
                    if *place == 0 {
                        *place = index;
                        unknown -= 1;
                    }
                }
            }
        }
        Ok(Window::new(&layers))
    }

    /// The pieces of a range of whole sectors, in order. Their windows are known.
    pub fn runs(&self, offset: u64, end: u64, mut each: impl FnMut(Run)) {
        let mut run: Option<Run> = None;
        let mut next = offset;
        while next < end {
            let length = SECTOR.min(end - next);
            let layer = usize::from(self.table.layer(next / SECTOR).unwrap_or(0));
            match &mut run {
                Some(run) if run.layer == layer => run.length += length,
                _ => {
                    if let Some(run) = run {
                        each(run);
                    }
                    run = Some(Run {
                        layer,
                        offset: next,
                        length,
                    });
                }
            }
            next += length;
        }
        if let Some(run) = run {
            each(run);
        }
    }

    /// The range was written to the head, whole sectors.
    pub fn written(&self, offset: u64, end: u64) {
        let head = u8::try_from(self.head()).unwrap_or(u8::MAX);
        self.table.set(offset / SECTOR, end.div_ceil(SECTOR), head);
    }

    /// A write of the range failed. What of it came to the head is there: what is in the table must be what another process would find.
    ///
    /// # Errors
    /// When the file system cannot tell.
    pub fn failed(&self, offset: u64, end: u64) -> io::Result<()> {
        for range in self.layers[self.head()].data(offset, end)? {
            self.written(range.start, range.end);
        }
        Ok(())
    }

    /// Gives back the whole sectors in a range, which have been taken: in the head, and below it as far as snapshots are to go, without a
    /// live one between. Returns how many bytes took space.
    ///
    /// # Errors
    /// When the file system cannot.
    pub fn punch(&self, offset: u64, end: u64) -> io::Result<u64> {
        let mut freed = 0;
        for image in self.layers.iter().rev().take(1 + self.unmappable) {
            freed += image.punch(offset, end)?;
        }
        Ok(freed)
    }

    /// The whole sectors within a range, cut at the volume's end.
    #[must_use]
    pub fn narrow(&self, offset: u64, length: u64) -> Option<(u64, u64)> {
        let end = offset.checked_add(length)?.min(self.size) / SECTOR * SECTOR;
        let start = offset.checked_next_multiple_of(SECTOR)?;
        (start < end).then_some((start, end))
    }
}
