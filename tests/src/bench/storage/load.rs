//! A load, and `disk-load`, which puts it on a disk and says what came of it.

use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::bench::BenchError;
use crate::files;

/// How long a load lasts, in seconds.
pub(super) const SECONDS: u32 = 2;

/// Requests of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Whether they write.
    pub write: bool,
    /// Whether they are anywhere, or one after the other.
    pub random: bool,
    /// Bytes of each.
    pub block: u32,
    /// So many at once.
    pub depth: u16,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// How long a request takes: the mean, in microseconds.
    Latency,
    /// Requests a second.
    Iops,
    /// MiB a second.
    Bandwidth,
    /// CPU time of everything that takes part, load generator, engine and replicas: seconds per GiB.
    Cpu,
}

/// What `disk-load` prints.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoadOutcome {
    /// Requests a second.
    pub requests_per_second: f64,
    /// Mean time of a request, in microseconds.
    pub mean_us: f64,
    /// Read or written.
    pub bytes: u64,
    /// CPU time of the process meanwhile.
    pub cpu_seconds: f64,
    /// For how long a snapshot froze the I/O, in milliseconds.
    pub frozen_ms: Option<f64>,
}

impl Load {
    /// For `disk-load`.
    fn arguments(self) -> Vec<String> {
        let mut arguments = vec![
            "--block".to_owned(),
            self.block.to_string(),
            "--depth".to_owned(),
            self.depth.to_string(),
            "--seconds".to_owned(),
            SECONDS.to_string(),
        ];
        arguments.extend(self.write.then(|| "--write".to_owned()));
        arguments.extend((!self.random).then(|| "--sequential".to_owned()));
        arguments
    }

    /// What is wanted, of what came of this load; `cpu` are the seconds of those besides the load generator.
    pub(super) fn value(self, want: Want, outcome: &LoadOutcome, cpu: f64) -> f64 {
        // Far less than 2^53.
        #[expect(clippy::cast_precision_loss)]
        let gib = outcome.bytes as f64 / f64::from(1 << 30);
        match want {
            Want::Latency => outcome.mean_us,
            Want::Iops => outcome.requests_per_second,
            Want::Bandwidth => {
                outcome.requests_per_second * f64::from(self.block) / f64::from(1 << 20)
            }
            Want::Cpu => (outcome.cpu_seconds + cpu) / gib,
        }
    }
}

/// A disk, as `disk-load` is told.
#[derive(Debug, Clone)]
pub(super) enum Subject {
    /// By Paddock's engine: `NAME=ADDRESS,…`.
    Volume(String),
    /// By the engine behind a socket, with so many bytes.
    Socket(PathBuf, u64),
    /// A raw file.
    File(PathBuf),
}

impl Subject {
    fn command(&self) -> Command {
        let mut command = Command::new(files::release("disk-load"));
        match self {
            Self::Volume(volume) => command.arg("--volume").arg(volume),
            Self::Socket(path, size) => {
                let socket = format!("{}={size}", path.display());
                command.arg("--socket").arg(socket)
            }
            Self::File(path) => command.arg("--file").arg(path),
        };
        command
    }

    /// Puts a load on it.
    pub(super) fn load(&self, load: Load, more: &[&str]) -> Result<LoadOutcome, BenchError> {
        let mut command = self.command();
        command.args(load.arguments()).args(more);
        json("disk-load", &output("disk-load", &mut command)?)
    }

    /// Writes all of it: what was never written costs little to read.
    pub(super) fn fill(&self) -> Result<(), BenchError> {
        let load = Load {
            write: true,
            random: false,
            block: 1 << 20,
            depth: 8,
        };
        self.load(load, &["--once"]).map(|_| ())
    }

    /// Has a replica rebuilt; returns how many seconds that took.
    pub(super) fn rebuild(&self, replica: &str) -> Result<f64, BenchError> {
        let mut command = self.command();
        command.args(["--rebuild", replica]);
        json("disk-load", &output("disk-load", &mut command)?)
    }
}

/// What a program prints, which is to succeed.
pub(super) fn output(name: &'static str, command: &mut Command) -> Result<String, BenchError> {
    let done = command.output().map_err(|source| BenchError::Host {
        what: format!("running {}", command.get_program().display()),
        source,
    })?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    Err(BenchError::Program {
        name,
        what: done.status.to_string(),
        output: String::from_utf8_lossy(&done.stderr).into_owned(),
    })
}

/// What JSON says that a program has printed.
pub(super) fn json<T: serde::de::DeserializeOwned>(
    name: &'static str,
    text: &str,
) -> Result<T, BenchError> {
    serde_json::from_str(text).map_err(|error| BenchError::Program {
        name,
        what: error.to_string(),
        output: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load {
        write: true,
        random: false,
        block: 128 << 10,
        depth: 64,
    };

    #[test]
    fn a_load_in_words() {
        let words = LOAD.arguments().join(" ");
        let expected = "--block 131072 --depth 64 --seconds 2 --write --sequential";
        assert_eq!(words, expected);
    }

    #[test]
    fn what_is_wanted() {
        let outcome = LoadOutcome {
            requests_per_second: 4096.0,
            mean_us: 250.0,
            bytes: 512 << 20,
            cpu_seconds: 0.5,
            frozen_ms: None,
        };
        let value = |want| LOAD.value(want, &outcome, 1.0);
        assert_eq!(value(Want::Latency), 250.0);
        assert_eq!(value(Want::Iops), 4096.0);
        assert_eq!(value(Want::Bandwidth), 512.0);
        assert_eq!(value(Want::Cpu), 3.0);
    }
}
