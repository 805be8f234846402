//! vCPU threads: one per vCPU, running the guest until it is told to pause or to end.
//!
//! ```text
//!            spawn                 run()                     end()
//!  (created) ─────▶ Paused ◀──────────────────▶ Running ──────────────▶ (joined)
//!                              pause()
//! ```
//!
//! This is the owner's side; what each thread does is in `thread`.
//!
//! A CPU that the guest has let go of is parked: KVM cannot take a vCPU out of a VM. Its thread sets it back to where it waits for INIT,
//! and sleeps until the CPU is plugged in again.
//!
//! A thread is taken out of the guest by a signal that does nothing, together with KVM's `immediate_exit` byte for the
//! moment just before it enters. What the guest can influence here is which exits there are; see [`exits`].

pub mod exits;
pub mod report;
mod thread;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use paddock_devices::bus::Bus;
use paddock_devices::threads;
use parking_lot::{Condvar, Mutex};
use vmm_sys_util::signal::{
    Error as SignalError, Killable, SIGRTMIN, register_signal_handler, unblock_signal,
};

use self::exits::Exits;
use self::report::CrashReport;
use self::thread::{Closing, Cpu, KvmCpu, Vcpu};
use crate::Error;
use crate::cpu::registers::WaitingForInit;
use crate::metrics::Meters;

/// What is being done when the host gives no thread.
const STARTING: &str = "starting vCPU threads";
/// How often a thread is kicked that does not come.
const KICK_AGAIN: Duration = Duration::from_millis(10);
/// How long a parked vCPU may take to be set back before it can come again; it takes microseconds unless the host is overloaded.
const SET_BACK: Duration = Duration::from_millis(200);

/// What all vCPUs are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Pause,
    Run,
    End,
}

/// Takes crash reports; called on the vCPU's thread.
pub type OnCrash = Arc<dyn Fn(CrashReport) + Send + Sync>;

/// The buses that a vCPU's exits end on.
#[derive(Debug, Clone)]
pub struct Buses {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped devices.
    pub mmio: Arc<Bus>,
}

/// Shared by the owner and the threads.
#[derive(Debug)]
struct Shared {
    /// Whether the order is to run: what a thread looks at between exits, without the lock.
    running: AtomicBool,
    state: Mutex<State>,
    /// The owner wants something else: what threads wait for.
    changed: Condvar,
    /// A thread waits, or has set its vCPU back: what the owner waits for. Not one for both: threads that wait would wake each other.
    arrived: Condvar,
}

impl Shared {
    fn new() -> Self {
        Self {
            running: AtomicBool::new(false),
            state: Mutex::new(State {
                order: Order::Pause,
                waiting: 0,
                seats: Vec::new(),
            }),
            changed: Condvar::new(),
            arrived: Condvar::new(),
        }
    }
}

#[derive(Debug)]
struct State {
    order: Order,
    /// Threads that are outside the guest and waiting.
    waiting: usize,
    /// Of each vCPU.
    seats: Vec<Seat>,
}

/// Whether a vCPU is in the machine.
#[derive(Debug, Clone, Copy, Default)]
struct Seat {
    /// It is not: the guest has let go of it.
    empty: bool,
    /// It was taken out, and its thread has not set it back yet.
    set_back: bool,
}

/// The vCPUs of a running machine.
pub struct Vcpus {
    shared: Arc<Shared>,
    threads: Vec<Thread>,
    buses: Buses,
    meters: Arc<Meters>,
    on_crash: OnCrash,
}

impl fmt::Debug for Vcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Vcpus");
        let text = text.field("shared", &self.shared);
        text.field("threads", &self.threads).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Thread {
    handle: Option<JoinHandle<()>>,
    /// The thread is to look at its seat, also while the order is to run.
    called: Arc<AtomicBool>,
    /// KVM's `immediate_exit` byte of this vCPU while its descriptor is open, else null.
    immediate_exit: Arc<AtomicPtr<u8>>,
}

impl Vcpus {
    /// Starts a paused thread per vCPU, named after its number.
    ///
    /// # Errors
    /// When the host gives no thread, or KVM does not tell a vCPU's state. Those already started are ended.
    pub fn spawn(
        vcpus: Vec<VcpuFd>,
        buses: &Buses,
        meters: &Arc<Meters>,
        on_crash: &OnCrash,
    ) -> Result<Self, Error> {
        install_kick_handler().map_err(Error::host(STARTING))?;
        let mut this = Self {
            shared: Arc::new(Shared::new()),
            threads: Vec::new(),
            buses: buses.clone(),
            meters: Arc::clone(meters),
            on_crash: Arc::clone(on_crash),
        };
        for fd in vcpus {
            this.add(fd).map_err(|(error, _)| error)?;
        }
        Ok(this)
    }

