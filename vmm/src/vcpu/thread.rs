//! What a vCPU's thread does: it enters the guest as ordered, and waits where that is not to run.
//!
//! An access to a device is over only when KVM is entered once more: a read's value is put where the instruction wants it then, and an
//! access in several parts goes on with the next. So a thread that is to pause first ends the access that it is in the middle of: who
//! waits for the pause finds devices, memory and registers in a state that belongs together, and nothing changes any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use parking_lot::MutexGuard;

use super::exits::{Exit, Exits, FatalExit};
use super::report::CrashReport;
use super::{OnCrash, Order, Shared};
use crate::cpu::registers::WaitingForInit;
use crate::kvm::KvmError;
use crate::metrics::Meters;

/// An instruction's access comes in so many parts at most: KVM goes through 1024 rounds of a repeated one (`rep movs`) before it can be
/// interrupted, each of them a read and a write that may be split in two.
const ACCESS_PARTS: usize = 4096;
/// How often KVM may send a thread back at once before it is left alone for a moment, and for how long. Starting a CPU takes a few.
const TURNS_AWAY: u32 = 16;
const MOMENT: Duration = Duration::from_millis(20);

/// What a thread drives: KVM's vCPU, or that of a test.
pub trait Cpu: Send + 'static {
    /// Enters the guest once, and serves what it is left for.
    fn enter(&mut self) -> Exit;

    /// Whether to leave the guest before its next instruction, once what is pending of the last one has been done.
    fn set_immediate_exit(&mut self, on: bool);

    /// Puts it back to where it waits for INIT.
    ///
    /// # Errors
    /// When KVM refuses.
    fn restore(&self) -> Result<(), KvmError>;

    /// Tells a guest with kvm-clock that it was paused, so that its watchdogs forgive the time that is missing.
    ///
    /// # Errors
    /// Where the guest has no kvm-clock, or not yet: then there is nobody to tell.
    fn excuse_pause(&self) -> Result<(), kvm_ioctls::Error>;

    /// What the vCPU of this number can still tell of its end.
    fn report(&self, number: usize, reason: FatalExit) -> CrashReport;
}

/// A vCPU of KVM's.
pub struct KvmCpu {
    pub(super) fd: VcpuFd,
    pub(super) exits: Exits,
    /// What it was like when it was created.
    pub(super) first: WaitingForInit,
}

impl Cpu for KvmCpu {
    fn enter(&mut self) -> Exit {
        self.exits.run_once(&mut self.fd)
    }

    fn set_immediate_exit(&mut self, on: bool) {
        self.fd.set_kvm_immediate_exit(on.into());
    }

    fn restore(&self) -> Result<(), KvmError> {
        self.first.restore(&self.fd)
    }

    fn excuse_pause(&self) -> Result<(), kvm_ioctls::Error> {
        self.fd.kvmclock_ctrl()
    }

    fn report(&self, number: usize, reason: FatalExit) -> CrashReport {
        CrashReport::collect(number, reason, &self.fd, &self.exits)
    }
}

/// Dropped when a vCPU's descriptor is about to be closed: from here on nobody may write the byte, for its page goes with the
/// descriptor. The owner writes it under the same lock.
pub struct Closing {
    pub(super) shared: Arc<Shared>,
    pub(super) immediate_exit: Arc<AtomicPtr<u8>>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let _guard = self.shared.state.lock();
        self.immediate_exit
            .store(std::ptr::null_mut(), Ordering::Release);
    }
}

/// What a thread is to do next.
enum Next {
    Enter,
    /// It cannot go on.
    Crash(FatalExit),
    End,
}

/// One vCPU on its thread.
pub struct Vcpu<C> {
    index: usize,
    cpu: C,
    meters: Arc<Meters>,
    /// See [`Thread`](super::Thread).
    called: Arc<AtomicBool>,
    /// An access was served, and KVM has not been entered since.
    in_access: bool,
}

