//! Memory that is written all the time and can still be checked: what a migration has to bring across intact.
//!
//! Each page carries its number, the generation of its last write, and a checksum, and is filled with words drawn from
//! both. Beside the memory the probe keeps the generation each page should have; that table travels too, but it would
//! have to be wrong in just the way the page is for a loss to go unseen. Writers are threads of their own.

use super::Result;
use crate::agent::Agent;
use paddock_probe::blocks::{self, Stamp};
use paddock_probe::protocol::{
    MemoryDirty, MemoryReply, MemoryTouch, MemoryVerifyReply, Order, PageMismatch,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const PAGE_U64: u64 = 4096;
const PAGES_PER_MIB: u64 = 256;
const MAX_THREADS: u32 = 64;
const MAX_MISMATCHES: usize = 16;

/// Pages under one lock, which a writer holds for one page and a verify for all.
const CHUNK: u64 = 1024;

/// The memory there is, and its writers.
#[derive(Debug, Default)]
pub struct Slot(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    region: Arc<Region>,
    writers: Option<Writers>,
}

#[derive(Debug)]
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    start: Instant,
    writes_before: u64,
}

#[derive(Debug, Default)]
struct Region {
    chunks: Vec<Mutex<Chunk>>,
    pages: u64,
    writes: AtomicU64,
}

#[derive(Debug)]
struct Chunk {
    first: u64,
    bytes: Vec<u8>,
    generations: Vec<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells this memory's pages from a disk's blocks.
fn stamp(generation: u64) -> Stamp {
    Stamp {
        seed: u64::from_le_bytes(*b"memory\0\0"),
        generation,
    }
}

impl Chunk {
    fn write(&mut self, index: usize) {
        let generation = &mut self.generations[index];
        *generation += 1;
        let offset = (self.first + index as u64) * PAGE_U64;
        blocks::fill(
            &mut self.bytes[index * PAGE..(index + 1) * PAGE],
            offset,
            stamp(*generation),
        );
    }

    fn check(&self) -> impl Iterator<Item = PageMismatch> + '_ {
        self.bytes
            .chunks_exact(PAGE)
            .zip(&self.generations)
            .zip(self.first..)
            .filter_map(|((bytes, &expected), page)| {
                let mismatch = blocks::check(bytes, page * PAGE_U64, stamp(expected)).err()?;
                Some(PageMismatch {
                    page,
                    expected,
                    found: mismatch.found,
                })
            })
    }
}

impl Region {
    /// Allocates and writes every page once.
    fn new(size: u64) -> Result<Self> {
        if size == 0 || !size.is_multiple_of(PAGE_U64) {
            return Err(format!(
                "`size` {size} is not a multiple of {PAGE_U64}, or 0"
            ));
        }
        let available = available_bytes();
        // Otherwise the kernel would kill somebody, perhaps the probe.
        if size > available / 10 * 9 {
            return Err(format!(
                "`size` {size} is more than nine tenths of the {available} bytes available"
            ));
        }
        let pages = size / PAGE_U64;
        let mut chunks = Vec::new();
        for first in (0..pages).step_by(usize::try_from(CHUNK).unwrap_or(1)) {
            let count = usize::try_from(CHUNK.min(pages - first)).unwrap_or(0);
            let mut chunk = Chunk {
                first,
                bytes: vec![0; count * PAGE],
                generations: vec![0; count],
            };
            (0..count).for_each(|index| chunk.write(index));
            chunks.push(Mutex::new(chunk));
        }
        Ok(Self {
            chunks,
            pages,
            writes: AtomicU64::new(pages),
        })
    }

