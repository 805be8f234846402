//! Logs: tracing to standard error, as text or as JSON lines.
//!
//! Lines come from any thread, also from vCPU threads, and standard error may be a terminal whose user pressed Ctrl-S. So they go
//! through an [`Output`] and never block. On a terminal, which may be in raw mode, they end in CR LF. For the journal they carry their
//! severity, and neither times nor colours.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use tracing::Metadata;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::args::{LogArgs, LogFormat, LogLevel};
use super::colours;
use crate::systemd::inherited::inherited;
use crate::systemd::journal::{self, Priority};
use crate::terminal::{Output, raw};

/// How long the end of the process waits for somebody to read the last lines.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// Where lines go; there is one standard error.
static STDERR: OnceLock<Stderr> = OnceLock::new();

#[derive(Debug)]
struct Stderr {
    output: Output,
    reader: Reader,
}

/// Who reads standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Terminal,
    Journal,
    Other,
}

impl Reader {
    fn find() -> Self {
        let stderr = io::stderr();
        if stderr.is_terminal() {
            Self::Terminal
        } else if journal::is_journal(&stderr, std::env::var_os("JOURNAL_STREAM").as_deref()) {
            Self::Journal
        } else {
            Self::Other
        }
    }

    /// The text as this reader wants it.
    fn form(self, text: &[u8], priority: Priority) -> Cow<'_, [u8]> {
        match self {
            Self::Terminal => with_carriage_returns(text).into(),
            Self::Journal => journal::with_priority(text, priority).into(),
            Self::Other => text.into(),
        }
    }
}

/// Starts to log, and makes a panic give the terminal back. The first call decides.
///
/// # Errors
/// When the host gives no thread.
pub fn start(args: LogArgs) -> io::Result<()> {
    let reader = Reader::find();
    let output = Output::new("log", io::stderr())?;
    if STDERR.set(Stderr { output, reader }).is_err() {
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
        .with_writer(LogMaker)
        .with_target(level >= LevelFilter::DEBUG)
        .with_ansi(reader == Reader::Terminal && colours::wanted());
    match args.log_format {
        // The journal has the time, and the severity as a field.
        LogFormat::Text if reader == Reader::Journal => {
            builder.without_time().with_level(false).init();
        }
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    catch_panics();
    for remark in &inherited().remarks {
        tracing::warn!("the environment: {remark}");
    }
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
    LogWriter(Priority::Info).line(text);
}

/// Tells the user what went wrong.
pub fn tell_error(text: &str) {
    LogWriter(Priority::Error).line(text);
}

/// Waits for what was logged and told to be written, for a moment.
pub fn flush() {
    if let Some(stderr) = STDERR.get() {
        // Who does not read the last lines does not want them.
        let _ = stderr.output.flush(FLUSH_DEADLINE);
    }
}

/// Hands lines of one severity to [`STDERR`].
#[derive(Debug, Clone, Copy)]
struct LogWriter(Priority);

impl LogWriter {
    fn line(self, text: &str) {
        let _ = { self }.write(format!("{text}\n").as_bytes());
    }
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match STDERR.get() {
            Some(stderr) => stderr.output.write(&stderr.reader.form(bytes, self.0)),
            // Before the start, or in a command that does not log; the terminal is not raw.
            None => match Reader::find() {
                Reader::Terminal => io::stderr().write_all(bytes)?,
                reader => io::stderr().write_all(&reader.form(bytes, self.0))?,
            },
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a [`LogWriter`] for each event.
#[derive(Debug, Clone, Copy)]
struct LogMaker;

impl<'a> MakeWriter<'a> for LogMaker {
    type Writer = LogWriter;

    fn make_writer(&'a self) -> LogWriter {
        LogWriter(Priority::Info)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> LogWriter {
        LogWriter(Priority::from(metadata.level()))
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

    #[test]
    fn each_reader_gets_its_form() {
        let form = |reader: Reader| reader.form(b"a\nb\n", Priority::Warning).into_owned();
        assert_eq!(form(Reader::Terminal), b"\ra\r\nb\r\n");
        assert_eq!(form(Reader::Journal), b"<4>a\n<4>b\n");
        assert_eq!(form(Reader::Other), b"a\nb\n");
    }

    #[test]
    fn an_event_has_the_severity_of_its_level() {
        let made = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
        let seen = std::sync::Arc::clone(&made);
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            .with_writer(Spy(seen))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!("a");
            tracing::warn!("b");
            tracing::info!("c");
            tracing::debug!("d");
        });
        let expected = [
            Priority::Error,
            Priority::Warning,
            Priority::Info,
            Priority::Debug,
        ];
        assert_eq!(*made.lock(), expected);
    }

    /// Remembers the severities, and throws the lines away.
    struct Spy(std::sync::Arc<parking_lot::Mutex<Vec<Priority>>>);

    impl<'a> MakeWriter<'a> for Spy {
        type Writer = io::Sink;

        fn make_writer(&'a self) -> io::Sink {
            io::sink()
        }

        fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> io::Sink {
            self.0.lock().push(LogMaker.make_writer_for(metadata).0);
            io::sink()
        }
    }
}