impl<C: Cpu> Vcpu<C> {
    /// The vCPU of this number.
    pub fn new(index: usize, cpu: C, meters: Arc<Meters>, called: Arc<AtomicBool>) -> Self {
        Self {
            index,
            cpu,
            meters,
            called,
            in_access: false,
        }
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// What it would have driven.
    pub fn into_cpu(self) -> C {
        self.cpu
    }

    /// Runs the guest as ordered, until the end.
    pub fn serve(&mut self, shared: &Shared, on_crash: &OnCrash) {
        // The others wait for the first to wake them.
        if self.index == 0 && matches!(self.wait_for_order(shared), Next::Enter) {
            self.meters.times.first_instruction.set();
        }
        let mut turned_away = 0;
        loop {
            let exit = match self.wait_for_order(shared) {
                Next::Enter => self.enter(),
                Next::Crash(reason) => Exit::Fatal(reason),
                Next::End => return,
            };
            match exit {
                Exit::Handled | Exit::Kicked => turned_away = 0,
                Exit::TurnedAway if turned_away < TURNS_AWAY => turned_away += 1,
                Exit::TurnedAway => self.wait_a_moment(shared),
                Exit::Fatal(reason) => {
                    on_crash(self.cpu.report(self.index, reason));
                    // The state driver decides what becomes of the VM; this vCPU never runs again.
                    wait_for_end(shared);
                    return;
                }
            }
        }
    }

    fn enter(&mut self) -> Exit {
        let exit = self.cpu.enter();
        self.in_access = matches!(exit, Exit::Handled);
        exit
    }

    /// Returns at once while the order is to run and the vCPU is in the machine.
    fn wait_for_order(&mut self, shared: &Shared) -> Next {
        if shared.running.load(Ordering::Acquire) && !self.called.load(Ordering::Acquire) {
            return Next::Enter;
        }
        let mut state = shared.state.lock();
        let mut waited = false;
        let next = loop {
            let seat = state.seats.get(self.index).copied().unwrap_or_default();
            match state.order {
                Order::End => break Next::End,
                _ if seat.set_back => {
                    // Not waiting yet: what it is in the middle of may reach a device.
                    MutexGuard::unlocked(&mut state, || self.set_back());
                    if let Some(seat) = state.seats.get_mut(self.index) {
                        seat.set_back = false;
                    }
                    shared.arrived.notify_all();
                }
                Order::Run if !seat.empty => break Next::Enter,
                Order::Run | Order::Pause if self.in_access => {
                    // Likewise.
                    let ended = MutexGuard::unlocked(&mut state, || self.end_access());
                    if let Err(reason) = ended {
                        break Next::Crash(reason);
                    }
                }
                Order::Run | Order::Pause => {
                    waited = true;
                    state.waiting += 1;
                    shared.arrived.notify_all();
                    shared.changed.wait(&mut state);
                    state.waiting -= 1;
                }
            }
        };
        // Under the lock, under which others set them.
        self.called.store(false, Ordering::Release);
        self.cpu.set_immediate_exit(false);
        drop(state);
        if waited && matches!(next, Next::Enter) {
            self.excuse_pause();
        }
        next
    }

    /// KVM has nothing to run here and does not wait either, as for a CPU that nobody has started and that was sent an NMI.
    fn wait_a_moment(&self, shared: &Shared) {
        let mut state = shared.state.lock();
        if state.order == Order::Run && !self.called.load(Ordering::Acquire) {
            shared.changed.wait_for(&mut state, MOMENT);
        }
    }

    /// Has KVM do what is pending of an access that was served, and serves its other parts, without going on to the next instruction.
    fn end_access(&mut self) -> Result<(), FatalExit> {
        for _ in 0..ACCESS_PARTS {
            if !self.in_access {
                break;
            }
            self.cpu.set_immediate_exit(true);
            if let Exit::Fatal(reason) = self.enter() {
                return Err(reason);
            }
        }
        self.in_access = false;
        Ok(())
    }

    /// Ends what the vCPU is in the middle of, and sets it back to where it waits for INIT.
    fn set_back(&mut self) {
        // It would be completed in the CPU's next life otherwise. How it ends does not matter any more.
        let _ = self.end_access();
        match self.cpu.restore() {
            Ok(()) => tracing::debug!(vcpu = self.index, "parked"),
            // Left as it is: the guest's INIT does most of it as well.
            Err(error) => tracing::warn!(vcpu = self.index, %error, "setting a vCPU back"),
        }
    }

    fn excuse_pause(&self) {
        if let Err(error) = self.cpu.excuse_pause() {
            tracing::trace!(vcpu = self.index, %error, "guest not told of its pause");
        }
    }
}

fn wait_for_end(shared: &Shared) {
    let mut state = shared.state.lock();
    state.waiting += 1;
    shared.arrived.notify_all();
    while state.order != Order::End {
        shared.changed.wait(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
    use std::time::Instant;

    use paddock_api::spec::VmSpec;
    use paddock_devices::bus::Bus;
    use parking_lot::Mutex;

    use super::super::exits::FatalExit;
    use super::super::{Buses, Vcpus};
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// As many as the rounds of a repeated instruction that KVM goes through before it can be interrupted.
    const PARTS: u32 = 1024;

    /// What is seen of a [`Scripted`] from outside.
    #[derive(Default)]
    struct Seen {
        /// KVM's byte of that name.
        immediate_exit: AtomicU8,
        /// Parts of accesses that reached a device.
        parts: AtomicU64,
        /// Parts that are left of the access it is in the middle of, and one that KVM has yet to complete.
        left: AtomicU32,
        restored: AtomicBool,
    }

    impl Seen {
        fn parts(&self) -> u64 {
            self.parts.load(Ordering::SeqCst)
        }
    }

    /// A vCPU as KVM makes them, of a guest that does nothing but access devices, in [`PARTS`] each.
    struct Scripted {
        seen: Arc<Seen>,
        /// How it ends, if an access is ended without going on to the next instruction.
        fails: Option<FatalExit>,
    }

    impl Cpu for Scripted {
        fn enter(&mut self) -> Exit {
            let seen = &self.seen;
            let left = seen.left.load(Ordering::SeqCst);
            if left <= 1 {
                seen.left.store(0, Ordering::SeqCst);
                if seen.immediate_exit.load(Ordering::SeqCst) != 0 {
                    return self.fails.clone().map_or(Exit::Kicked, Exit::Fatal);
                }
            }
            let left = if left <= 1 { PARTS } else { left - 1 };
            seen.left.store(left, Ordering::SeqCst);
            seen.parts.fetch_add(1, Ordering::SeqCst);
            Exit::Handled
        }

        fn set_immediate_exit(&mut self, on: bool) {
            let byte = &self.seen.immediate_exit;
            byte.store(on.into(), Ordering::SeqCst);
        }

        fn restore(&self) -> Result<(), KvmError> {
            self.seen.restored.store(true, Ordering::SeqCst);
            Ok(())
        }

        fn excuse_pause(&self) -> Result<(), kvm_ioctls::Error> {
            Ok(())
        }

        fn report(&self, vcpu: usize, exit: FatalExit) -> CrashReport {
            CrashReport {
                vcpu,
                exit,
                last_access: None,
                regs: None,
                sregs: None,
            }
        }
    }

    type Reports = Arc<Mutex<Vec<CrashReport>>>;

    /// So many vCPUs, and what ends of them are told.
    fn vcpus(count: usize, fails: Option<&FatalExit>) -> (Vcpus, Vec<Arc<Seen>>, Reports) {
        let spec = VmSpec::from_json(r#"{"boot": {"kernel": "/k"}}"#).unwrap();
        let bus = || Arc::new(Bus::new());
        let (ports, mmio) = (bus(), bus());
        let reports = Reports::default();
        let told = Arc::clone(&reports);
        let on_crash: OnCrash = Arc::new(move |report| told.lock().push(report));
        let meters = Arc::new(Meters::new(&spec));
        let mut vcpus =
            Vcpus::spawn(Vec::new(), &Buses { ports, mmio }, &meters, &on_crash).unwrap();
        let mut all = Vec::new();
        for _ in 0..count {
            let seen = Arc::<Seen>::default();
            all.push(Arc::clone(&seen));
            let byte = seen.immediate_exit.as_ptr();
            let fails = fails.cloned();
            assert!(vcpus.add_one(Scripted { seen, fails }, byte).is_ok());
        }
        (vcpus, all, reports)
    }

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + DEADLINE;
        while !done() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn nobody_is_in_the_middle_of_an_access_once_a_pause_is_told() {
        let (vcpus, seen, _) = vcpus(3, None);
        for _ in 0..20 {
            let before: Vec<_> = seen.iter().map(|seen| seen.parts()).collect();
            vcpus.run();
            until("a vCPU does not run", || {
                let mut pairs = seen.iter().zip(&before);
                pairs.all(|(seen, before)| seen.parts() > *before)
            });
            vcpus.pause();
            for seen in &seen {
                let left = seen.left.load(Ordering::SeqCst);
                assert_eq!((left, seen.parts() % u64::from(PARTS)), (0, 0));
            }
        }
    }

    #[test]
    fn one_that_is_parked_in_a_pause_touches_nothing() {
        let (vcpus, seen, _) = vcpus(2, None);
        vcpus.run();
        until("it does not run", || seen[1].parts() > 0);
        vcpus.pause();
        let before = seen[1].parts();
        vcpus.park(1);
        until("it is not set back", || {
            seen[1].restored.load(Ordering::SeqCst)
        });
        assert!(vcpus.unpark(1).unwrap());
        assert_eq!(seen[1].parts(), before);
        vcpus.run();
        until("it does not run again", || seen[1].parts() > before);
    }

    #[test]
    fn one_that_is_parked_ends_its_access_first() {
        let (vcpus, seen, _) = vcpus(2, None);
        vcpus.run();
        for _ in 0..20 {
            let before = seen[1].parts();
            until("it does not run", || seen[1].parts() > before);
            vcpus.park(1);
            until("it is not set back", || {
                seen[1].restored.swap(false, Ordering::SeqCst)
            });
            assert_eq!(seen[1].left.load(Ordering::SeqCst), 0);
            assert!(vcpus.unpark(1).unwrap());
        }
    }

    #[test]
    fn one_that_cannot_end_its_access_crashes_and_does_not_hold_the_pause_up() {
        let reason = FatalExit::InternalError {
            suberror: 1,
            data: Vec::new(),
        };
        let (vcpus, seen, reports) = vcpus(1, Some(&reason));
        vcpus.run();
        until("it does not run", || seen[0].parts() > 0);
        vcpus.pause();
        let reports = reports.lock();
        assert_eq!(reports.len(), 1);
        assert_eq!((reports[0].vcpu, &reports[0].exit), (0, &reason));
    }
}
