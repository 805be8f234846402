//! The `paddock` command.
//!
//! [`args`] is the command line with its help; each subcommand has a module of its own. What a command answers is a
//! [`Status`]; errors are printed here, once.

pub mod args;
mod colours;
mod ctl;
mod doctor;
mod endpoint;
mod flags;
mod frontend;
mod logging;
mod manual;
mod options;
mod process;
mod run;
mod serve;
mod shutdown;
mod spec;
mod status;
#[cfg(test)]
mod units;
mod volume;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

pub use status::Status;

use args::{Cli, Command};

/// Does what the words of the command line say. The first word is the program's name.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            // Fails only if nobody reads it. Help and version are "errors" with status 0.
            let _ = error.print();
            let failed = error.exit_code() != 0;
            return if failed {
                Status::Usage
            } else {
                Status::Success
            }
            .into();
        }
    };
    let status = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Ctl(args) => ctl::run(&args),
        Command::Volume(args) => volume::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completion(args) => manual::completion(&args),
        Command::Man(args) => manual::man(&args),
    };
    logging::flush();
    status.into()
}

/// Prints an error and gives the status it stands for.
fn fail(status: Status, error: &str) -> Status {
    logging::tell_error(&format!("error: {error}"));
    status
}
