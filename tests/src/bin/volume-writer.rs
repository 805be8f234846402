//! What the tests of crashes kill: an engine with a volume, which writes blocks, many at once and each of them once at a time. It says on stdout what it is about
//! to write and what was acknowledged, a line each, before it goes on.
//!
//! usage: volume-writer NAME BLOCKS SEED GENERATION HOST:PORT…

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use paddock_probe::blocks::{self, Stamp};
use paddock_storage::longhorn::{Nobody, Volume, VolumeOptions};
use paddock_storage::{Buffer, Disk, Operation, Request};
use rustix::event::{PollFd, PollFlags, poll};

/// Bytes of a block: one and a half sectors, so that neighbours share one.
const BLOCK: u64 = 6144;

/// Requests at once.
const DEPTH: usize = 16;

type Failure = Box<dyn std::error::Error>;

fn run(arguments: &[String]) -> Result<(), Failure> {
    let [name, count, seed, generation, replicas @ ..] = arguments else {
        return Err("NAME, BLOCKS, SEED, GENERATION and replicas are wanted".into());
    };
    let (count, seed): (u64, u64) = (count.parse()?, seed.parse()?);
    let mut generation: u64 = generation.parse()?;
    let replicas = replicas.iter().map(|replica| replica.parse());
    let options = VolumeOptions::new(name, replicas.collect::<Result<_, _>>()?);
    let volume = Volume::open(options, Arc::new(Nobody))?;
    let mut queue = volume.open_queue(64)?;
    let mut out = std::io::stdout().lock();
    let (mut busy, mut done) = (BTreeSet::new(), Vec::new());
    let mut state = generation | 1;
    loop {
        while busy.len() < DEPTH {
            // A linear congruence, Knuth's.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let number = (state >> 33) % count;
            if !busy.insert(number) {
                continue;
            }
            generation += 1;
            writeln!(out, "write {number} {generation}")?;
            let mut bytes = vec![0; usize::try_from(BLOCK)?];
            let offset = number * BLOCK;
            blocks::fill(&mut bytes, offset, Stamp { seed, generation });
            let buffer = Buffer::from(bytes);
            let tag = number;
            let operation = Operation::Write { offset, buffer };
            queue.submit(Request { tag, operation });
        }
        out.flush()?;
        queue.kick();
        poll(
            &mut [PollFd::from_borrowed_fd(
                queue.completion_event(),
                PollFlags::IN,
            )],
            None,
        )?;
        queue.reap(&mut done);
        for completion in done.drain(..) {
            completion.result?;
            busy.remove(&completion.tag);
            writeln!(out, "done {}", completion.tag)?;
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("volume-writer: {error}");
            ExitCode::FAILURE
        }
    }
}
