//! Opens what a VM's spec says its consoles end in, and closes it with the VM.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use paddock_api::spec::{Console, ConsoleLog, ConsoleTarget};
use paddock_devices::console::ConsoleSink;
use parking_lot::Mutex;

use super::hub::Hub;
use super::place::{FileError, SocketError, open_file, open_socket};
use super::{ConsoleEnd, InputSwitch, RotatingLog};
use crate::driver::Held;
use crate::systemd::descriptors::Descriptors;
use crate::systemd::inherited::inherited;
use crate::terminal::Output;

/// How long the end waits for what the guest printed last to be read and written.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// A console that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("console {console}")]
pub struct ConsoleError {
    /// Its field in the spec's `console`.
    pub console: &'static str,
    /// Why not.
    pub source: EndError,
}

/// Why a console cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The file for the output.
    #[error(transparent)]
    File(#[from] FileError),
    /// The log.
    #[error("console log {path}")]
    Log {
        /// Its path.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The socket.
    #[error("console socket")]
    Socket(#[from] SocketError),
    /// A thread.
    #[error("starting a console's thread")]
    Host(#[from] io::Error),
}

/// A VM's consoles with what they end in. Closed or dropped, what the guest printed last is still written, viewers are hung up on, and sockets are
/// removed.
#[derive(Debug)]
pub struct ConsoleEnds {
    /// The serial port's.
    pub serial: ConsoleEnd,
    /// The virtio console's, if there is one.
    pub hvc0: Option<ConsoleEnd>,
    /// The keyboard of the console that has the terminal, if one has.
    pub terminal: Option<Arc<InputSwitch>>,
    outputs: Vec<Output>,
    hubs: Mutex<Vec<Hub>>,
}

impl ConsoleEnds {
    /// Opens what `console` names. Nothing is read from the terminal. What is left to be written when this is dropped keeps `held`.
    ///
    /// # Errors
    /// When a file cannot be opened or a socket not be made.
    pub fn open(console: &Console, held: Option<&Held>) -> Result<Self, ConsoleError> {
        let mut opening = Opening {
            held,
            terminal: None,
            outputs: Vec::new(),
            hubs: Vec::new(),
        };
        let log = console.serial_log.as_ref();
        let serial = opening.end("serial", &console.serial)?;
        let serial = opening.logged("serial_log", serial, log)?;
        let hvc0 = if console.has_hvc0() {
            let end = opening.end("hvc0", &console.hvc0)?;
            Some(opening.logged("hvc0_log", end, console.hvc0_log.as_ref())?)
        } else {
            None
        };
        Ok(Self {
            serial,
            hvc0,
            terminal: opening.terminal,
            outputs: opening.outputs,
            hubs: Mutex::new(opening.hubs),
        })
    }

    /// Consoles that print nowhere, and no virtio console.
    #[must_use]
    pub fn nowhere() -> Self {
        Self {
            serial: ConsoleEnd::nowhere(),
            hvc0: None,
            terminal: None,
            outputs: Vec::new(),
            hubs: Mutex::default(),
        }
    }

    /// Writes what the guest printed last, hangs up on viewers, removes sockets. Takes no longer than a few seconds.
    pub fn close(&self) {
        let deadline = Instant::now() + FLUSH_DEADLINE;
        let hubs = std::mem::take(&mut *self.hubs.lock());
        for hub in hubs {
            hub.close(deadline);
        }
        for output in &self.outputs {
            if !output.flush(deadline.saturating_duration_since(Instant::now())) {
                tracing::debug!(?output, "not everything that the guest printed was read");
            }
        }
    }
}

impl Drop for ConsoleEnds {
    fn drop(&mut self) {
        self.close();
    }
}

/// Sinks and the way in of a console that is being opened.
type Parts = (Vec<Arc<dyn ConsoleSink>>, Arc<InputSwitch>);

/// The descriptors that were passed to the process.
fn passed() -> &'static Descriptors {
    &inherited().descriptors
}

struct Opening<'a> {
    held: Option<&'a Held>,
    terminal: Option<Arc<InputSwitch>>,
    outputs: Vec<Output>,
    hubs: Vec<Hub>,
}

impl Opening<'_> {
    fn end(
        &mut self,
        console: &'static str,
        target: &ConsoleTarget,
    ) -> Result<Parts, ConsoleError> {
        self.target(console, target)
            .map_err(|source| ConsoleError { console, source })
    }

    fn target(&mut self, name: &str, target: &ConsoleTarget) -> Result<Parts, EndError> {
        let input = Arc::<InputSwitch>::default();
        let sinks = match target {
            ConsoleTarget::Off => Vec::new(),
            ConsoleTarget::Terminal => {
                self.terminal = Some(Arc::clone(&input));
                vec![self.output(name, io::stdout())?]
            }
            ConsoleTarget::File(path) => {
                let user = format!("/console/{name}/file");
                let file = self.file(open_file(path, &user, passed())?);
                vec![self.output(name, file)?]
            }
            ConsoleTarget::Socket(path) => {
                let user = format!("/console/{name}/socket");
                let socket = open_socket(path, &user, passed())?;
                let hub = Hub::start(name, socket, Arc::clone(&input))?;
                let sink = hub.sink();
                self.hubs.push(hub);
                vec![sink]
            }
        };
        Ok((sinks, input))
    }

    fn logged(
        &mut self,
        console: &'static str,
        (mut sinks, input): Parts,
        log: Option<&ConsoleLog>,
    ) -> Result<ConsoleEnd, ConsoleError> {
        if let Some(log) = log {
            let sink = self.log(console, log);
            sinks.push(sink.map_err(|source| ConsoleError { console, source })?);
        }
        Ok(ConsoleEnd::new(sinks, input))
    }

    fn log(&mut self, name: &str, log: &ConsoleLog) -> Result<Arc<dyn ConsoleSink>, EndError> {
        let file = RotatingLog::open(log).map_err(|source| EndError::Log {
            path: log.path.display().to_string(),
            source,
        })?;
        let file = self.file(file);
        Ok(self.output(name, file)?)
    }

    fn file<W>(&self, file: W) -> HeldFile<W> {
        HeldFile {
            file,
            _held: self.held.cloned(),
        }
    }

    fn output(
        &mut self,
        name: &str,
        writer: impl Write + Send + 'static,
    ) -> io::Result<Arc<dyn ConsoleSink>> {
        let output = Output::new(name, writer)?;
        self.outputs.push(output.clone());
        Ok(Arc::new(output))
    }
}

