//! Disks: self-checking blocks written and verified by several threads, and single requests.
//!
//! Each job is a thread pinned to a CPU with one request in flight, since the kernel picks the hardware queue by CPU.
//! An I/O error is what a test is about and goes into the reply; only what makes no sense is an error.

use super::{Result, pin};
use crate::sysfs;
use paddock_probe::blocks::{self, Mismatch, SECTOR, Stamp};
use paddock_probe::protocol::{
    Area, BlocksDiscard, BlocksFlush, BlocksRead, BlocksReadReply, BlocksReply, BlocksVerify,
    BlocksWrite, BlocksZero, Bytes, IoError, IoReply, Issue, Range,
};
use rustix::fs::{FallocateFlags, OFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

const MAX_JOBS: u32 = 256;
const MAX_ERRORS: u32 = 1000;
const MAX_READ: u64 = 1 << 20;

/// What O_DIRECT wants of a buffer's address on any device.
const ALIGNMENT: usize = 4096;

fn io_error(call: &str, offset: Option<u64>, error: &io::Error) -> IoError {
    IoError {
        offset,
        call: call.to_owned(),
        errno: error.raw_os_error().unwrap_or(0),
        message: error.to_string(),
    }
}

fn open(path: &str, write: bool, direct: bool) -> io::Result<File> {
    let flags = if direct {
        OFlags::DIRECT
    } else {
        OFlags::empty()
    };
    let flags = i32::try_from((flags | OFlags::CLOEXEC).bits()).unwrap_or(0);
    OpenOptions::new()
        .read(!write)
        .write(write)
        .custom_flags(flags)
        .open(path)
}

/// A buffer that starts on a multiple of [`ALIGNMENT`].
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self {
            bytes,
            start,
            length,
        }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

// ---- many blocks ------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq)]
enum Direction {
    Write,
    Verify,
}

/// Answers `blocks.write`.
pub fn write(request: &BlocksWrite) -> Result<BlocksReply> {
    let start = Instant::now();
    let mut reply = visit(&request.area, &request.issue, Direction::Write)?;
    if request.flush {
        reply.errors.extend(
            flush(&BlocksFlush {
                path: request.area.path.clone(),
            })
            .error,
        );
    }
    reply.seconds = start.elapsed().as_secs_f64();
    Ok(reply)
}

/// Answers `blocks.verify`.
pub fn verify(request: &BlocksVerify) -> Result<BlocksReply> {
    visit(&request.area, &request.issue, Direction::Verify)
}

/// What the jobs of one request share.
struct Run<'a> {
    area: &'a Area,
    stamp: Stamp,
    direction: Direction,
    file: File,
    jobs: u64,
    /// Blocks to visit.
    count: u64,
    limit: usize,
    done: AtomicU64,
    stop: AtomicBool,
    findings: Mutex<(Vec<IoError>, Vec<Mismatch>)>,
}

fn visit(area: &Area, issue: &Issue, direction: Direction) -> Result<BlocksReply> {
    let blocks = check_area(area)?;
    let (count, jobs) = (
        area.count.unwrap_or(blocks).min(blocks),
        issue.jobs.clamp(1, MAX_JOBS),
    );
    let mut reply = BlocksReply {
        blocks: 0,
        bytes: 0,
        seconds: 0.0,
        errors: vec![],
        mismatches: vec![],
        cpus: vec![],
    };
    let file = match open(&area.path, direction == Direction::Write, issue.direct) {
        Ok(file) => file,
        Err(error) => {
            reply.errors.push(io_error("open", None, &error));
            return Ok(reply);
        }
    };
    let run = Run {
        area,
        stamp: Stamp {
            seed: area.seed,
            generation: area.generation,
        },
        direction,
        file,
        jobs: u64::from(jobs),
        count,
        limit: usize::try_from(issue.max_errors.clamp(1, MAX_ERRORS)).unwrap_or(1),
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        findings: Mutex::default(),
    };
    let start = Instant::now();
    reply.cpus = run.all_jobs()?;
    reply.seconds = start.elapsed().as_secs_f64();
    reply.cpus.sort_unstable();
    reply.cpus.dedup();
    reply.blocks = run.done.into_inner();
    reply.bytes = reply.blocks * u64::from(area.block_size);
    (reply.errors, reply.mismatches) = run.findings.into_inner().unwrap_or_default();
    Ok(reply)
}

/// The number of blocks in an area, if it makes sense.
fn check_area(area: &Area) -> Result<u64> {
    let size = u64::from(area.block_size);
    if size == 0 || size % SECTOR as u64 != 0 || area.block_size > blocks::MAX_BLOCK {
        return Err(format!(
            "`block_size` {size} is not a multiple of {SECTOR} between that and 16 MiB"
        ));
    }
    if !area.offset.is_multiple_of(size) || !area.length.is_multiple_of(size) {
        return Err(format!(
            "`offset` and `length` must be multiples of `block_size` {size}"
        ));
    }
    if area
        .offset
        .checked_add(area.length)
        .is_none_or(|end| i64::try_from(end).is_err())
    {
        return Err("`offset` + `length` is beyond any device's end".to_owned());
    }
    Ok(area.length / size)
}

