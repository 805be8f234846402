//! Logs: tracing to standard error, as text or as JSON lines.
//!
//! Lines come from any thread, also from vCPU threads, and standard error may be a terminal whose user pressed Ctrl-S. So they go
//! through an [`Output`] and never block. On a terminal, which may be in raw mode, they end in CR LF.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::args::{LogArgs, LogFormat, LogLevel};
use super::colours;
use crate::terminal::{Output, raw};

/// How long the end of the process waits for somebody to read the last lines.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// Where lines go; there is one standard error.
static STDERR: OnceLock<Stderr> = OnceLock::new();

#[derive(Debug)]
struct Stderr {
    output: Output,
    terminal: bool,
}

/// Starts to log, and makes a panic give the terminal back. The first call decides.
///
/// # Errors
/// When the host gives no thread.
pub fn start(args: LogArgs) -> io::Result<()> {
    let terminal = io::stderr().is_terminal();
    let output = Output::new("log", io::stderr())?;
    if STDERR.set(Stderr { output, terminal }).is_err() {
        return Ok(());
    }
    let level = match args.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(LogWriter)
        .with_target(level >= LevelFilter::DEBUG)
        .with_ansi(terminal && colours::wanted());
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    catch_panics();
    Ok(())
}

fn catch_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        raw::restore();
        flush();
        report(panic);
    }));
}

/// Tells the user something, in one line or several, between the log lines and the guest's output.
pub fn tell(text: &str) {
    LogWriter.line(text);
}

/// Waits for what was logged and told to be written, for a moment.
pub fn flush() {
    if let Some(stderr) = STDERR.get() {
        // Who does not read the last lines does not want them.
        let _ = stderr.output.flush(FLUSH_DEADLINE);
    }
}

/// Hands lines to [`STDERR`].
#[derive(Debug, Clone, Copy)]
struct LogWriter;

impl LogWriter {
    fn line(self, text: &str) {
        let _ = { self }.write(format!("{text}\n").as_bytes());
    }
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match STDERR.get() {
            Some(stderr) if stderr.terminal => {
                stderr.output.write(&with_carriage_returns(bytes));
            }
            Some(stderr) => stderr.output.write(bytes),
            // Before the start, or in a command that does not log.
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

/// Lines for a terminal that may be in raw mode by the time they are written: they begin at its left edge, whatever the guest was
/// printing, and end with CR LF. In the ordinary mode that looks the same.
fn with_carriage_returns(bytes: &[u8]) -> Vec<u8> {
    let mut lines = vec![b'\r'];
    for &byte in bytes {
        if byte == b'\n' {
            lines.push(b'\r');
        }
        lines.push(byte);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_get_carriage_returns() {
        assert_eq!(with_carriage_returns(b"a\nb\n"), b"\ra\r\nb\r\n");
    }
}