    /// Starts a thread for one more vCPU, which does as the others: it runs while they do.
    ///
    /// # Errors
    /// When the host gives no thread, or KVM does not tell the vCPU's state. The vCPU comes back with it: KVM cannot take it out of the VM.
    pub fn add(&mut self, fd: VcpuFd) -> Result<(), (Error, Option<VcpuFd>)> {
        let index = self.threads.len();
        let counters = self.meters.exits().get(index).cloned().unwrap_or_default();
        let first = match WaitingForInit::of(&fd) {
            Ok(first) => first,
            Err(error) => return Err((error.into(), Some(fd))),
        };
        let exits = Exits::new(self.buses.clone(), counters);
        let mut cpu = KvmCpu { fd, exits, first };
        let byte: *mut u8 = &raw mut cpu.fd.get_kvm_run().immediate_exit;
        self.add_one(cpu, byte).map_err(|(error, cpu)| {
            let fd = cpu.map(|cpu| cpu.fd);
            (Error::host(STARTING)(error), fd)
        })?;
        self.meters.count_vcpus(self.threads.len());
        Ok(())
    }

    /// Gives the vCPU back with an error. Its `immediate_exit` byte stays where it is as long as it exists.
    fn add_one<C: Cpu>(
        &mut self,
        cpu: C,
        immediate_exit: *mut u8,
    ) -> Result<(), (io::Error, Option<C>)> {
        let called = Arc::new(AtomicBool::new(false));
        let index = self.threads.len();
        let meters = Arc::clone(&self.meters);
        let vcpu = Vcpu::new(index, cpu, meters, Arc::clone(&called));
        self.shared.state.lock().seats.push(Seat::default());
        let spawned = self.spawn_one(vcpu, called, immediate_exit);
        if spawned.is_err() {
            self.shared.state.lock().seats.pop();
        }
        self.threads.push(spawned?);
        Ok(())
    }

    /// How many vCPUs KVM has, parked ones included.
    #[must_use]
    pub fn created(&self) -> usize {
        self.threads.len()
    }

    /// Takes a vCPU out of the guest for now: as soon as it is out, it is set back to where it waits for INIT. Does not wait for it.
    pub fn park(&self, index: usize) {
        let mut state = self.shared.state.lock();
        let (Some(seat), Some(thread)) = (state.seats.get_mut(index), self.threads.get(index))
        else {
            return;
        };
        *seat = Seat {
            empty: true,
            set_back: true,
        };
        thread.called.store(true, Ordering::Release);
        Self::kick_one(thread, &state);
        self.shared.changed.notify_all();
    }

    /// Puts a vCPU back that was parked. `false` if there is none that could come back.
    ///
    /// # Errors
    /// When it is still in the middle of something, which would meet the INIT of its next life.
    pub fn unpark(&self, index: usize) -> Result<bool, Error> {
        let mut state = self.shared.state.lock();
        let end = Instant::now() + SET_BACK;
        loop {
            let Some(seat) = state.seats.get_mut(index) else {
                return Ok(false);
            };
            if !seat.set_back {
                seat.empty = false;
                break;
            }
            if Instant::now() >= end {
                let source = io::ErrorKind::TimedOut.into();
                return Err(Error::host("taking the vCPU out of the guest")(source));
            }
            self.shared.arrived.wait_until(&mut state, end);
        }
        self.shared.changed.notify_all();
        Ok(true)
    }

    /// Gives the vCPU back with an error.
    fn spawn_one<C: Cpu>(
        &self,
        vcpu: Vcpu<C>,
        called: Arc<AtomicBool>,
        immediate_exit: *mut u8,
    ) -> Result<Thread, (io::Error, Option<C>)> {
        let on_crash = Arc::clone(&self.on_crash);
        let index = vcpu.index();
        let immediate_exit = Arc::new(AtomicPtr::new(immediate_exit));
        let theirs = Arc::clone(&immediate_exit);
        let shared = Arc::clone(&self.shared);
        // Where there is no thread to take it, it is still here.
        let offered = Arc::new(Mutex::new(Some(vcpu)));
        let taken = Arc::clone(&offered);
        let handle = threads::named(&format!("vcpu{index}")).spawn(move || {
            if let Err(error) = let_kicks_through() {
                tracing::error!(vcpu = index, %error, "unblocking the signal that stops a vCPU");
            }
            let Some(mut vcpu) = taken.lock().take() else {
                return;
            };
            // Dropped before `vcpu`, also by a panic.
            let closing = Closing {
                shared,
                immediate_exit: theirs,
            };
            vcpu.serve(&closing.shared, &on_crash);
        });
        let handle = match handle {
            Ok(handle) => handle,
            Err(error) => return Err((error, offered.lock().take().map(Vcpu::into_cpu))),
        };
        Ok(Thread {
            handle: Some(handle),
            called,
            immediate_exit,
        })
    }

