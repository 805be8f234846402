//! What the tests of crashes kill: an engine with a volume, which writes blocks, many at once and each of them once at a time. It says on stdout what it is about
//! to write and what was acknowledged, a line each, before it goes on; and so what else it does, which replicas have failed, and when they are the same.
//!
//! usage: `volume-writer NAME BLOCKS SEED GENERATION QUEUES [record=FILE] [snapshots] [rebuild=HOST:PORT] HOST:PORT…`

use std::collections::{BTreeSet, HashMap};
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use paddock_probe::blocks::{self, Stamp};
use paddock_storage::longhorn::{
    Listener, Mode, ReplicaAddress, ReplicaStatus, Volume, VolumeOptions,
};
use paddock_storage::{Buffer, Disk, DiskQueue, Operation, Request};
use rustix::event::{PollFd, PollFlags, poll};

/// Bytes of a block: one and a half sectors, so that neighbours share one.
const BLOCK: usize = 6144;

/// Requests at once in each queue.
const DEPTH: usize = 16;

/// Between two snapshots.
const PAUSE: Duration = Duration::from_millis(20);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What is done beside writing, once the replicas are the same.
enum Task {
    Snapshots,
    Rebuild(ReplicaAddress),
}

/// What is written next, by whichever queue.
struct Plan {
    blocks: u64,
    seed: u64,
    generation: u64,
    state: u64,
    busy: BTreeSet<u64>,
}

impl Plan {
    /// Begins a block that nobody writes now.
    fn begin(&mut self) -> Request {
        let number = loop {
            // A linear congruence, Knuth's.
            self.state = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let number = (self.state >> 33) % self.blocks;
            if self.busy.insert(number) {
                break number;
            }
        };
        self.generation += 1;
        let stamp = Stamp {
            seed: self.seed,
            generation: self.generation,
        };
        println!("write {number} {}", stamp.generation);
        let mut bytes = vec![0; BLOCK];
        let offset = number * BLOCK as u64;
        blocks::fill(&mut bytes, offset, stamp);
        let buffer = Buffer::from(bytes);
        let operation = Operation::Write { offset, buffer };
        Request {
            tag: number,
            operation,
        }
    }

    fn end(&mut self, number: u64) {
        println!("done {number}");
        self.busy.remove(&number);
    }
}

/// Writes until that fails.
fn write(queue: &mut dyn DiskQueue, plan: &Mutex<Plan>) -> Failure {
    let mut done = Vec::new();
    loop {
        {
            let mut plan = plan.lock().unwrap_or_else(PoisonError::into_inner);
            while queue.in_flight() < DEPTH {
                queue.submit(plan.begin());
            }
        }
        queue.kick();
        let event = queue.completion_event();
        if let Err(error) = poll(&mut [PollFd::from_borrowed_fd(event, PollFlags::IN)], None) {
            return error.into();
        }
        queue.reap(&mut done);
        let mut plan = plan.lock().unwrap_or_else(PoisonError::into_inner);
        for completion in done.drain(..) {
            if let Err(error) = completion.result {
                return error.into();
            }
            plan.end(completion.tag);
        }
    }
}

/// Says what happens to the volume.
struct Teller;

impl Listener for Teller {
    fn replicas(&self, replicas: &[ReplicaStatus]) {
        for replica in replicas.iter().filter(|one| one.mode == Mode::Failed) {
            println!("failed {}", replica.address);
        }
    }

    fn compared(&self) {
        println!("compared");
    }
}

fn do_task(volume: &Volume, task: Task) -> Result<(), Failure> {
    while !volume.is_compared() {
        thread::sleep(Duration::from_millis(1));
    }
    match task {
        Task::Rebuild(replica) => {
            println!("begun");
            volume.remove_replica(&replica)?;
            volume.add_replica(replica)?;
            println!("ended");
            Ok(())
        }
        Task::Snapshots => loop {
            println!("begun");
            let taken = volume.snapshot(None, HashMap::new())?;
            println!("ended {}", taken.name);
            thread::sleep(PAUSE);
        },
    }
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    let [name, blocks, seed, generation, queues, rest @ ..] = arguments else {
        return Err("NAME, BLOCKS, SEED, GENERATION, QUEUES and replicas are wanted".into());
    };
    let mut options = VolumeOptions::new(name, Vec::new());
    let mut task = None;
    for argument in rest {
        match argument.split_once('=') {
            Some(("record", path)) => options.record = Some(path.into()),
            Some(("rebuild", replica)) => task = Some(Task::Rebuild(replica.parse()?)),
            _ if argument == "snapshots" => task = Some(Task::Snapshots),
            _ => options.replicas.push(argument.parse()?),
        }
    }
    let generation = generation.parse()?;
    let plan = Arc::new(Mutex::new(Plan {
        blocks: blocks.parse()?,
        seed: seed.parse()?,
        generation,
        state: generation | 1,
        busy: BTreeSet::new(),
    }));
    let volume = Arc::new(Volume::open(options, Arc::new(Teller))?);
    let (failed, failures): (Sender<Failure>, _) = channel();
    for _ in 0..queues.parse()? {
        let mut queue = volume.open_queue(64)?;
        let (plan, failed) = (Arc::clone(&plan), failed.clone());
        thread::spawn(move || failed.send(write(&mut *queue, &plan)));
    }
    if let Some(task) = task {
        let volume = Arc::clone(&volume);
        thread::spawn(move || {
            if let Err(error) = do_task(&volume, task) {
                let _ = failed.send(error);
            }
        });
    }
    Err(failures.recv()?)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Err(error) = run(&arguments) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("volume-writer: {error}");
    ExitCode::FAILURE
}
