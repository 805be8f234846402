//! The terminal of `paddock run`: the guest's console is on it, raw, with a key to leave by.
//!
//! The keyboard's thread writes to the guest; what the guest prints goes through the consoles' [`ConsoleEnds`].

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::logging;
use crate::console::{ConsoleEnds, InputSwitch};
use crate::terminal::escape::Escape;
use crate::terminal::keyboard::Receiver;
use crate::terminal::{Command, EscapeKey, Keyboard, RawMode, raw};

/// Commands typed faster than they are obeyed are lost.
const COMMANDS: usize = 16;

/// A VM's consoles as the one who started it has them.
#[derive(Debug)]
pub struct Frontend {
    ends: Arc<ConsoleEnds>,
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
    /// The terminal stays as it is until [`attach`](Self::attach).
    pub fn new(ends: Arc<ConsoleEnds>, escape: Option<EscapeKey>) -> Self {
        Self {
            ends,
            escape,
            active: None,
        }
    }

    /// Gives the keyboard to the guest; on a terminal in raw mode. Gives the commands that are typed.
    ///
    /// # Errors
    /// When the terminal cannot be changed or the host gives no thread.
    pub fn attach(&mut self) -> io::Result<mpsc::Receiver<Command>> {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let stdin = io::stdin();
        let Some(input) = &self.ends.terminal else {
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
        self.ends.close();
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
    use super::*;

    #[test]
    fn nothing_to_attach_to() {
        let mut frontend = Frontend::new(Arc::new(ConsoleEnds::nowhere()), None);
        let mut commands = frontend.attach().unwrap();
        assert!(!frontend.is_interactive());
        assert_eq!(
            commands.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        );
    }
}
