//! `paddock run`: one VM in the foreground, from its spec to its end.
//!
//! Everything here runs on the control plane's thread. Beside the state driver it waits for signals, for commands typed after the
//! escape key and for deadlines, and turns them into requests to the VM.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use paddock_api::server::{Limits, Server};
use paddock_api::service::VmService;
use paddock_api::spec::{JsonPointer, VmSpec};
use tokio::sync::{mpsc, watch};

use super::args::{EscapeChoice, RunArgs};
use super::endpoint::{Endpoint, EndpointError};
use super::frontend::Frontend;
use super::process::{
    self, API_DEADLINE, Ending, Meaning, Signals, Stuck, raise_descriptor_limit, runtime,
};
use super::spec::{Origins, assemble};
use super::{Status, fail, logging};
use crate::Error;
use crate::console::ConsoleEnds;
use crate::driver::{self, Driver, Outcome, Request, VmHandle, VmState};
use crate::error::chain;
use crate::kvm::passed::{PassedKvmError, use_passed};
use crate::metrics::timeline;
use crate::slot::VmSlot;
use crate::systemd::herald::{Herald, Role};
use crate::systemd::inherited::inherited;
use crate::terminal::Command;

/// Why `paddock run` failed, apart from a wrong spec.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("starting the control plane")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Socket(#[from] EndpointError),
    #[error(transparent)]
    Kvm(#[from] PassedKvmError),
    #[error(transparent)]
    Vm(#[from] Error),
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

/// `paddock run`
pub(super) fn run(args: &RunArgs) -> Status {
    let (spec, origins) = match assemble(&args.vm) {
        Ok(assembled) => assembled,
        Err(error) => {
            let status = if error.is_usage() {
                Status::Usage
            } else {
                Status::Error
            };
            return fail(status, &chain(&error));
        }
    };
    if args.print_spec {
        return print(&spec);
    }
    if let Err(error) = logging::start(args.log) {
        return fail(Status::Error, &format!("starting to log: {error}"));
    }
    raise_descriptor_limit();
    match run_vm(spec, args) {
        Ok(outcome) => ended(&outcome),
        Err(ref error @ RunError::Socket(ref cause)) if cause.is_usage() => {
            fail(Status::Usage, &chain(error))
        }
        Err(error) => fail(Status::Error, &explain(&error, &origins)),
    }
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
    let RunError::Vm(cause) = error else {
        return chain(error);
    };
    let (Some(pointer), Some(source)) = (cause.pointer(), cause.at_pointer()) else {
        return chain(error);
    };
    let place = pointer.parse().map_or_else(
        |_| pointer.to_owned(),
        |pointer: JsonPointer| origins.name(&pointer),
    );
    format!("{place}: {}", chain(source))
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
    let passed = &inherited().descriptors;
    use_passed(args.kvm.as_ref(), passed)?;
    let socket = Endpoint::choose(args.api_socket.as_deref(), passed, &spec.passed())?
        .map(|endpoint| endpoint.open(passed))
        .transpose()?;
    let ends = ConsoleEnds::open(&spec.console, None).map_err(Error::from)?;
    let ends = Arc::new(ends);
    let mut frontend = Frontend::new(Arc::clone(&ends), escape);
    let runtime = runtime().map_err(RunError::Runtime)?;
    let grace = Duration::from_secs(args.shutdown_timeout);
    let (slot, vm, driver) = VmSlot::holding(spec, Box::new(|_, _| Ok(ends)));
    let result = runtime.block_on(async {
        let signals = Signals::catch().map_err(RunError::Runtime)?;
        let notify = inherited().notify.as_ref();
        let herald = Herald::start(notify, Role::Run, slot.journal());
        let server = socket
            .map(|socket| Server::start(socket, Arc::new(slot), Limits::default()))
            .transpose()
            .map_err(RunError::Runtime)?;
        if server.is_some() {
            timeline::api_ready();
        }
        let attendant = Attendant {
            status: vm.watch(),
            ending: Ending::new(vm.clone(), grace),
            vm,
            herald: &herald,
            commands: None,
        };
        let result = attendant.attend(driver, signals, &mut frontend).await;
        herald.finish().await;
        if let Some(server) = server {
            server.shut_down(API_DEADLINE).await;
        }
        result
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

/// Stands between the outside and the VM while it runs.
struct Attendant<'a> {
    vm: VmHandle,
    status: watch::Receiver<driver::Status>,
    ending: Ending,
    /// Tells whoever started the process that it is about to end.
    herald: &'a Herald,
    /// Typed commands, once the terminal is attached.
    commands: Option<mpsc::Receiver<Command>>,
}

impl Attendant<'_> {
    async fn attend(
        mut self,
        driver: Driver,
        mut signals: Signals,
        frontend: &mut Frontend,
    ) -> Result<Outcome, RunError> {
        let mut driver = Box::pin(driver.run());
        loop {
            tokio::select! {
                outcome = &mut driver => {
                    self.ending.release(&mut signals).await;
                    return Ok(outcome?);
                }
                meaning = signals.next() => match meaning {
                    Meaning::End => {
                        self.herald.stopping(self.ending.most());
                        self.ending.interrupt()?;
                    }
                    Meaning::EndNow => {
                        self.herald.stopping(self.ending.most());
                        self.ending.stop()?;
                    }
                    Meaning::Resumed => frontend.resumed(),
                },
                command = next(&mut self.commands) => self.obey(command)?,
                () = self.ending.deadline() => self.ending.timeout()?,
                Ok(()) = self.status.changed() => {
                    // Errors until here were the cooked terminal's; keys from here on are the guest's.
                    if self.commands.is_none() && self.vm.state() == VmState::Running {
                        self.commands = attach(frontend);
                    }
                }
            }
        }
    }

    fn obey(&mut self, command: Command) -> Result<(), Stuck> {
        match command {
            Command::Stop => {
                logging::tell("stopping the VM");
                self.ending.stop()?;
            }
            Command::PowerButton => {
                logging::tell("pressing the power button");
                process::request(&self.vm, Request::PowerButton);
            }
            Command::Reset => {
                logging::tell("resetting the VM");
                process::request(&self.vm, Request::Reset);
            }
        }
        Ok(())
    }
}

/// The commands that will be typed. A guest without a keyboard still runs.
fn attach(frontend: &mut Frontend) -> Option<mpsc::Receiver<Command>> {
    let attached = frontend.attach();
    if let Err(error) = &attached {
        let error = chain(error);
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
