//! What every command that runs VMs does with its process: the control plane's runtime, descriptors, signals, and the way to a VM's end.

use std::io;
use std::time::{Duration, Instant};

use paddock_devices::threads;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::shutdown::{STOP_DEADLINE, Shutdown, Step};
use crate::driver::{Request, VmHandle, VmState};

/// How long the API's clients may take for what is being answered when the process ends.
pub const API_DEADLINE: Duration = Duration::from_secs(2);
/// Threads for what may block. One VM does one such step at a time, and a few may be left behind on dead disks.
const BLOCKING_THREADS: usize = 8;

/// What the end of the process takes beyond that of its VM: answers to the API's clients, and the last output.
const LAST_STEPS: Duration = Duration::from_secs(10);

/// The VM is not stopped when it should have been.
#[derive(Debug, thiserror::Error)]
#[error("the VM did not stop in time; its process ends without it")]
pub struct Stuck;

/// The runtime of the control plane: the present thread.
///
/// # Errors
/// When the host lacks descriptors.
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(threads::STACK_SIZE)
        .build()
}

/// Each queue of a device has a handful of descriptors, and the soft limit is 1024 on most hosts, for the sake of programs that use
/// select(2). The hard limit is what the host means.
pub fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "raising the limit on open files");
    }
}

/// How long the process may take to end once it is asked to, where the guest has `grace` to power off.
#[must_use]
pub fn ending_takes(grace: Duration) -> Duration {
    grace + STOP_DEADLINE + LAST_STEPS
}

/// The signals that mean something.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
    resumed: Signal,
}

/// What a signal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The VM is to end.
    End,
    /// At once.
    EndNow,
    /// The process goes on after it was suspended.
    Resumed,
}

impl Signals {
    /// Catches them from now on.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn catch() -> io::Result<Self> {
        // SIGCONT has no name in tokio.
        let resumed = SignalKind::from_raw(rustix::process::Signal::CONT.as_raw());
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            resumed: signal(resumed)?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Meaning {
        tokio::select! {
            _ = self.terminate.recv() => Meaning::End,
            _ = self.interrupt.recv() => Meaning::End,
            _ = self.hangup.recv() => Meaning::End,
            _ = self.quit.recv() => Meaning::EndNow,
            _ = self.resumed.recv() => Meaning::Resumed,
        }
    }
}

/// Brings a VM to its end, by [`Shutdown`]'s steps.
#[derive(Debug)]
pub struct Ending {
    vm: VmHandle,
    shutdown: Shutdown,
}

impl Ending {
    /// Nothing is asked so far. The guest will have `grace` to power off.
    #[must_use]
    pub fn new(vm: VmHandle, grace: Duration) -> Self {
        Self {
            vm,
            shutdown: Shutdown::new(grace),
        }
    }

    /// The VM is to end.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn interrupt(&mut self) -> Result<(), Stuck> {
        let step = self.shutdown.interrupt(Instant::now());
        self.take(step)
    }

    /// It is to end at once.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop(&mut self) -> Result<(), Stuck> {
        let step = self.shutdown.stop(Instant::now());
        self.take(step)
    }

    /// How long the process may take to end from now on, at most.
    #[must_use]
    pub fn most(&self) -> Duration {
        ending_takes(self.shutdown.grace())
    }

    /// Waits for the moment to call [`timeout`](Self::timeout), if one ever comes. Does not hold on to `self`.
    pub fn deadline(&self) -> impl Future<Output = ()> + use<> {
        let deadline = self.shutdown.deadline();
        async move {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        }
    }

    /// The deadline has come.
    ///
    /// # Errors
    /// When the VM does not stop.
    pub fn timeout(&mut self) -> Result<(), Stuck> {
        let step = self.shutdown.timeout(Instant::now());
        step.map_or(Ok(()), |step| self.take(step))
    }

    /// Waits for what the VM holds though it has ended: a step that was left behind may open volumes yet, whose replicas are closed then, as it does for what
    /// the guest printed last. A signal, or the time that the end has, ends that.
    pub async fn release(&self, signals: &mut Signals) {
        let deadline = self.shutdown.release_by(Instant::now());
        let waiting = tokio::time::timeout_at(deadline.into(), self.vm.released());
        tokio::pin!(waiting);
        let released = loop {
            tokio::select! {
                released = &mut waiting => break released.is_ok(),
                meaning = signals.next() => if meaning != Meaning::Resumed {
                    break false;
                },
            }
        };
        if !released {
            tracing::warn!(
                "the process ends with something of the VM still open; replicas of a volume have to be started anew"
            );
        }
    }

    fn take(&mut self, step: Step) -> Result<(), Stuck> {
        match step {
            Step::PowerButton => {
                tracing::info!("asking the guest to power off");
                if self.vm.state() == VmState::Paused {
                    // It cannot listen while it stands still.
                    request(&self.vm, Request::Resume);
                }
                if !request(&self.vm, Request::PowerButton) {
                    // A guest that does not run cannot be asked.
                    return self.stop();
                }
                Ok(())
            }
            Step::Stop => {
                tracing::info!("stopping the VM");
                request(&self.vm, Request::Stop);
                Ok(())
            }
            Step::GiveUp => Err(Stuck),
        }
    }
}

/// Asks the VM for something on behalf of somebody who reads the log; whether it is taken.
pub fn request(vm: &VmHandle, request: Request) -> bool {
    let result = vm.request(request);
    if let Err(error) = &result {
        tracing::warn!(%error, "request refused");
    }
    result.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hard_limit_on_descriptors_is_ours_to_use() {
        let mut low = getrlimit(Resource::Nofile);
        low.current = low.maximum.map_or(Some(1024), |most| Some(most.min(1024)));
        setrlimit(Resource::Nofile, low).unwrap();
        raise_descriptor_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, now.maximum);
    }
}
