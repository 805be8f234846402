//! When things happened on the way from the process to a guest that is up.
//!
//! Times are microseconds since [`process_started`], in atomics: marked on whatever thread they happen, read on the control plane's. The
//! guest chooses when it prints and when it opens a port, and nothing else; what it does again costs a look at an atomic.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use paddock_api::timeline::Timeline;

/// The process's own times.
static PROCESS: OnceLock<Process> = OnceLock::new();
static API_READY: Mark = Mark::new();

#[derive(Debug)]
struct Process {
    started: Instant,
    /// Since 1970.
    date: Duration,
}

/// The process begins: first thing in it. What calls this later, or never, counts from the first look at a clock here.
pub fn process_started() {
    process();
}

/// The API's clients can connect from now on.
pub fn api_ready() {
    API_READY.set();
}

/// When the process started, since 1970.
#[must_use]
pub fn start_date() -> Duration {
    process().date
}

fn process() -> &'static Process {
    PROCESS.get_or_init(|| Process {
        started: Instant::now(),
        date: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
    })
}

/// A moment, once it has come.
#[derive(Debug, Default)]
pub struct Mark(
    /// Microseconds since the process started; 0 before.
    AtomicU64,
);

impl Mark {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// It is now, unless it was before.
    pub fn set(&self) {
        if self.0.load(Ordering::Relaxed) == 0 {
            // Of two at once either is right.
            let _ = self
                .0
                .compare_exchange(0, now(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// It is now, also if it was before.
    fn set_again(&self) {
        self.0.store(now(), Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|time| *time != 0)
    }
}

/// Microseconds since the process started; never 0.
fn now() -> u64 {
    let time = process().started.elapsed().as_micros();
    u64::try_from(time).unwrap_or(u64::MAX).max(1)
}

/// The times of a VM, which begin with its creation.
#[derive(Debug)]
pub struct VmTimes {
    created: Mark,
    reset: Mark,
    /// The machine is built.
    pub machine_built: Mark,
    /// The first vCPU is about to enter the guest.
    pub first_instruction: Mark,
    /// The guest has printed something.
    pub first_console_byte: Mark,
    /// A program of the guest's has opened a port.
    pub init_up: Mark,
}

impl Default for VmTimes {
    /// Created now.
    fn default() -> Self {
        let this = Self {
            created: Mark::new(),
            reset: Mark::new(),
            machine_built: Mark::new(),
            first_instruction: Mark::new(),
            first_console_byte: Mark::new(),
            init_up: Mark::new(),
        };
        this.created.set();
        this
    }
}

impl VmTimes {
    /// A reset begins now.
    pub fn reset(&self) {
        self.reset.set_again();
        self.forget_guest();
    }

    /// What the guest did was in another life.
    pub fn forget_guest(&self) {
        for mark in [
            &self.machine_built,
            &self.first_instruction,
            &self.first_console_byte,
            &self.init_up,
        ] {
            mark.clear();
        }
    }

    /// As the API tells it.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        Timeline {
            process_started_ms: u64::try_from(start_date().as_millis()).unwrap_or(u64::MAX),
            api_ready_us: API_READY.get(),
            vm_created_us: self.created.get(),
            last_reset_us: self.reset.get(),
            machine_built_us: self.machine_built.get(),
            first_instruction_us: self.first_instruction.get(),
            first_console_byte_us: self.first_console_byte.get(),
            init_up_us: self.init_up.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_keep_the_first_time_and_a_reset_starts_the_guest_over() {
        process_started();
        let times = VmTimes::default();
        let before = times.timeline();
        assert!(before.vm_created_us.is_some() && before.machine_built_us.is_none());
        times.machine_built.set();
        times.init_up.set();
        let up = times.timeline();
        std::thread::sleep(Duration::from_millis(2));
        times.init_up.set();
        assert_eq!(times.timeline().init_up_us, up.init_up_us);
        assert!(up.init_up_us >= up.machine_built_us);
        assert_eq!(up.last_reset_us, None);

        times.reset();
        let reset = times.timeline();
        assert!(reset.last_reset_us > up.init_up_us);
        assert_eq!((reset.machine_built_us, reset.init_up_us), (None, None));
        assert_eq!(reset.vm_created_us, up.vm_created_us);
        times.init_up.set();
        assert!(times.timeline().init_up_us >= reset.last_reset_us);
        std::thread::sleep(Duration::from_millis(2));
        times.reset();
        assert!(times.timeline().last_reset_us > reset.last_reset_us);
    }

    #[test]
    fn the_process_has_one_start() {
        let date = start_date();
        assert!(date > Duration::from_secs(1_600_000_000));
        process_started();
        assert_eq!(start_date(), date);
    }
}
