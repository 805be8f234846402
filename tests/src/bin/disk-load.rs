//! What `tests/bench storage` puts on a disk: one kind of request, so many at once, for so long, by a queue as a guest's would be used. Prints what
//! came of it as JSON.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use paddock_storage::longhorn::{
    EngineSocket, Nobody, ReplicaAddress, Volume, VolumeError, VolumeOptions,
};
use paddock_storage::{
    Buffer, Completion, Direct, Disk, DiskQueue, Engine, Operation, RawDisk, RawOptions, Request,
};
use paddock_tests::bench::LoadOutcome;
use paddock_tests::threads::process_cpu_time;

const USAGE: &str = "\
usage: disk-load DISK [--write] [--sequential] [--block BYTES] [--depth N] [--seconds N | --once] [--snapshot]
       disk-load --volume … --rebuild HOST:PORT

DISK is one of
  --volume NAME=HOST:PORT,HOST:PORT,…   replicas, by Paddock's engine
  --socket PATH=BYTES                   a volume of that size, by the engine that serves the socket
  --file PATH                           a raw file

--once       as many requests as the disk has blocks
--snapshot   takes a snapshot of the volume halfway
--rebuild    adds a replica, and prints how many seconds that took";

/// Which disk.
enum Subject {
    Volume(String, String),
    Socket(PathBuf, u64),
    File(PathBuf),
}

struct Options {
    subject: Subject,
    write: bool,
    sequential: bool,
    block: u64,
    depth: u16,
    time: Duration,
    once: bool,
    snapshot: bool,
    rebuild: Option<ReplicaAddress>,
}

fn parse() -> Option<Options> {
    let mut arguments = std::env::args().skip(1);
    let mut subject = None;
    let mut options = Options {
        subject: Subject::File(PathBuf::new()),
        write: false,
        sequential: false,
        block: 4096,
        depth: 1,
        time: Duration::from_secs(3),
        once: false,
        snapshot: false,
        rebuild: None,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--write" => options.write = true,
            "--sequential" => options.sequential = true,
            "--once" => options.once = true,
            "--snapshot" => options.snapshot = true,
            "--rebuild" => options.rebuild = Some(arguments.next()?.parse().ok()?),
            "--block" => options.block = arguments.next()?.parse().ok()?,
            "--depth" => options.depth = arguments.next()?.parse().ok()?,
            "--seconds" => options.time = Duration::from_secs_f64(arguments.next()?.parse().ok()?),
            "--volume" => {
                let value = arguments.next()?;
                let (name, replicas) = value.split_once('=')?;
                subject = Some(Subject::Volume(name.to_owned(), replicas.to_owned()));
            }
            "--socket" => {
                let value = arguments.next()?;
                let (path, size) = value.rsplit_once('=')?;
                subject = Some(Subject::Socket(path.into(), size.parse().ok()?));
            }
            "--file" => subject = Some(Subject::File(arguments.next()?.into())),
            _ => return None,
        }
    }
    options.subject = subject?;
    Some(options)
}

type Failure = Box<dyn std::error::Error>;

/// A disk, and what closes it.
type Opened = (Arc<dyn Disk>, Option<Arc<Volume>>);

fn open(subject: &Subject) -> Result<Opened, Failure> {
    Ok(match subject {
        Subject::Volume(name, replicas) => {
            let replicas = replicas
                .split(',')
                .map(str::parse)
                .collect::<Result<_, _>>()?;
            let options = VolumeOptions::new(name, replicas);
            let volume = Arc::new(Volume::open(options, Arc::new(Nobody))?);
            (Arc::<Volume>::clone(&volume), Some(volume))
        }
        Subject::Socket(path, size) => (Arc::new(EngineSocket::open(path, *size, false)?), None),
        Subject::File(path) => {
            let disk = RawDisk::open(&RawOptions {
                direct: Direct::On,
                engine: Engine::IoUring,
                ..RawOptions::new(path)
            })?;
            (Arc::new(disk), None)
        }
    })
}

/// Numbers that look like chance, the same each time.
struct Places {
    state: u64,
    blocks: u64,
    next: u64,
    sequential: bool,
}

impl Places {
    fn next(&mut self) -> u64 {
        if self.sequential {
            self.next = (self.next + 1) % self.blocks;
            return self.next;
        }
        // xorshift64*, Vigna 2016.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) % self.blocks
    }
}