    /// Lets the guest run.
    pub fn run(&self) {
        let mut state = self.shared.state.lock();
        state.order = Order::Run;
        self.shared.running.store(true, Ordering::Release);
        self.shared.changed.notify_all();
    }

    /// Takes every vCPU out of the guest and returns when all are out, and none is in the middle of an access: until they run again, they
    /// touch neither devices nor memory.
    pub fn pause(&self) {
        let mut state = self.shared.state.lock();
        state.order = Order::Pause;
        self.shared.running.store(false, Ordering::Release);
        while state.waiting < self.alive() {
            self.kick(&state);
            // Bounded, and repeated: a kick can fall between a thread's last look at its order and a blocking device call.
            self.shared.arrived.wait_for(&mut state, KICK_AGAIN);
        }
    }

    fn alive(&self) -> usize {
        self.threads
            .iter()
            .filter(|thread| thread.handle.as_ref().is_some_and(|h| !h.is_finished()))
            .count()
    }

    /// Makes every thread leave the guest soon.
    fn kick(&self, held: &State) {
        for thread in &self.threads {
            Self::kick_one(thread, held);
        }
    }

    /// Makes a thread leave the guest soon. The state lock is held, so it cannot close its descriptor meanwhile.
    #[expect(
        unsafe_code,
        reason = "immediate_exit is meant to be written by other threads"
    )]
    fn kick_one(thread: &Thread, _held: &State) {
        let byte = thread.immediate_exit.load(Ordering::Acquire);
        if byte.is_null() {
            return;
        }
        // SAFETY: non-null means that the vCPU's descriptor, and with it the mapping the byte lies in, is still there; the
        // thread clears the pointer under the lock that our caller holds. KVM and the thread access the byte atomically.
        unsafe { AtomicU8::from_ptr(byte) }.store(1, Ordering::Release);
        if let Some(handle) = &thread.handle {
            // A thread that has ended meanwhile cannot be signalled, and need not.
            let _ = handle.kill(kick_signal());
        }
    }

    /// Takes every vCPU out of the guest for good and joins the threads.
    pub fn end(&mut self) {
        {
            let mut state = self.shared.state.lock();
            state.order = Order::End;
            self.shared.running.store(false, Ordering::Release);
            self.kick(&state);
        }
        self.shared.changed.notify_all();
        for thread in &mut self.threads {
            let Some(handle) = thread.handle.take() else {
                continue;
            };
            while !handle.is_finished() {
                let byte = thread.immediate_exit.load(Ordering::Acquire);
                if byte.is_null() {
                    break;
                }
                let _ = handle.kill(kick_signal());
                std::thread::sleep(Duration::from_millis(1));
            }
            if handle.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.end();
    }
}

fn kick_signal() -> i32 {
    SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Its arrival alone takes the thread out of KVM_RUN.
}

fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// The signal mask comes from whoever started the process; KVM does not leave the guest for a signal that is blocked.
fn let_kicks_through() -> Result<(), SignalError> {
    unblock_signal(kick_signal())
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::signal::{block_signal, get_blocked_signals};

    use super::*;

    #[test]
    fn a_vcpu_that_panics_is_not_kicked_any_more() {
        let shared = Arc::new(Shared::new());
        let mut byte = 0_u8;
        let immediate_exit = Arc::new(AtomicPtr::new(&raw mut byte));
        let theirs = Arc::clone(&immediate_exit);
        let result = std::thread::spawn(move || {
            let _closing = Closing {
                shared,
                immediate_exit: theirs,
            };
            // Without the noise of the panic hook.
            std::panic::resume_unwind(Box::new("a bug"));
        })
        .join();
        assert!(result.is_err());
        assert!(immediate_exit.load(Ordering::Acquire).is_null());
    }

    #[test]
    fn a_mask_inherited_from_the_parent_does_not_keep_kicks_out() {
        // On a thread of its own, for the mask is the thread's.
        let blocked = std::thread::spawn(|| {
            block_signal(kick_signal()).unwrap();
            let_kicks_through().unwrap();
            get_blocked_signals().unwrap()
        });
        assert!(!blocked.join().unwrap().contains(&kick_signal()));
    }
}
