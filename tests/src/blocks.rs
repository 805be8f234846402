//! Blocks that know what they are, written by a guest and looked at from both sides.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use paddock_probe::blocks::{self, Stamp};
use paddock_probe::protocol::{Area, BlocksVerify, BlocksWrite};

use crate::Vm;

/// How long a guest may take for what it is told to write or read.
const LONG: Duration = Duration::from_secs(300);

/// Requests that a guest has on their way: on each of 4 queues 4.
const JOBS: u32 = 16;

/// Has a guest of 4 CPUs write an area by 4 queues, and flush.
///
/// # Panics
/// When it sees an error, or not all queues were used.
pub fn write(vm: &Vm, area: &Area) {
    let mut write = BlocksWrite::new(area.clone());
    write.issue.jobs = JOBS;
    write.flush = true;
    let written = vm.call_within(write, LONG);
    let all = area.count.is_none_or(|count| count == written.blocks);
    assert!(written.is_clean() && all, "{written:?}");
    assert_eq!(written.cpus, [0, 1, 2, 3], "every queue was used");
}

/// Has a guest write an area again and again, each time with the next generation, and read it back each time, until something is done to what is below;
/// once more then. Returns the area as it was written last.
///
/// # Panics
/// When it sees an error, or not all queues were used.
pub fn write_during(vm: &Vm, area: &Area, disturb: impl FnOnce()) -> Area {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut area = area.clone();
            loop {
                // Before: what is written last has seen it all.
                let last = over.load(Ordering::SeqCst);
                write(vm, &area);
                // Each time: what is written next hides what was lost.
                verify(vm, &area);
                if last {
                    return area;
                }
                area.generation += 1;
            }
        });
        let end = End(&over);
        disturb();
        drop(end);
        let written = writer.join();
        written.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Ends the writing, also where a test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Has a guest read back what was written.
///
/// # Panics
/// When that is not what it reads.
pub fn verify(vm: &Vm, area: &Area) {
    let mut verify = BlocksVerify::new(area.clone());
    verify.issue.jobs = JOBS;
    let verified = vm.call_within(verify, LONG);
    let all = area.count.is_none_or(|count| count == verified.blocks);
    assert!(verified.is_clean() && all, "{verified:?}");
}

/// Looks in the file itself at the blocks that a guest wrote. Returns how many there are.
///
/// # Panics
/// When they are not there.
pub fn verify_file(file: &File, area: &Area) -> u64 {
    let stamp = Stamp {
        seed: area.seed,
        generation: area.generation,
    };
    let size = u64::from(area.block_size);
    let total = area.length / size;
    let mut block = vec![0; usize::try_from(size).expect("a block fits")];
    let count = area.count.unwrap_or(total);
    let mut checked = 0;
    for index in blocks::visits(area.order, total, area.seed) {
        if checked == count {
            break;
        }
        let offset = area.offset + index * size;
        if let Err(error) = file.read_exact_at(&mut block, offset) {
            panic!("reading the file at {offset}: {error}");
        }
        if let Err(mismatch) = blocks::check(&block, offset, stamp) {
            panic!("in the file: {mismatch:?}");
        }
        checked += 1;
    }
    checked
}
