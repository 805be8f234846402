//! The process of a VMM that is measured, with its guest, and what both print.

use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use tempfile::NamedTempFile;

use super::BenchError;

/// How long a guest may take to get there. Debian by firmware takes two minutes in the lab of a machine that is busy.
const BOOT_DEADLINE: Duration = Duration::from_secs(300);
/// Lines of output shown when something goes wrong.
const SHOWN: usize = 30;

/// A line that a VMM or its guest printed.
#[derive(Debug)]
pub(super) struct Line {
    /// How long after the VMM's start it was complete.
    pub(super) after: Duration,
    pub(super) text: String,
}

/// A VMM with its guest; dropping it ends both.
#[derive(Debug)]
pub(super) struct Running {
    vmm: &'static str,
    child: Child,
    lines: Receiver<Line>,
    _kept: Option<NamedTempFile>,
}

impl Running {
    /// Runs a command, with `kept` for as long as that lives.
    pub(super) fn start(
        vmm: &'static str,
        mut command: Command,
        kept: Option<NamedTempFile>,
    ) -> io::Result<Self> {
        let began = Instant::now();
        let mut child = command.spawn()?;
        Ok(Self {
            vmm,
            lines: lines_of(&mut child, began),
            child,
            _kept: kept,
        })
    }

    /// The VMM's process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) -> Result<(), BenchError> {
        let process = rustix::process::Pid::from_child(&self.child);
        kill_process(process, signal).map_err(|error| BenchError::Host {
            what: format!("sending {signal:?} to a VMM"),
            source: error.into(),
        })
    }

    /// Waits for a line with `text`, which comes after those that were waited for before.
    pub(super) fn wait_for(&mut self, text: &str) -> Result<Line, BenchError> {
        let end = Instant::now() + BOOT_DEADLINE;
        let mut seen = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let what = match self.lines.recv_timeout(left) {
                Ok(line) if line.text.contains(text) => return Ok(line),
                Ok(line) => {
                    seen.push(line.text);
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {
                    format!("no {text:?} after {BOOT_DEADLINE:?}")
                }
                Err(RecvTimeoutError::Disconnected) => format!("it ended before {text:?}"),
            };
            let output = seen.split_off(seen.len().saturating_sub(SHOWN)).join("\n");
            return Err(BenchError::Program {
                name: self.vmm,
                what,
                output,
            });
        }
    }
}

/// What a process prints, line by line.
fn lines_of(child: &mut Child, began: Instant) -> Receiver<Line> {
    let (sender, lines) = channel();
    let pipes: [Option<Box<dyn io::Read + Send>>; 2] = [
        child.stdout.take().map(|pipe| Box::new(pipe) as _),
        child.stderr.take().map(|pipe| Box::new(pipe) as _),
    ];
    for pipe in pipes.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || send_lines(pipe, began, &sender));
    }
    lines
}

/// Sends what comes out of a pipe, until one of its ends is closed.
fn send_lines(pipe: impl io::Read, began: Instant, sender: &Sender<Line>) {
    for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
        let line = Line {
            after: began.elapsed(),
            text: String::from_utf8_lossy(&line).into_owned(),
        };
        if sender.send(line).is_err() {
            break;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What it says when it has measured something (guests/probe).
const MEASURED: &str = "paddock-probe: measured";

/// A VMM whose guest measures all the time. Its process is stopped except while it is asked.
#[derive(Debug)]
pub(super) struct Measuring(Running);

impl Measuring {
    /// Stops a guest that was told to measure, once it does.
    pub(super) fn new(mut running: Running) -> Result<Self, BenchError> {
        running.wait_for(MEASURED)?;
        running.signal(Signal::STOP)?;
        Ok(Self(running))
    }

    /// What the guest measures now.
    pub(super) fn value(&mut self) -> Result<f64, BenchError> {
        // Said after the last value was taken.
        self.0.lines.try_iter().for_each(drop);
        self.0.signal(Signal::CONT)?;
        // The first one has the time in it for which the process was stopped.
        self.0.wait_for(MEASURED)?;
        let line = self.0.wait_for(MEASURED)?.text;
        self.0.signal(Signal::STOP)?;
        let number = line.rsplit(' ').next().map(str::trim);
        let number = number.and_then(|number| number.parse().ok());
        number.ok_or_else(|| BenchError::Program {
            name: self.0.vmm,
            what: "the guest measured no number".to_owned(),
            output: line,
        })
    }
}
