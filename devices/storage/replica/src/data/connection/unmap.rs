//! Unmaps: space that is given back, in whole sectors.

use std::sync::atomic::Ordering;

use paddock_longhorn::wire::Kind;

use super::{Connection, Start, counted};
use crate::data::Driver;
use crate::data::output::Payload;
use crate::files::image::SECTOR;
use crate::volume::chain::Chain;

impl<D: Driver> Connection<D> {
    /// Gives space back. Nothing of this connection's is at the disk then: the file system waits until the file is at rest, and this thread could
    /// not see to its own requests meanwhile.
    pub(super) fn unmap(&mut self, index: usize, chain: &Chain) -> Start {
        if self.active > 0 {
            return Start::NotYet;
        }
        if chain.mark_before_unmap {
            self.pass = None;
            if let Err(error) = self.replica.mark_chain_as_removed() {
                let text = format!(
                    "cannot mark snapshots as removed before an unmap: {}",
                    error.text()
                );
                self.answer(index, 0, Payload::Text(text));
                return Start::Begun;
            }
            return self.begin_inside(index, Kind::Unmap);
        }
        let Some(request) = self.requests.get_mut(index) else {
            return Start::Begun;
        };
        let Ok(offset) = u64::try_from(request.offset) else {
            let text = format!("cannot unmap at {}", request.offset);
            self.answer(index, 0, Payload::Text(text));
            return Start::Begun;
        };
        let freed = match chain.narrow(offset, u64::from(request.length)) {
            None => Ok(0),
            Some((start, end)) => match self.punch(chain, start, end) {
                Some(freed) => freed,
                None => return Start::NotYet,
            },
        };
        let revision = chain.counter.as_ref().map(|counter| counter.count(1));
        let result = freed.and_then(|freed| counted(chain, revision).map(|()| freed));
        match result {
            Ok(freed) => self.answer(
                index,
                u32::try_from(freed).unwrap_or(u32::MAX),
                Payload::None,
            ),
            Err(text) => self.answer(index, 0, Payload::Text(text)),
        }
        Start::Begun
    }

    /// Punches whole sectors, unless some of them are being written.
    fn punch(&mut self, chain: &Chain, start: u64, end: u64) -> Option<Result<u64, String>> {
        if let Err(error) = chain.load(start, end) {
            return Some(Err(format!("cannot find the data: {error}")));
        }
        if !chain.table.take(start / SECTOR, end / SECTOR) {
            return None;
        }
        chain.flags.dirty.store(true, Ordering::Relaxed);
        let freed = chain.punch(start, end);
        chain.table.give(start / SECTOR, end / SECTOR);
        Some(freed.map_err(|error| format!("cannot unmap: {error}")))
    }
}
