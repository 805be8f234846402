//! Reads and writes at the disk, in parts: one for each layer that a read finds its data in; for a write, the sectors at its edges that
//! are written only in part, which are read first, and then all of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use paddock_longhorn::wire::Kind;

use super::{Connection, Start, counted};
use crate::data::output::Payload;
use crate::data::request::{Part, SECTOR_BYTES, Stage, error_text};
use crate::data::{Call, Driver};
use crate::files::image::{Image, SECTOR};
use crate::files::memory::Aligned;
use crate::volume::chain::Chain;

impl<D: Driver> Connection<D> {
    pub(super) fn begin_read(&mut self, index: usize, chain: &Chain) {
        let Some(request) = self.requests.get_mut(index) else {
            return;
        };
        let (start, end) = request.range;
        // At most MOST_REQUEST and two sectors.
        let all = usize::try_from(end - start).unwrap_or(0);
        let mut buffer = self.buffers.take(all);
        let mut pieces = Vec::new();
        chain.runs(start, end, |run| {
            let image = &chain.layers[run.layer];
            let at = usize::try_from(run.offset - start).unwrap_or(0);
            let length = usize::try_from(run.length).unwrap_or(0);
            let there = readable(image, run.offset, length);
            // What the layer is too short for, and what a read may be too short for.
            buffer.bytes_mut()[at + there.min(length)..at + length].fill(0);
            if there > 0 {
                pieces.push((image.descriptor(), at, there.min(length), run.offset));
            }
        });
        request.buffer = Some(buffer);
        self.active += 1;
        request.parts = pieces.len();
        if pieces.is_empty() {
            self.finish(index);
            return;
        }
        for (file, at, left, offset) in pieces {
            let part = self.parts.insert(Part {
                request: index,
                file,
                at,
                left,
                offset,
                first: offset,
                sector: None,
            });
            self.push(part);
        }
    }

    pub(super) fn begin_write(&mut self, index: usize, chain: &Chain) -> Start {
        let Some(request) = self.requests.get_mut(index) else {
            return Start::Begun;
        };
        let (start, end) = request.range;
        if !chain.table.take(start / SECTOR, end.div_ceil(SECTOR)) {
            return Start::NotYet;
        }
        if !chain.flags.dirty.load(Ordering::Relaxed) {
            chain.flags.dirty.store(true, Ordering::Relaxed);
        }
        request.revision = chain.counter.as_ref().map(|counter| counter.count(1));
        self.to_persist = request.revision.or(self.to_persist);
        self.active += 1;
        // Checked: it is not negative.
        let data_start = request.offset.unsigned_abs();
        let data_end = data_start + u64::from(request.length);
        let first = (data_start > start).then_some(start);
        let last = (data_end < end).then_some((end - 1) / SECTOR * SECTOR);
        let edges = first
            .into_iter()
            .chain(last.filter(|&last| Some(last) != first));
        let mut parts = Vec::new();
        for offset in edges {
            chain.runs(offset, (offset + SECTOR).min(end), |run| {
                let image = &chain.layers[run.layer];
                let length = usize::try_from(run.length).unwrap_or(0);
                let there = readable(image, run.offset, length);
                parts.push((image.descriptor(), there.min(length), run.offset));
            });
        }
        request.stage = Stage::Edges;
        request.parts = parts.len();
        if parts.is_empty() {
            self.write_main(index);
        }
        for (file, left, offset) in parts {
            let mut sector = self.buffers.take(SECTOR_BYTES);
            sector.bytes_mut()[left..].fill(0);
            let part = self.parts.insert(Part {
                request: index,
                file,
                at: 0,
                left,
                offset,
                first: offset,
                sector: Some(sector),
            });
            match left {
                0 => self.part_ended(part),
                _ => self.push(part),
            }
        }
        Start::Begun
    }

    /// Writes the whole sectors of a request.
    fn write_main(&mut self, index: usize) {
        let Some(request) = self.requests.get_mut(index) else {
            return;
        };
        if request.failed.is_some() {
            self.finish(index);
            return;
        }
        let Some(pass) = &self.pass else {
            return;
        };
        let head = &pass.chain.layers[pass.chain.head()];
        let (start, end) = request.range;
        request.stage = Stage::Main;
        request.parts = 1;
        let part = self.parts.insert(Part {
            request: index,
            file: head.descriptor(),
            at: 0,
            left: usize::try_from(end - start).unwrap_or(0),
            offset: start,
            first: start,
            sector: None,
        });
        self.push(part);
    }