/// Puts the load on a queue, which waits as a virtqueue's worker lets it. Returns the requests' durations.
fn load(queue: &mut dyn DiskQueue, size: u64, options: &Options) -> Result<Vec<Duration>, Failure> {
    let mut places = Places {
        state: 0x9e37_79b9_7f4a_7c15,
        blocks: size / options.block,
        next: 0,
        sequential: options.sequential,
    };
    let length = usize::try_from(options.block)?;
    let buffers: Vec<Buffer> = (0..options.depth).map(|i| filled(length, i)).collect();
    let mut since = vec![Instant::now(); usize::from(options.depth)];
    let (mut times, mut done) = (Vec::new(), Vec::<Completion>::new());
    let mut left = if options.once {
        places.blocks
    } else {
        u64::MAX
    };
    let mut free: Vec<usize> = (0..usize::from(options.depth)).collect();
    let begin = Instant::now();
    // Nothing else is to be waited for.
    let nothing = std::os::unix::net::UnixStream::pair()?;
    let waits = queue.watch(std::os::fd::AsFd::as_fd(&nothing.0))?;
    loop {
        let more = left > 0 && (options.once || begin.elapsed() < options.time);
        if more {
            let now = free.len().min(usize::try_from(left)?);
            left -= now as u64;
            for slot in free.drain(..now) {
                let buffer = buffers[slot].part(options.block);
                let offset = places.next() * options.block;
                let operation = match options.write {
                    true => Operation::Write { offset, buffer },
                    false => Operation::Read { offset, buffer },
                };
                since[slot] = Instant::now();
                let tag = slot as u64;
                queue.submit(Request { tag, operation });
            }
            queue.kick();
        } else if queue.in_flight() == 0 {
            return Ok(times);
        }
        if waits {
            queue.wait(None);
        } else {
            wait(queue.completion_event())?;
        }
        queue.reap(&mut done);
        for completion in done.drain(..) {
            completion.result?;
            let slot = usize::try_from(completion.tag)?;
            times.push(since[slot].elapsed());
            free.push(slot);
        }
    }
}

fn filled(length: usize, seed: u16) -> Buffer {
    let bytes = (0..length).map(|i| seed.to_le_bytes()[i % 2] ^ i.to_le_bytes()[0]);
    // O_DIRECT wants whole pages.
    let buffer = paddock_storage::testing::scattered(&[length], 0);
    buffer.copy_from(&bytes.collect::<Vec<u8>>());
    buffer
}

fn wait(fd: std::os::fd::BorrowedFd<'_>) -> Result<(), Failure> {
    use rustix::event::{PollFd, PollFlags, poll};
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None)?;
    Ok(())
}

/// Takes a snapshot of the volume halfway. Returns for how many milliseconds it froze the I/O.
fn snapshot(volume: &Volume, options: &Options) -> Result<f64, VolumeError> {
    std::thread::sleep(options.time / 2);
    let taken = volume.snapshot(None, HashMap::new())?;
    Ok(taken.frozen.as_secs_f64() * 1e3)
}

fn run(options: &Options) -> Result<LoadOutcome, Failure> {
    let (disk, volume) = open(&options.subject)?;
    let snapshotted = volume.as_deref().filter(|_| options.snapshot);
    let mut queue = disk.open_queue(options.depth)?;
    let (begin, spent) = (Instant::now(), process_cpu_time(std::process::id())?);
    let (times, frozen_ms) = std::thread::scope(|scope| {
        let frozen = snapshotted.map(|volume| scope.spawn(|| snapshot(volume, options)));
        let times = load(queue.as_mut(), disk.size(), options)?;
        let frozen = frozen.map(|thread| thread.join().map_err(|_| "the snapshot panicked"));
        let frozen = frozen.transpose()?.transpose()?;
        Ok::<_, Failure>((times, frozen))
    })?;
    let (took, spent) = (
        begin.elapsed(),
        process_cpu_time(std::process::id())? - spent,
    );
    drop(queue);
    if let Some(volume) = volume {
        volume.close()?;
    }
    let count = u32::try_from(times.len())?;
    let mean = times.iter().sum::<Duration>() / count.max(1);
    Ok(LoadOutcome {
        requests_per_second: f64::from(count) / took.as_secs_f64(),
        mean_us: mean.as_secs_f64() * 1e6,
        bytes: u64::from(count) * options.block,
        cpu_seconds: spent.as_secs_f64(),
        frozen_ms,
    })
}

/// Adds a replica to the volume; returns how many seconds that took.
fn rebuild(options: &Options, replica: &ReplicaAddress) -> Result<f64, Failure> {
    let (_, Some(volume)) = open(&options.subject)? else {
        return Err("only a volume can be given a replica".into());
    };
    let begin = Instant::now();
    volume.add_replica(replica.clone())?;
    let took = begin.elapsed().as_secs_f64();
    volume.close()?;
    Ok(took)
}

fn main() -> ExitCode {
    let Some(options) = parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let result = match &options.rebuild {
        Some(replica) => rebuild(&options, replica).map(|seconds| seconds.to_string()),
        None => run(&options).and_then(|outcome| Ok(serde_json::to_string(&outcome)?)),
    };
    match result {
        Ok(result) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("disk-load: {error}");
            ExitCode::FAILURE
        }
    }
}