    fn write(&self, page: u64) {
        let position = usize::try_from(page / CHUNK)
            .ok()
            .and_then(|chunk| self.chunks.get(chunk));
        if let (Some(chunk), Ok(index)) = (position, usize::try_from(page % CHUNK)) {
            lock(chunk).write(index);
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn available_bytes() -> u64 {
    let text = crate::sysfs::text("/proc/meminfo");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line
        .and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok())
        .unwrap_or(0);
    kib.saturating_mul(1024)
}

/// Answers `memory.touch`.
pub fn touch(agent: &Agent, request: &MemoryTouch) -> Result<MemoryReply> {
    let mut state = lock(&agent.memory.0);
    end_writers(&mut state);
    // The old memory first, for there may not be room for both.
    state.region = Arc::default();
    state.region = Arc::new(Region::new(request.size)?);
    Ok(reply(&state, 0.0))
}

/// Answers `memory.dirty`.
pub fn dirty(agent: &Agent, request: &MemoryDirty) -> Result<MemoryReply> {
    let threads = u64::from(request.threads.clamp(1, MAX_THREADS));
    let mut state = lock(&agent.memory.0);
    end_writers(&mut state);
    if state.region.pages * PAGE_U64 != request.size {
        state.region = Arc::default();
        state.region = Arc::new(Region::new(request.size)?);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Writers {
        stop: Arc::clone(&stop),
        threads: Vec::new(),
        start: Instant::now(),
        writes_before: state.region.writes.load(Ordering::Relaxed),
    };
    let rate = request
        .rate_mib
        .map(|mib| (mib.saturating_mul(PAGES_PER_MIB) / threads).max(1));
    for number in 0..threads {
        let share =
            state.region.pages * number / threads..state.region.pages * (number + 1) / threads;
        let (region, stop, order) = (Arc::clone(&state.region), Arc::clone(&stop), request.order);
        let body = move || keep_writing(&region, share, order, rate, &stop);
        match thread::Builder::new().name("dirty".to_owned()).spawn(body) {
            Ok(thread) => writers.threads.push(thread),
            Err(error) => {
                state.writers = Some(writers);
                end_writers(&mut state);
                return Err(format!("cannot start a thread: {error}"));
            }
        }
    }
    state.writers = Some(writers);
    Ok(reply(&state, 0.0))
}

/// Answers `memory.stop`.
pub fn stop(agent: &Agent) -> MemoryReply {
    let mut state = lock(&agent.memory.0);
    let rate = end_writers(&mut state);
    reply(&state, rate)
}

/// Answers `memory.verify`. The writers go on as soon as a page has been looked at.
pub fn verify(agent: &Agent) -> MemoryVerifyReply {
    let region = Arc::clone(&lock(&agent.memory.0).region);
    let mut reply = MemoryVerifyReply {
        pages: region.pages,
        wrong: 0,
        mismatches: Vec::new(),
    };
    for chunk in &region.chunks {
        for mismatch in lock(chunk).check() {
            reply.wrong += 1;
            if reply.mismatches.len() < MAX_MISMATCHES {
                reply.mismatches.push(mismatch);
            }
        }
    }
    reply
}

fn reply(state: &State, rate_mib: f64) -> MemoryReply {
    MemoryReply {
        pages: state.region.pages,
        writes: state.region.writes.load(Ordering::Relaxed),
        rate_mib,
    }
}

/// Stops the writers; the rate they reached, MiB/s.
fn end_writers(state: &mut State) -> f64 {
    let Some(writers) = state.writers.take() else {
        return 0.0;
    };
    writers.stop.store(true, Ordering::Relaxed);
    let written = state
        .region
        .writes
        .load(Ordering::Relaxed)
        .saturating_sub(writers.writes_before);
    let seconds = writers.start.elapsed().as_secs_f64();
    for thread in writers.threads {
        let _ = thread.join();
    }
    let mib = u32::try_from(written / PAGES_PER_MIB).map_or(f64::from(u32::MAX), f64::from);
    mib / seconds.max(1e-6)
}

/// Visits the pages of a share again and again, at `rate` pages a second.
fn keep_writing(
    region: &Region,
    share: std::ops::Range<u64>,
    order: Order,
    rate: Option<u64>,
    stop: &AtomicBool,
) {
    let (start, mut written) = (Instant::now(), 0u64);
    if share.is_empty() {
        return;
    }
    for round in 0.. {
        for page in blocks::visits(order, share.end - share.start, round) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            region.write(share.start + page);
            written += 1;
            let due = rate.map_or(Duration::ZERO, |rate| {
                Duration::from_micros(written * 1_000_000 / rate)
            });
            // Short waits are saved up: a sleep costs an emulated guest more than many pages.
            let ahead = due.saturating_sub(start.elapsed());
            if ahead > Duration::from_millis(5) {
                thread::sleep(ahead.min(Duration::from_millis(100)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_page_is_found() {
        let region = Region::new(3 * 4096).unwrap();
        region.write(1);
        let mut chunk = lock(&region.chunks[0]);
        assert_eq!(chunk.check().count(), 0);
        let stale = chunk.bytes[4096..8192].to_vec();
        chunk.write(1);
        chunk.bytes[4096..8192].copy_from_slice(&stale);
        let found: Vec<_> = chunk.check().collect();
        assert_eq!(
            found,
            [PageMismatch {
                page: 1,
                expected: 3,
                found: blocks::Found::Generation(2)
            }]
        );
    }

    #[test]
    fn sizes_are_checked() {
        assert!(Region::new(100).is_err());
        assert!(Region::new(0).is_err());
        assert!(Region::new(1 << 60).unwrap_err().contains("available"));
    }
}