    /// Has a part read or written.
    fn push(&mut self, index: usize) {
        let Some(part) = self.parts.get_mut(index) else {
            return;
        };
        let Some(request) = self.requests.get_mut(part.request) else {
            return;
        };
        let writes = request.kind == Kind::Write && request.stage == Stage::Main;
        let memory: Option<&Aligned> = part.sector.as_ref().or(request.buffer.as_ref());
        let Some(address) = memory.map(|memory| memory.address(part.at)) else {
            return;
        };
        let length = u32::try_from(part.left).unwrap_or(u32::MAX);
        let call = match writes {
            true => Call::Write(part.file, address, length, part.offset),
            false => Call::Read(part.file, address, length, part.offset),
        };
        self.driver.push(index as u64, call);
    }

    pub(super) fn part_completed(&mut self, index: usize, result: i32) {
        let Some(part) = self.parts.get_mut(index) else {
            return;
        };
        let Some(request) = self.requests.get_mut(part.request) else {
            return;
        };
        let writes = request.kind == Kind::Write && request.stage == Stage::Main;
        let Ok(bytes) = usize::try_from(result) else {
            if [-libc::EINTR, -libc::EAGAIN].contains(&result) {
                self.push(index);
                return;
            }
            request.failed = Some(-result);
            self.part_ended(index);
            return;
        };
        let bytes = bytes.min(part.left);
        part.at += bytes;
        part.left -= bytes;
        part.offset += bytes as u64;
        if part.left > 0 && bytes > 0 && bytes % 512 == 0 {
            self.push(index);
            return;
        }
        if part.left > 0 && writes {
            request.failed = Some(libc::EIO);
        } else if part.left > 0 {
            // The layer ends before, in the middle of a sector.
            let (at, left) = (part.at, part.left);
            if let Some(memory) = part.sector.as_mut().or(request.buffer.as_mut()) {
                memory.bytes_mut()[at..at + left].fill(0);
            }
        }
        self.part_ended(index);
    }

    fn part_ended(&mut self, index: usize) {
        let Some(part) = self.parts.remove(index) else {
            return;
        };
        let Some(request) = self.requests.get_mut(part.request) else {
            return;
        };
        if let Some(sector) = part.sector {
            request.merge(sector.bytes(), part.first);
            self.buffers.give(sector);
        }
        request.parts -= 1;
        if request.parts > 0 {
            return;
        }
        match (request.kind, request.stage) {
            (Kind::Write, Stage::Edges) => self.write_main(part.request),
            _ => self.finish(part.request),
        }
    }

    /// Answers what was at the disk.
    fn finish(&mut self, index: usize) {
        self.active -= 1;
        let Some(chain) = self.pass.as_ref().map(|pass| Arc::clone(&pass.chain)) else {
            return;
        };
        let Some(request) = self.requests.get_mut(index) else {
            return;
        };
        let length = request.length;
        if request.kind == Kind::Read {
            let payload = match (request.failed, request.buffer.take()) {
                (None, Some(buffer)) => Payload::Data(buffer, request.shift(), length as usize),
                (errno, _) => Payload::Text(error_text("cannot read", errno.unwrap_or(libc::EIO))),
            };
            self.answer(index, 0, payload);
            return;
        }
        let (start, end) = request.range;
        match request.failed {
            None => chain.written(start, end),
            Some(_) => {
                if let Err(error) = chain.failed(start, end) {
                    chain
                        .flags
                        .fail(format!("cannot find out what was written: {error}"));
                }
            }
        }
        chain.table.give(start / SECTOR, end.div_ceil(SECTOR));
        let failed = request
            .failed
            .map(|errno| error_text("cannot write", errno));
        let failed = failed.or_else(|| counted(&chain, request.revision).err());
        if let Some(buffer) = request.buffer.take() {
            self.buffers.give(buffer);
        }
        self.answer(index, length, failed.map_or(Payload::None, Payload::Text));
    }
}

/// How many bytes of a layer can be read from `offset` on, of `length`; a multiple of 512, as O_DIRECT asks for.
fn readable(image: &Image, offset: u64, length: usize) -> usize {
    let there = image.size().saturating_sub(offset);
    let there = usize::try_from(there).unwrap_or(usize::MAX).min(length);
    there.next_multiple_of(512)
}
