//! Measures a disk when the kernel's command line asks for it (`probe.measure=read:32:1:/dev/vda`), for ever, and says on the console what
//! each second or so came to: for benchmarks, also of VMMs without a port for the agent.
//!
//! Random blocks of 4 KiB through io_uring with O_DIRECT, so that neither the guest's page cache nor its threads are what is measured.
//! One thread. Whoever writes the command line may have the disk's content overwritten.
#![expect(
    unsafe_code,
    reason = "submission entries point to memory that must outlive the operation"
)]

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use paddock_probe::stream::SplitMix;
use rustix::fs::OFlags;

/// The word on the command line, with its value.
pub const MEASURE: &str = "probe.measure=";

const BLOCK: usize = 4096;
const BLOCK_LENGTH: u32 = 4096;
const MAX_DEPTH: u32 = 1024;
/// Not counted: caches fill, governors wake up.
const WARM_UP: Duration = Duration::from_millis(500);

/// What is to be measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measure {
    write: bool,
    /// Requests at once.
    depth: u32,
    /// How long requests are counted before it is said how many they were.
    slice: Duration,
    device: String,
}

impl FromStr for Measure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("{MEASURE}read|write:DEPTH:SECONDS:DEVICE, not {text:?}");
        let mut parts = text.splitn(4, ':');
        let mut next = || parts.next().ok_or_else(usage);
        let write = match next()? {
            "read" => false,
            "write" => true,
            _ => return Err(usage()),
        };
        let depth = next()?.parse().map_err(|_| usage())?;
        let seconds: u64 = next()?.parse().map_err(|_| usage())?;
        let device = next()?.to_owned();
        if !(1..=MAX_DEPTH).contains(&depth) || !(1..=3600).contains(&seconds) {
            return Err(usage());
        }
        Ok(Self {
            write,
            depth,
            slice: Duration::from_secs(seconds),
            device,
        })
    }
}

/// A block's worth of memory as O_DIRECT wants it.
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

impl Measure {
    /// Measures until that fails; `tell` is given the requests a second of each slice.
    pub fn run(&self, mut tell: impl FnMut(f64)) -> io::Result<Infallible> {
        let mut run = Run::new(self)?;
        let start = Instant::now() + WARM_UP;
        for index in 0..self.depth {
            run.push(index)?;
        }
        let mut counted: Option<(Instant, u32)> = None;
        loop {
            let completed = run.wait()?;
            let now = Instant::now();
            counted = match counted {
                // What was done while nobody looked is not counted, only what follows it.
                None => (now >= start).then_some((now, 0)),
                Some((begin, done)) => {
                    let done = done + u32::try_from(completed.len()).unwrap_or(u32::MAX);
                    let took = now - begin;
                    if took >= self.slice {
                        tell(f64::from(done) / took.as_secs_f64());
                        None
                    } else {
                        Some((begin, done))
                    }
                }
            };
            for index in completed {
                run.push(index)?;
            }
        }
    }
}

/// A measurement under way.
struct Run {
    ring: IoUring,
    file: File,
    write: bool,
    /// How many the device has.
    blocks: u64,
    places: SplitMix,
    memory: Vec<Block>,
    /// Requests with the kernel.
    flying: u32,
}

impl Run {
    fn new(measure: &Measure) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default();
        let file = OpenOptions::new()
            .read(true)
            .write(measure.write)
            .custom_flags(flags)
            .open(&measure.device)?;
        let blocks = { &file }.seek(SeekFrom::End(0))? / BLOCK as u64;
        if blocks == 0 {
            return Err(io::Error::other("the device has no block"));
        }
        Ok(Self {
            ring: IoUring::new(measure.depth)?,
            file,
            write: measure.write,
            blocks,
            places: SplitMix::new(1),
            memory: (0..measure.depth).map(|_| Block([0x5a; BLOCK])).collect(),
            flying: 0,
        })
    }

    /// Hands the kernel a request of block buffer `index`, which is not with it, with the next [`wait`](Self::wait).
    fn push(&mut self, index: u32) -> io::Result<()> {
        let Some(Block(memory)) = self.memory.get_mut(index as usize) else {
            return Err(io::Error::other("the kernel made a request up"));
        };
        let descriptor = types::Fd(self.file.as_raw_fd());
        let (start, length) = (memory.as_mut_ptr(), BLOCK_LENGTH);
        let offset = self.places.next_u64() % self.blocks * BLOCK as u64;
        let entry = if self.write {
            opcode::Write::new(descriptor, start, length)
                .offset(offset)
                .build()
        } else {
            opcode::Read::new(descriptor, start, length)
                .offset(offset)
                .build()
        };
        let entry = entry.user_data(index.into());
        // SAFETY: the buffer and the file live as long as `self`, whose drop waits for all requests.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        self.flying += 1;
        Ok(())
    }

    /// Waits for at least one request, and gives the buffers of those that are done.
    fn wait(&mut self) -> io::Result<Vec<u32>> {
        self.ring.submit_and_wait(1)?;
        let mut done = Vec::new();
        for completion in self.ring.completion() {
            self.flying -= 1;
            match usize::try_from(completion.result()) {
                Ok(BLOCK) => {}
                Ok(short) => return Err(io::Error::other(format!("{short} bytes of a block"))),
                Err(_) => return Err(io::Error::from_raw_os_error(-completion.result())),
            }
            done.extend(u32::try_from(completion.user_data()));
        }
        Ok(done)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        while self.flying > 0 {
            if self.ring.submit_and_wait(1).is_err() {
                // The kernel may still write the memory: better lost than given to something else.
                std::mem::forget(std::mem::take(&mut self.memory));
                return;
            }
            self.flying -= u32::try_from(self.ring.completion().count()).unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_measured() {
        let measure: Measure = "write:32:5:/dev/disk/by-id/a:b".parse().unwrap();
        let expected = Measure {
            write: true,
            depth: 32,
            slice: Duration::from_secs(5),
            device: "/dev/disk/by-id/a:b".to_owned(),
        };
        assert_eq!(measure, expected);
        for wrong in [
            "",
            "read",
            "read:1:1",
            "erase:1:1:/d",
            "read:0:1:/d",
            "read:1025:1:/d",
            "read:1:0:/d",
            "read:1:x:/d",
        ] {
            let error = wrong.parse::<Measure>().unwrap_err();
            assert!(error.contains("DEPTH"), "{error}");
        }
    }
}
