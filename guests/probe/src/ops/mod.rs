//! The operations, a module for each topic. Each runs on its request's thread unless its header says otherwise.

pub mod blocks;
pub mod button;
pub mod cpu;
pub mod exec;
pub mod heartbeat;
pub mod memory;
pub mod net;
pub mod ping;
pub mod power;
pub mod system;
pub mod time;

use rustix::thread::CpuSet;

/// An operation's result; the error is a sentence for the reply's `error`.
pub type Result<T> = std::result::Result<T, String>;

/// Moves the calling thread to a CPU, where it stays.
pub fn pin(cpu: u32) -> Result<()> {
    let index = usize::try_from(cpu)
        .ok()
        .filter(|&index| index < CpuSet::MAX_CPU);
    let index = index.ok_or_else(|| format!("CPU {cpu} is beyond what the probe can pin to"))?;
    let mut set = CpuSet::new();
    set.set(index);
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|error| format!("cannot run on CPU {cpu}: {error}"))
}