/// A console's file, which counts as held until all that the guest printed is in it.
struct HeldFile<W> {
    file: W,
    _held: Option<Held>,
}

impl<W: Write> Write for HeldFile<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use paddock_api::spec::VmSpec;
    use rustix::fs::{FileType, Mode};
    use serde_json::json;

    use super::*;

    fn open(console: &serde_json::Value, held: &Held) -> Result<ConsoleEnds, ConsoleError> {
        let spec = json!({"boot": {"kernel": "k"}, "console": console});
        let spec = VmSpec::from_json(&spec.to_string()).unwrap();
        ConsoleEnds::open(&spec.console, Some(held))
    }

    #[test]
    fn files_are_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let (serial, hvc0) = (dir.path().join("serial"), dir.path().join("hvc0"));
        std::fs::write(&serial, "before\n").unwrap();
        let console = json!({"serial": {"file": serial}, "hvc0": {"file": hvc0}});
        let ends = open(&console, &Held::new().0).unwrap();
        ends.serial.sink.write(b"after\n");
        ends.hvc0.as_ref().unwrap().sink.write(b"hello\n");
        ends.close();
        assert_eq!(std::fs::read(&serial).unwrap(), b"before\nafter\n");
        assert_eq!(std::fs::read(&hvc0).unwrap(), b"hello\n");
    }

    #[test]
    fn what_cannot_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
        for path in [dir.path(), &fifo, Path::new("/nonexistent/log")] {
            let error = open(&json!({"serial": {"file": path}}), &Held::new().0).unwrap_err();
            assert_eq!(error.console, "serial");
            let expected = format!("console output to {}", path.display());
            assert_eq!(error.source.to_string(), expected);
        }
    }

    #[tokio::test]
    async fn what_the_guest_printed_is_written_before_all_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let (held, released) = Held::new();
        let ends = open(&json!({"serial": {"file": log}}), &held).unwrap();
        drop(held);
        let text = vec![b'x'; 200_000];
        ends.serial.sink.write(&text);
        drop(ends);
        released.wait().await;
        assert_eq!(std::fs::read(&log).unwrap(), text);
    }
}
