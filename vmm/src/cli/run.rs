//! `paddock run`: one VM in the foreground, from its spec to its end.
//!
//! Everything here runs on the control plane's thread. Beside the state driver it waits for signals, for commands typed after the
//! escape key and for deadlines, and turns them into requests to the VM.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::args::{EscapeChoice, RunArgs};
use super::frontend::{Frontend, FrontendError};
use super::shutdown::{Shutdown, Step};
use super::spec::{Origins, assemble};
use super::{Status, fail, logging, report};
use crate::Error;
use crate::driver::{Driver, Outcome, Request, VmHandle, VmState};
use crate::terminal::Command;
use paddock_api::spec::{JsonPointer, VmSpec};

/// Why `paddock run` failed, apart from a wrong spec.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    #[error("starting the control plane")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Vm(#[from] Error),
    #[error("the VM did not stop in time; its process ends without it")]
    Stuck,
}

/// `paddock run`
pub(super) fn run(args: &RunArgs) -> Status {
    let (spec, origins) = match assemble(args) {
        Ok(assembled) => assembled,
        Err(error) => {
            let status = if error.is_usage() {
                Status::Usage
            } else {
                Status::Error
            };
            return fail(status, &report::chain(&error));
        }
    };
    if args.print_spec {
        return print(&spec);
    }
    if let Err(error) = logging::start(args.log) {
        return fail(Status::Error, &format!("starting to log: {error}"));
    }
    if let Err(error) = raise_descriptor_limit() {
        tracing::warn!(%error, "raising the limit on open files");
    }
    match run_vm(spec, args) {
        Ok(outcome) => ended(&outcome),
        Err(error) => fail(Status::Error, &explain(&error, &origins)),
    }
}

/// Each queue of a device has a handful of descriptors, and the soft limit is 1024 on most hosts, for the sake of programs that use
/// select(2). The hard limit is what the host means.
fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

fn print(spec: &VmSpec) -> Status {
    let mut stdout = io::stdout().lock();
    let printed = serde_json::to_writer_pretty(&mut stdout, spec)
        .map_err(io::Error::from)
        .and_then(|()| stdout.write_all(b"\n"));
    match printed {
        Ok(()) => Status::Success,
        Err(error) => fail(Status::Error, &format!("printing the spec: {error}")),
    }
}

/// The error, with the user's words for the part of the spec that it is about.
fn explain(error: &RunError, origins: &Origins) -> String {
    let (pointer, source) = match error {
        RunError::Vm(Error::Part { pointer, source }) => (pointer.as_str(), source),
        RunError::Vm(Error::Cpus(source)) => ("/cpus", source),
        other => return report::chain(other),
    };
    let place = pointer.parse().map_or_else(
        |_| pointer.to_owned(),
        |pointer: JsonPointer| origins.name(&pointer),
    );
    format!("{place}: {}", report::chain(source.as_ref()))
}

fn ended(outcome: &Outcome) -> Status {
    match outcome {
        Outcome::PoweredOff => Status::Success,
        Outcome::ResetRequested => Status::GuestReset,
        Outcome::Stopped => Status::Stopped,
        Outcome::Crashed(report) => {
            let report = report.to_string();
            fail(
                Status::GuestCrash,
                &format!("the guest crashed: {}", report.trim_end()),
            )
        }
    }
}

fn run_vm(spec: VmSpec, args: &RunArgs) -> Result<Outcome, RunError> {
    let escape = match args.escape_key {
        Some(EscapeChoice::None) => None,
        Some(EscapeChoice::Key(key)) => Some(key),
        None => Some(Default::default()),
    };
    let (mut frontend, consoles) = Frontend::open(&spec.console, escape)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::Runtime)?;
    let grace = Duration::from_secs(args.shutdown_timeout);
    let (vm, driver) = Driver::new(spec, consoles);
    let result = runtime.block_on(async {
        let signals = Signals::catch().map_err(RunError::Runtime)?;
        let attendant = Attendant {
            state: vm.watch(),
            vm,
            shutdown: Shutdown::new(grace),
            commands: None,
        };
        attendant.attend(driver, signals, &mut frontend).await
    });
    // A step that hangs on a blocking thread must not hold the process.
    runtime.shutdown_background();
    let interactive = frontend.is_interactive();
    frontend.close();
    if let (true, Ok(outcome)) = (interactive, &result) {
        // On a line of its own, wherever the guest left the cursor.
        logging::tell(&format!("\n{}", farewell(outcome)));
    }
    result
}

