//! A process of Longhorn's, or of what stands in for it: what it prints is kept, and it ends with all it started.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{panicking, sleep};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::transcript::{Transcript, tail};
use crate::within;

/// A process in a group of its own. Dropped while a test fails, it shows the end of its log.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    output: Transcript,
    log: Transcript,
}

impl Process {
    /// Starts a command, which the log calls by `name`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub(super) fn start(name: String, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display()));
        Self {
            name,
            output: Transcript::follow(child.stdout.take()),
            log: Transcript::follow(child.stderr.take()),
            child,
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub(super) fn output(&self) -> String {
        self.output.text()
    }

    /// What it has logged so far.
    pub(super) fn log(&self) -> String {
        self.log.text()
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// When that cannot be told.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        match self.child.try_wait() {
            Ok(status) => status,
            Err(error) => panic!("waiting for {}: {error}", self.name),
        }
    }

    /// Sends it and what it started a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub(super) fn signal(&mut self, signal: Signal) {
        // Else the number may be another's.
        if let Some(status) = self.ended() {
            panic!("no {signal:?} for {}, which has ended: {status}", self.name);
        }
        let group = Pid::from_child(&self.child);
        if let Err(error) = kill_process_group(group, signal) {
            panic!("{signal:?} for {}: {error}", self.name);
        }
    }

    /// Waits for it to end, and for the last of what it says.
    ///
    /// # Panics
    /// When it does not end in time.
    pub(super) fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let end = Instant::now() + deadline;
        let status = loop {
            match self.ended() {
                Some(status) => break status,
                None if Instant::now() < end => sleep(Duration::from_millis(20)),
                None => panic!("{} does not end within {deadline:?}", self.name),
            }
        };
        let _ = within(Duration::from_secs(10), || {
            self.output.is_complete() && self.log.is_complete()
        });
        status
    }

    /// Waits until it is seen to do something, such as to "serve".
    ///
    /// # Panics
    /// When it ends instead, or does not in time.
    pub(super) fn wait_until(&mut self, what: &str, deadline: Duration, done: impl Fn() -> bool) {
        let end = Instant::now() + deadline;
        while !done() {
            if let Some(status) = self.ended() {
                panic!("{} ends instead, {status}: it was to {what}", self.name);
            }
            assert!(
                Instant::now() < end,
                "{} does not {what} within {deadline:?}",
                self.name
            );
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
        if panicking() {
            eprintln!(
                "--- {}:\n{}\n{}",
                self.name,
                tail(&self.output()),
                tail(&self.log())
            );
        }
    }
}
