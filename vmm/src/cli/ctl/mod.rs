//! `paddock ctl`: every call of the HTTP API from a shell.
//!
//! ```text
//!  args ──▶ vm, devices, volumes, cdroms, cpus, memory, balloon, jobs, events ──▶ client ──unix socket──▶ a paddock process
//!                      │
//!                      └──▶ render, output ──▶ standard output
//! ```
//!
//! All of it runs on the thread that started it, on a runtime like the control plane's. What a server sends is not trusted: see
//! [`client`] for its limits and [`harmless`] for what becomes of its texts.

pub mod args;
mod balloon;
mod cdroms;
mod client;
mod cpus;
mod devices;
mod ending;
mod events;
pub(super) mod harmless;
mod jobs;
mod memory;
mod metrics;
pub(super) mod output;
mod paths;
mod patient;
mod problem;
pub(super) mod progress;
pub(super) mod render;
mod session;
mod stream;
mod vm;
mod volumes;

#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};

use self::args::{CtlArgs, CtlCommand};
use self::client::{Call, CallError, Client};
use self::output::Output;
use self::session::Session;
use super::spec::SpecInput;
use super::{Status, fail, process};
use crate::error::chain;

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    /// Nobody said where the API is.
    #[error(
        "it is not said where the API is: give --api-socket PATH, or set {}",
        args::SOCKET_VARIABLE
    )]
    NoSocket,
    /// What was to be sent is wrong, or cannot be read.
    #[error(transparent)]
    Input(#[from] SpecInput),
    /// The call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The call was taken, but what it started failed, or was given up waiting for.
    #[error("{0}")]
    Failed(String),
    /// Nobody takes what is printed.
    #[error("printing the answer")]
    Print(#[source] io::Error),
    /// The host gives no runtime.
    #[error("starting the client")]
    Runtime(#[source] io::Error),
}

impl CtlError {
    fn status(&self) -> Status {
        match self {
            Self::NoSocket => Status::Usage,
            Self::Input(error) if error.is_usage() => Status::Usage,
            // Whoever reads only the first lines (head, grep -q) has what they wanted.
            Self::Print(error) if error.kind() == ErrorKind::BrokenPipe => Status::Success,
            _ => Status::Error,
        }
    }
}

impl From<client::ClientError> for CtlError {
    fn from(error: client::ClientError) -> Self {
        Self::Call(error.into())
    }
}

/// `paddock ctl`
pub(super) fn run(args: &CtlArgs) -> Status {
    match execute(args, Output::standard(args.json)) {
        Ok(()) => Status::Success,
        Err(error) => match error.status() {
            Status::Success => Status::Success,
            status => fail(status, &told(&error)),
        },
    }
}

/// An error as it is printed. Some of it comes from servers and guests; its lines are meant.
fn told(error: &CtlError) -> String {
    let text = chain(error);
    let lines: Vec<_> = text.lines().map(harmless::line).collect();
    lines.join("\n")
}

/// Does what `args` say, and prints the answer to `output`.
fn execute(args: &CtlArgs, output: Output) -> Result<(), CtlError> {
    let socket = args.api_socket.clone().ok_or(CtlError::NoSocket)?;
    let deadline = std::time::Duration::from_secs(args.timeout);
    let session = Session::new(Client::new(socket, deadline), output);
    let runtime = process::runtime().map_err(CtlError::Runtime)?;
    let result = runtime.block_on(dispatch(&session, &args.command));
    if let Err(CtlError::Call(CallError::Refused(problem))) = &result {
        session.print_json(&problem.text)?;
    }
    result
}

async fn dispatch(session: &Session, command: &CtlCommand) -> Result<(), CtlError> {
    match command {
        CtlCommand::Vm(command) => vm::execute(session, command).await,
        CtlCommand::Disks(command) => devices::disks(session, command).await,
        CtlCommand::Replicas(command) => volumes::replicas(session, command).await,
        CtlCommand::Snapshots(command) => volumes::snapshots(session, command).await,
        CtlCommand::Nics(command) => devices::nics(session, command).await,
        CtlCommand::Cdroms(command) => cdroms::execute(session, command).await,
        CtlCommand::Cpus(command) => cpus::execute(session, command).await,
        CtlCommand::Memory(command) => memory::execute(session, command).await,
        CtlCommand::Balloon(command) => balloon::execute(session, command).await,
        CtlCommand::Jobs(command) => jobs::execute(session, command).await,
        CtlCommand::Events(args) => events::follow(session, args).await,
        CtlCommand::Metrics => metrics::execute(session).await,
        CtlCommand::Openapi => {
            let answer = session.client.call(Call::get(&["openapi.json"])).await?;
            session.print_document(&answer.text)
        }
    }
}
