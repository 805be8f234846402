//! Longhorn's command line, for an engine of Longhorn's or any other that serves its ControllerService.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use super::process::Process;
use super::program;

/// How long a command may take. A rebuild waits three seconds for each file.
const DEADLINE: Duration = Duration::from_secs(180);

/// The command line for one engine.
#[derive(Debug, Clone)]
pub struct Cli {
    controller: SocketAddr,
    volume: String,
}

/// A replica as `ls-replica` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// `tcp://` and where it serves gRPC.
    pub address: String,
    /// `RW`, `WO` or `ERR`.
    pub mode: String,
    /// Its disk files from the head down, unless it is in error.
    pub chain: Vec<String>,
}

impl Cli {
    /// For the engine that serves gRPC there.
    #[must_use]
    pub fn new(controller: SocketAddr, volume: &str) -> Self {
        Self {
            controller,
            volume: volume.to_owned(),
        }
    }

    /// Runs a command and returns what it printed.
    ///
    /// # Panics
    /// When it fails, or is not done in time.
    #[track_caller]
    pub fn run<const N: usize>(&self, arguments: [&str; N]) -> String {
        match self.try_run(arguments) {
            Ok(output) => output,
            Err(log) => panic!("longhorn {}: {log}", arguments.join(" ")),
        }
    }

    /// Runs a command and returns what it printed.
    ///
    /// # Errors
    /// What it logged, when it fails.
    ///
    /// # Panics
    /// When it is not done in time.
    #[track_caller]
    pub fn try_run<const N: usize>(&self, arguments: [&str; N]) -> Result<String, String> {
        let mut command = Command::new(program());
        command
            .args(["--url", &self.controller.to_string()])
            .args(["--volume-name", &self.volume])
            .args(arguments);
        let name = format!("longhorn {}", arguments.join(" "));
        let mut process = Process::start(name, &mut command);
        let status = process.wait(DEADLINE);
        match status.success() {
            true => Ok(process.output()),
            false => Err(process.log()),
        }
    }

    /// The engine's replicas.
    ///
    /// # Panics
    /// When it does not tell.
    #[must_use]
    #[track_caller]
    pub fn replicas(&self) -> Vec<Listed> {
        listed(&self.run(["ls-replica"]))
    }

    /// Has the engine rebuild a replica that is not open, and waits until it is done.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn add_replica(&self, address: &str, size: u64) {
        let size = size.to_string();
        self.run([
            "add-replica",
            "--size",
            &size,
            "--current-size",
            &size,
            address,
        ]);
    }
}

/// Reads the table that `ls-replica` prints, which has a line of names on top.
fn listed(table: &str) -> Vec<Listed> {
    let rows = table.lines().skip(1);
    rows.map(|row| {
        let mut words = row.split_whitespace().map(str::to_owned);
        let (Some(address), Some(mode)) = (words.next(), words.next()) else {
            panic!("no replica: {row:?}");
        };
        let chain = words
            .map(|word| word.trim_matches(['[', ']']).to_owned())
            .collect();
        Listed {
            address,
            mode,
            chain,
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_replicas() {
        let table = "ADDRESS               MODE CHAIN\n\
            tcp://127.0.0.1:22000 RW   [volume-head-001.img volume-snap-a.img]\n\
            tcp://127.0.0.1:22010 ERR  \n";
        let rows = listed(table);
        let [good, bad] = rows.as_slice() else {
            panic!("{rows:?}");
        };
        assert_eq!(good.address, "tcp://127.0.0.1:22000");
        assert_eq!(good.mode, "RW");
        assert_eq!(good.chain, ["volume-head-001.img", "volume-snap-a.img"]);
        assert_eq!((bad.mode.as_str(), bad.chain.len()), ("ERR", 0));
    }
}