impl Run<'_> {
    /// Visits all blocks, on a thread for each job; returns the CPUs they ran on.
    fn all_jobs(&self) -> Result<Vec<u32>> {
        let cpus = sysfs::online_cpus();
        thread::scope(|scope| {
            let handles: Vec<_> = (0..self.jobs)
                .zip(cpus.iter().cycle())
                .map(|(job, &cpu)| {
                    thread::Builder::new()
                        .name("blocks".to_owned())
                        .spawn_scoped(scope, move || self.job(job, cpu))
                })
                .collect();
            let mut used = Vec::new();
            for handle in handles {
                let handle = handle.map_err(|error| format!("cannot start a thread: {error}"))?;
                used.push(handle.join().map_err(|_| "a job panicked".to_owned())??);
            }
            Ok(used)
        })
    }

    /// Visits this job's share of the blocks; returns the CPU it ran on.
    fn job(&self, job: u64, cpu: u32) -> Result<u32> {
        pin(cpu)?;
        let mut buffer = Buffer::new(usize::try_from(self.area.block_size).unwrap_or(SECTOR));
        let size = u64::from(self.area.block_size);
        let blocks = self.area.length / size;
        let visit = |(turn, block): (u64, u64)| {
            if turn % self.jobs == job && !self.stop.load(Ordering::Relaxed) {
                self.block(self.area.offset + block * size, buffer.get());
            }
        };
        let turns = 0..self.count;
        turns
            .zip(blocks::visits(self.area.order, blocks, self.area.seed))
            .for_each(visit);
        Ok(cpu)
    }

    fn block(&self, offset: u64, block: &mut [u8]) {
        let (mut error, mut mismatch) = (None, None);
        match self.direction {
            Direction::Write => {
                blocks::fill(block, offset, self.stamp);
                error = self
                    .file
                    .write_all_at(block, offset)
                    .err()
                    .map(|error| io_error("write", Some(offset), &error));
            }
            Direction::Verify => match self.file.read_exact_at(block, offset) {
                Ok(()) => mismatch = blocks::check(block, offset, self.stamp).err(),
                Err(failed) => error = Some(io_error("read", Some(offset), &failed)),
            },
        }
        if error.is_none() && mismatch.is_none() {
            self.done.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut findings = self
            .findings
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if findings.0.len() + findings.1.len() < self.limit {
            findings.0.extend(error);
            findings.1.extend(mismatch);
        }
        if findings.0.len() + findings.1.len() >= self.limit {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

// ---- single requests --------------------------------------------------------------------------------------

fn whole(call: &str, offset: Option<u64>, result: io::Result<()>) -> IoReply {
    IoReply {
        error: result.err().map(|error| io_error(call, offset, &error)),
    }
}

/// Answers `blocks.flush`.
pub fn flush(request: &BlocksFlush) -> IoReply {
    whole(
        "flush",
        None,
        open(&request.path, true, false).and_then(|file| file.sync_all()),
    )
}

/// Answers `blocks.read`.
pub fn read(request: &BlocksRead) -> Result<BlocksReadReply> {
    let Range {
        path,
        offset,
        length,
    } = &request.range;
    if *length > MAX_READ {
        return Err(format!("`length` {length} is above {MAX_READ}"));
    }
    let mut buffer = Buffer::new(usize::try_from(*length).unwrap_or(0));
    let read =
        open(path, false, request.direct).and_then(|file| read_up_to(&file, buffer.get(), *offset));
    Ok(match read {
        Ok(count) => BlocksReadReply {
            data: Bytes(buffer.get()[..count].to_vec()),
            error: None,
        },
        Err(error) => BlocksReadReply {
            data: Bytes::default(),
            error: Some(io_error("read", Some(*offset), &error)),
        },
    })
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Answers `blocks.discard`.
pub fn discard(request: &BlocksDiscard) -> IoReply {
    let range = &request.range;
    let result = open(&range.path, true, false).and_then(|file| {
        if is_device(&file)? {
            range_ioctl::discard(&file, range.offset, range.length)
        } else {
            allocate(&file, FallocateFlags::PUNCH_HOLE, range)
        }
    });
    whole("discard", Some(range.offset), result)
}

/// Answers `blocks.zero`.
pub fn zero(request: &BlocksZero) -> IoReply {
    let range = &request.range;
    let result = open(&range.path, true, false).and_then(|file| {
        if request.unmap {
            // On a device: WRITE_ZEROES that may unmap, and no writes in its stead.
            allocate(&file, FallocateFlags::PUNCH_HOLE, range)
        } else if is_device(&file)? {
            range_ioctl::zero_out(&file, range.offset, range.length)
        } else {
            allocate(&file, FallocateFlags::ZERO_RANGE, range)
        }
    });
    whole("zero", Some(range.offset), result)
}

fn is_device(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_type().is_block_device())
}

fn allocate(file: &File, flags: FallocateFlags, range: &Range) -> io::Result<()> {
    Ok(rustix::fs::fallocate(
        file,
        flags | FallocateFlags::KEEP_SIZE,
        range.offset,
        range.length,
    )?)
}

/// The block layer's ioctls on ranges, for which rustix has no safe form.
mod range_ioctl {
    #![expect(unsafe_code, reason = "ioctls outside rustix's own")]

    use rustix::ioctl::{Opcode, Setter, ioctl};
    use std::fs::File;
    use std::io;

    const BLKDISCARD: Opcode = 0x1277;
    const BLKZEROOUT: Opcode = 0x127f;

    pub fn discard(device: &File, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: BLKDISCARD reads two u64, offset and length, from its argument, and writes nothing there.
        unsafe {
            Ok(ioctl(
                device,
                Setter::<BLKDISCARD, [u64; 2]>::new([offset, length]),
            )?)
        }
    }

    pub fn zero_out(device: &File, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: BLKZEROOUT reads two u64, offset and length, from its argument, and writes nothing there.
        unsafe {
            Ok(ioctl(
                device,
                Setter::<BLKZEROOUT, [u64; 2]>::new([offset, length]),
            )?)
        }
    }
}
