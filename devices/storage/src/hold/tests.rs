//! Holding on disks in memory whose faults are scripted.

mod model;
mod policies;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{HoldingDisk, Listener, News, Opener, Policy, Retry, Then};
use crate::testing::{Fault, MemoryDisk};
use crate::{Buffer, Completion, Disk, DiskQueue, IoError, Operation, Request};

const EIO: Fault = Fault::Error(IoError::Os(libc::EIO));
const ENOSPC: Fault = Fault::Error(IoError::Os(libc::ENOSPC));

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a listener has heard.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<News>>>);

impl Heard {
    fn listener(&self) -> Listener {
        let heard = Arc::clone(&self.0);
        Box::new(move |news| heard.lock().unwrap().push(news))
    }

    /// By their first letter: `F`ailed, `S`topped, repo`R`ting, recovered (`=`).
    fn letters(&self) -> String {
        let heard = self.0.lock().unwrap();
        let letters = heard.iter().map(|news| match news {
            News::Failed(_) => 'F',
            News::Stopped(_) => 'S',
            News::Reporting(_) => 'R',
            News::Recovered { .. } => '=',
        });
        letters.collect()
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn write(tag: u64, sector: u64, byte: u8) -> Request {
    let buffer = Buffer::from(vec![byte; 512]);
    let offset = sector * 512;
    Request {
        tag,
        operation: Operation::Write { offset, buffer },
    }
}

fn flush(tag: u64) -> Request {
    Request {
        tag,
        operation: Operation::Flush,
    }
}

/// Submits these and looks once.
fn look(queue: &mut dyn DiskQueue, requests: impl IntoIterator<Item = Request>) -> Vec<Completion> {
    for request in requests {
        queue.submit(request);
    }
    queue.kick();
    let mut done = Vec::new();
    queue.reap(&mut done);
    done
}

/// Serves the queue as a worker does until so many were answered: tags and results, by tag.
fn answers(queue: &mut dyn DiskQueue, count: usize) -> Vec<(u64, Result<(), IoError>)> {
    let mut done = Vec::new();
    let end = Instant::now() + PATIENCE;
    while done.len() < count {
        assert!(Instant::now() < end, "no answer: {done:?}");
        crate::fd::wait_readable(queue.completion_event(), end).expect("an answer");
        queue.reap(&mut done);
    }
    sorted(done)
}

fn sorted(done: Vec<Completion>) -> Vec<(u64, Result<(), IoError>)> {
    let mut done: Vec<_> = done.into_iter().map(|c| (c.tag, c.result)).collect();
    done.sort_by_key(|(tag, _)| *tag);
    done
}

fn all_well(tags: impl IntoIterator<Item = u64>) -> Vec<(u64, Result<(), IoError>)> {
    tags.into_iter().map(|tag| (tag, Ok(()))).collect()
}
