//! The client against servers in this process that can do what no real one should, and against real ones.

mod abandoned;
mod hostile;
mod load;
mod loss;
mod peers;
mod server;
mod tls;

use std::time::{Duration, Instant};

use super::{NbdDisk, NbdError, NbdOptions};
use crate::{Buffer, DiskQueue, IoError, Operation, Request};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn options(uri: &str) -> NbdOptions {
    NbdOptions::new(uri.parse().expect("a URI"))
}

/// Opens a disk as soon as its server listens.
fn open(options: &NbdOptions) -> NbdDisk {
    let end = Instant::now() + PATIENCE;
    loop {
        match NbdDisk::open(options.clone()) {
            Ok(disk) => return disk,
            Err(error) => assert!(Instant::now() < end, "{}", chain(&error)),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn chain(error: &NbdError) -> String {
    match &error.source {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Carries one operation out.
fn one(queue: &mut dyn DiskQueue, operation: Operation) -> Result<(), IoError> {
    queue.submit(Request { tag: 7, operation });
    let mut done = Vec::new();
    queue.drain(PATIENCE, &mut done).expect("it is answered");
    assert_eq!(done.iter().map(|c| c.tag).collect::<Vec<_>>(), [7]);
    done[0].result
}

fn write(queue: &mut dyn DiskQueue, offset: u64, bytes: Vec<u8>) -> Result<(), IoError> {
    let buffer = Buffer::from(bytes);
    one(queue, Operation::Write { offset, buffer })
}

fn read(queue: &mut dyn DiskQueue, offset: u64, length: usize) -> Result<Vec<u8>, IoError> {
    let memory = Buffer::zeroed(length);
    let buffer = memory.part(length as u64);
    one(queue, Operation::Read { offset, buffer })?;
    let mut bytes = vec![0; length];
    memory.copy_to(&mut bytes);
    Ok(bytes)
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // Xorshift, by Marsaglia.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
