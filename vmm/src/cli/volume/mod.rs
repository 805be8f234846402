//! `paddock volume`: replicated volumes while no VM uses them.
//!
//! What an engine does is done by an engine, which opens the volume for that and closes it again; the rest asks the replicas themselves. It runs on the
//! thread that started it; what takes long runs beside it, so that it can be told how far it is. What replicas say is not trusted: on its way
//! to a terminal it is made harmless.

pub mod args;
mod check;
mod create;
mod fill;
mod inspect;
mod interrupt;
mod open;
mod plan;
mod rebuild;
mod removal;
mod render;
mod snapshot;

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use paddock_storage::OpenError;
use paddock_storage::longhorn::VolumeError;
use serde::Serialize;

use self::args::{SnapshotCommand, VolumeArgs, VolumeCommand};
use self::interrupt::Interrupt;
use super::args::LogArgs;
use super::ctl::harmless;
use super::ctl::output::Output;
use super::ctl::render::Page;
use super::{Status, fail, logging};
use crate::error::chain;

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
enum VolumeFailure {
    /// The volume or one of its replicas is in the way.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The image cannot be opened.
    #[error(transparent)]
    Open(OpenError),
    /// The image cannot be read.
    #[error("image {}: {problem}", path.display())]
    Image {
        /// Which one.
        path: PathBuf,
        /// What is wrong, and what would do.
        problem: String,
    },
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Not all of it was done, or something is not as it should be.
    #[error("{0}")]
    Found(String),
    /// Nobody takes what is printed.
    #[error("printing the answer")]
    Print(#[source] io::Error),
    /// The host gives no thread, or no signals.
    #[error("starting the command")]
    Host(#[source] io::Error),
}

impl VolumeFailure {
    fn status(&self) -> Status {
        match self {
            Self::Usage(_) | Self::Volume(VolumeError::Options { .. }) => Status::Usage,
            // Whoever reads only the first lines has what they wanted.
            Self::Print(error) if error.kind() == ErrorKind::BrokenPipe => Status::Success,
            _ => Status::Error,
        }
    }
}

/// What all commands have.
struct Session {
    output: Output,
    interrupt: Interrupt,
}

impl Session {
    /// Ends a command that is not wanted any more, where nothing is open.
    fn ensure_wanted(&self) -> Result<(), VolumeFailure> {
        match self.interrupt.is_wanted() {
            true => Err(VolumeFailure::Found("interrupted".to_owned())),
            false => Ok(()),
        }
    }

    /// Prints what came of a command: a page for people, or `json`.
    fn print(
        &self,
        json: &impl Serialize,
        render: impl FnOnce(&mut Page),
    ) -> Result<(), VolumeFailure> {
        let printed = if self.output.json {
            serde_json::to_string_pretty(json)
                .map_err(io::Error::from)
                .and_then(|json| self.output.print_json(&json))
        } else {
            let mut page = self.output.page();
            render(&mut page);
            self.output.print_page(page)
        };
        printed.map_err(VolumeFailure::Print)
    }
}

/// `paddock volume`
pub(super) fn run(args: &VolumeArgs) -> Status {
    let log = LogArgs {
        log_level: args.log_level,
        ..LogArgs::default()
    };
    let done = logging::start(log)
        .and_then(|()| Interrupt::catch())
        .map_err(VolumeFailure::Host)
        .and_then(|interrupt| {
            let output = Output::standard(args.json);
            dispatch(&Session { output, interrupt }, &args.command)
        });
    match done {
        Ok(()) => Status::Success,
        Err(error) => match error.status() {
            Status::Success => Status::Success,
            status => fail(status, &told(&error)),
        },
    }
}

/// An error as it is printed. Some of it comes from replicas; its lines are meant.
fn told(error: &VolumeFailure) -> String {
    let text = chain(error);
    let lines: Vec<_> = text.lines().map(harmless::line).collect();
    lines.join("\n")
}

fn dispatch(session: &Session, command: &VolumeCommand) -> Result<(), VolumeFailure> {
    match command {
        VolumeCommand::Create(args) => create::create(session, args),
        VolumeCommand::Inspect(args) => inspect::inspect(session, args),
        VolumeCommand::Snapshot(SnapshotCommand::Create(args)) => snapshot::create(session, args),
        VolumeCommand::Snapshot(SnapshotCommand::List(args)) => snapshot::list(session, args),
        VolumeCommand::Snapshot(SnapshotCommand::Revert(args)) => snapshot::revert(session, args),
        VolumeCommand::Snapshot(SnapshotCommand::Remove(args)) => removal::remove(session, args),
        VolumeCommand::Rebuild(args) => rebuild::rebuild(session, args),
        VolumeCommand::Check(args) => check::check(session, args),
    }
}