/// What someone at a terminal reads last; the report follows a crash.
fn farewell(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::PoweredOff => "The guest powered off.",
        Outcome::ResetRequested => "The guest asked for a reset.",
        Outcome::Stopped => "The VM was stopped.",
        Outcome::Crashed(_) => "",
    }
}

/// The signals that mean something.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
    resumed: Signal,
}

/// What a signal means.
enum Meaning {
    End,
    EndNow,
    Resumed,
}

impl Signals {
    fn catch() -> io::Result<Self> {
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

    async fn next(&mut self) -> Meaning {
        tokio::select! {
            _ = self.terminate.recv() => Meaning::End,
            _ = self.interrupt.recv() => Meaning::End,
            _ = self.hangup.recv() => Meaning::End,
            _ = self.quit.recv() => Meaning::EndNow,
            _ = self.resumed.recv() => Meaning::Resumed,
        }
    }
}

/// Stands between the outside and the VM while it runs.
struct Attendant {
    vm: VmHandle,
    state: watch::Receiver<VmState>,
    shutdown: Shutdown,
    /// Typed commands, once the terminal is attached.
    commands: Option<mpsc::Receiver<Command>>,
}

impl Attendant {
    async fn attend(
        mut self,
        driver: Driver,
        mut signals: Signals,
        frontend: &mut Frontend,
    ) -> Result<Outcome, RunError> {
        let mut driver = Box::pin(driver.run());
        loop {
            let deadline = self.shutdown.deadline();
            let step = tokio::select! {
                outcome = &mut driver => return Ok(outcome?),
                meaning = signals.next() => match meaning {
                    Meaning::End => Some(self.shutdown.interrupt(Instant::now())),
                    Meaning::EndNow => Some(self.shutdown.stop(Instant::now())),
                    Meaning::Resumed => {
                        frontend.resumed();
                        None
                    }
                },
                command = next(&mut self.commands) => self.obey(command),
                () = until(deadline) => self.shutdown.timeout(Instant::now()),
                Ok(()) = self.state.changed() => {
                    // Errors until here were the cooked terminal's; keys from here on are the guest's.
                    if self.commands.is_none() && self.vm.state() == VmState::Running {
                        self.commands = attach(frontend);
                    }
                    None
                }
            };
            if let Some(step) = step {
                self.take(step)?;
            }
        }
    }

    fn obey(&mut self, command: Command) -> Option<Step> {
        match command {
            Command::Stop => {
                logging::tell("stopping the VM");
                Some(self.shutdown.stop(Instant::now()))
            }
            Command::PowerButton => {
                logging::tell("pressing the power button");
                self.request(Request::PowerButton);
                None
            }
            Command::Reset => {
                logging::tell("resetting the VM");
                self.request(Request::Reset);
                None
            }
        }
    }

    fn take(&mut self, step: Step) -> Result<(), RunError> {
        match step {
            Step::PowerButton => {
                tracing::info!("asking the guest to power off");
                if !self.request(Request::PowerButton) {
                    // A guest that does not run cannot be asked.
                    let next = self.shutdown.stop(Instant::now());
                    return self.take(next);
                }
                Ok(())
            }
            Step::Stop => {
                tracing::info!("stopping the VM");
                self.request(Request::Stop);
                Ok(())
            }
            Step::GiveUp => Err(RunError::Stuck),
        }
    }

    fn request(&self, request: Request) -> bool {
        let result = self.vm.request(request);
        if let Err(error) = &result {
            tracing::warn!(%error, "request refused");
        }
        result.is_ok()
    }
}

/// The commands that will be typed. A guest without a keyboard still runs.
fn attach(frontend: &mut Frontend) -> Option<mpsc::Receiver<Command>> {
    let attached = frontend.attach();
    if let Err(error) = &attached {
        let error = report::chain(error);
        tracing::warn!(error, "the guest's console gets no input");
    }
    // Without commands, one that never gives any, so that this is not tried again.
    Some(attached.unwrap_or_else(|_| mpsc::channel(1).1))
}

/// The next command; none ever comes without a keyboard.
async fn next(commands: &mut Option<mpsc::Receiver<Command>>) -> Command {
    if let Some(receiver) = commands {
        if let Some(command) = receiver.recv().await {
            return command;
        }
    }
    std::future::pending().await
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hard_limit_on_descriptors_is_ours_to_use() {
        let mut low = getrlimit(Resource::Nofile);
        low.current = low.maximum.map_or(Some(1024), |most| Some(most.min(1024)));
        setrlimit(Resource::Nofile, low).unwrap();
        raise_descriptor_limit().unwrap();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, now.maximum);
    }
}
