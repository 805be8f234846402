//! CPUs: which of them really run code, and keeping them busy.

use super::{Result, pin};
use crate::sysfs;
use paddock_probe::protocol::{CpuSpin, CpuSpinReply, CpusReply};
use paddock_probe::stream::mix;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const MAX_THREADS: u32 = 256;
const MAX_SPIN: Duration = Duration::from_secs(600);

/// How long a CPU may take to run a thread that was moved to it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers `cpus`. A CPU that is online and yet runs nothing shows by its absence: its thread is left behind.
pub fn cpus() -> Result<CpusReply> {
    let online = sysfs::online_cpus();
    let (sender, receiver) = mpsc::channel();
    for &cpu in &online {
        let sender = sender.clone();
        let body = move || {
            if pin(cpu).is_ok() && usize::try_from(cpu).ok() == Some(rustix::thread::sched_getcpu())
            {
                let _ = sender.send(cpu);
            }
        };
        let thread = thread::Builder::new()
            .name(format!("cpu {cpu}"))
            .spawn(body);
        thread.map_err(|error| format!("cannot start a thread: {error}"))?;
    }
    drop(sender);
    let deadline = Instant::now() + PATIENCE;
    let mut ran = Vec::new();
    while let Ok(cpu) = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        ran.push(cpu);
    }
    ran.sort_unstable();
    Ok(CpusReply {
        online,
        ran,
        present: sysfs::list("/sys/devices/system/cpu/present"),
    })
}

/// Answers `cpu.spin`.
pub fn spin(request: CpuSpin) -> Result<CpuSpinReply> {
    let cpus = sysfs::online_cpus();
    let duration = Duration::from_millis(request.duration_ms);
    if duration > MAX_SPIN {
        return Err(format!(
            "`duration_ms` {} is above {}",
            request.duration_ms,
            MAX_SPIN.as_millis()
        ));
    }
    let threads = request.threads.map_or(cpus.len(), |threads| {
        usize::try_from(threads.min(MAX_THREADS)).unwrap_or(1)
    });
    let end = Instant::now() + duration;
    let handles: Vec<_> = cpus
        .into_iter()
        .cycle()
        .take(threads)
        .map(|cpu| {
            thread::Builder::new()
                .name("spin".to_owned())
                .spawn(move || pin(cpu).map(|()| spin_until(end)))
        })
        .collect();
    let mut rounds = Vec::new();
    for handle in handles {
        let handle = handle.map_err(|error| format!("cannot start a thread: {error}"))?;
        rounds.push(
            handle
                .join()
                .map_err(|_| "a thread panicked".to_owned())??,
        );
    }
    Ok(CpuSpinReply { rounds })
}

/// One round is a thousand steps of arithmetic that depend on each other.
fn spin_until(end: Instant) -> u64 {
    let (mut rounds, mut value) = (0, 1);
    while Instant::now() < end {
        for _ in 0..1000 {
            value = mix(value);
        }
        rounds += 1;
    }
    std::hint::black_box(value);
    rounds
}
