//! Where a VM's consoles end when it runs in a terminal: standard input and output, or files.
//!
//! Guests write to the sinks from vCPU threads and device workers; the keyboard's thread writes to the guest.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use paddock_api::spec::{Console, ConsoleTarget};
use tokio::sync::mpsc;

use super::logging;
use crate::console::{ConsoleEnd, FileError, InputSwitch, open_file};
use crate::machine::resources::Consoles;
use crate::terminal::escape::Escape;
use crate::terminal::keyboard::Receiver;
use crate::terminal::{Command, EscapeKey, Keyboard, Output, RawMode, raw};

/// How long the end waits for somebody to read what the guest printed last.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);
/// Commands typed faster than they are obeyed are lost.
const COMMANDS: usize = 16;

/// A console that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// The file for the output.
    #[error(transparent)]
    File(#[from] FileError),
    /// A thread or a descriptor.
    #[error("setting up the terminal")]
    Host(#[from] io::Error),
}

/// The outer ends of a VM's consoles.
#[derive(Debug)]
pub struct Frontend {
    outputs: Vec<Output>,
    /// The keyboard of the console that has the terminal, if one has.
    input: Option<Arc<InputSwitch>>,
    escape: Option<EscapeKey>,
    active: Option<Active>,
}

/// The terminal while the guest has it. Dropped in this order.
#[derive(Debug)]
struct Active {
    _keyboard: Keyboard,
    raw: Option<RawMode>,
}

impl Frontend {
    /// Opens what `console` names. The terminal stays as it is until [`attach`](Self::attach).
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn open(
        console: &Console,
        escape: Option<EscapeKey>,
    ) -> Result<(Self, Consoles), FrontendError> {
        let mut frontend = Self {
            outputs: Vec::new(),
            input: None,
            escape,
            active: None,
        };
        let serial = frontend.end("serial", &console.serial)?;
        let hvc0 = match &console.hvc0 {
            ConsoleTarget::Off => None,
            target => Some(frontend.end("hvc0", target)?),
        };
        Ok((frontend, Consoles { serial, hvc0 }))
    }

    fn end(&mut self, name: &str, target: &ConsoleTarget) -> Result<ConsoleEnd, FrontendError> {
        let output = match target {
            ConsoleTarget::Off => return Ok(ConsoleEnd::nowhere()),
            ConsoleTarget::Terminal => Output::new(name, io::stdout())?,
            ConsoleTarget::File(path) => Output::new(name, open_file(path)?)?,
        };
        self.outputs.push(output.clone());
        let end = ConsoleEnd::new(Arc::new(output));
        if matches!(target, ConsoleTarget::Terminal) {
            self.input = Some(Arc::clone(&end.input));
        }
        Ok(end)
    }

    /// Gives the keyboard to the guest; on a terminal in raw mode. Gives the commands that are typed.
    ///
    /// # Errors
    /// When the terminal cannot be changed or the host gives no thread.
    pub fn attach(&mut self) -> Result<mpsc::Receiver<Command>, FrontendError> {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let stdin = io::stdin();
        let Some(input) = &self.input else {
            return Ok(commands);
        };
        let terminal = stdin.is_terminal();
        if terminal && !raw::is_our_terminal(&stdin) {
            tracing::info!("running in the background: the guest's console gets no input");
            return Ok(commands);
        }
        let escape = self.escape.filter(|_| terminal);
        let raw = if terminal {
            if let Some(key) = escape {
                logging::tell(&Escape::new(key).help());
            }
            Some(RawMode::enter(&stdin)?)
        } else {
            None
        };
        let receiver = Typed {
            input: Arc::clone(input),
            commands: sender,
        };
        let keyboard = Keyboard::start(duplicate(&stdin)?, escape, receiver)?;
        self.active = Some(Active {
            _keyboard: keyboard,
            raw,
        });
        Ok(commands)
    }

    /// Whether someone sits at the terminal.
    pub fn is_interactive(&self) -> bool {
        self.active
            .as_ref()
            .is_some_and(|active| active.raw.is_some())
    }

    /// The process goes on after it was suspended.
    pub fn resumed(&self) {
        if let Some(Active { raw: Some(raw), .. }) = &self.active {
            raw.renew();
        }
    }

    /// Writes what the guest printed last and gives the terminal back.
    pub fn close(mut self) {
        for output in &self.outputs {
            if !output.flush(FLUSH_DEADLINE) {
                tracing::debug!(?output, "not everything that the guest printed was read");
            }
        }
        logging::flush();
        self.active = None;
    }
}

/// Hands what is typed to the guest and to the command's task.
struct Typed {
    input: Arc<InputSwitch>,
    commands: mpsc::Sender<Command>,
}

impl Receiver for Typed {
    fn deliver(&mut self, bytes: &[u8]) -> usize {
        self.input.enqueue(bytes)
    }

    fn command(&mut self, command: Command) {
        if self.commands.try_send(command).is_err() {
            self.tell("the VM is busy with earlier commands");
        }
    }

    fn tell(&mut self, text: &str) {
        logging::tell(text);
    }
}

fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    // Above the standard descriptors.
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use paddock_api::spec::VmSpec;
    use rustix::fs::Mode;
    use serde_json::json;

    use super::*;

    fn open(console: &serde_json::Value) -> Result<(Frontend, Consoles), FrontendError> {
        let spec = json!({"boot": {"kernel": "k"}, "console": console});
        let spec = VmSpec::from_json(&spec.to_string()).unwrap();
        Frontend::open(&spec.console, None)
    }

    #[test]
    fn files_are_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let (serial, hvc0) = (dir.path().join("serial"), dir.path().join("hvc0"));
        std::fs::write(&serial, "before\n").unwrap();
        let (frontend, consoles) =
            open(&json!({"serial": {"file": serial}, "hvc0": {"file": hvc0}})).unwrap();
        consoles.serial.sink.write(b"after\n");
        consoles.hvc0.unwrap().sink.write(b"hello\n");
        assert!(!frontend.is_interactive());
        frontend.close();
        assert_eq!(std::fs::read(&serial).unwrap(), b"before\nafter\n");
        assert_eq!(std::fs::read(&hvc0).unwrap(), b"hello\n");
    }

    #[test]
    fn what_cannot_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for path in [dir.path(), &fifo, Path::new("/nonexistent/log")] {
            let error = open(&json!({"serial": {"file": path}})).unwrap_err();
            let expected = format!("console output to {}", path.display());
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn nothing_to_attach_to() {
        let (mut frontend, consoles) = open(&json!({"serial": "off"})).unwrap();
        assert!(consoles.hvc0.is_none());
        let mut commands = frontend.attach().unwrap();
        assert_eq!(
            commands.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        );
    }
}
