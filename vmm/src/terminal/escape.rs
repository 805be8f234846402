//! The escape key: how someone whose keyboard belongs to the guest still talks to Paddock.
//!
//! A pure state machine: bytes in, [`Input`]s out. The key is a control character; what is typed after it is a command:
//!
//! | typed after the key | meaning |
//! |---|---|
//! | `q` | stop the VM |
//! | `p` | press its power button |
//! | `r` | reset it |
//! | `?` or `h` | show this |
//! | the key again, or the key without Ctrl | send the key to the guest |
//!
//! Anything else does nothing, so that a slip of the finger is harmless.

use std::fmt;
use std::str::FromStr;

/// The control character that introduces a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EscapeKey(u8);

impl Default for EscapeKey {
    /// Ctrl-], as in telnet and `virsh console`.
    fn default() -> Self {
        Self(0x1d)
    }
}

impl EscapeKey {
    /// The key without Ctrl: `]` for Ctrl-].
    fn plain(self) -> char {
        char::from(self.0 | 0x40).to_ascii_lowercase()
    }
}

impl fmt::Display for EscapeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ctrl-{}", self.plain())
    }
}

/// A text that names no control character.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write Ctrl and a letter or one of ] \\ ^ _, such as ctrl-a or ^]")]
pub struct NotAnEscapeKey;

impl FromStr for EscapeKey {
    type Err = NotAnEscapeKey;

    /// `ctrl-X` or `^X`, where X is a letter or one of `]`, `\`, `^`, `_`. Not the keys that are Tab, Enter and Escape.
    fn from_str(text: &str) -> Result<Self, NotAnEscapeKey> {
        let lower = text.to_ascii_lowercase();
        let rest = lower.strip_prefix("ctrl-").or(lower.strip_prefix('^'));
        let mut chars = rest.unwrap_or_default().chars();
        match (chars.next(), chars.next()) {
            (Some('i' | 'j' | 'm'), None) => Err(NotAnEscapeKey),
            (Some(key @ ('a'..='z' | ']' | '\\' | '^' | '_')), None) => u8::try_from(key)
                .map(|byte| Self(byte & 0x1f))
                .map_err(|_| NotAnEscapeKey),
            _ => Err(NotAnEscapeKey),
        }
    }
}

/// What someone asks of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Press its power button.
    PowerButton,
    /// Reset it.
    Reset,
    /// Stop it without asking the guest.
    Stop,
}

/// What came out of some typing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Bytes for the guest.
    Guest(Vec<u8>),
    /// A command for Paddock.
    Command(Command),
    /// The list of commands is wanted.
    Help,
}

/// Finds the escape key and its commands in what is typed.
#[derive(Debug, Clone)]
pub struct Escape {
    key: EscapeKey,
    pending: bool,
}

impl Escape {
    /// Nothing typed so far.
    #[must_use]
    pub fn new(key: EscapeKey) -> Self {
        Self {
            key,
            pending: false,
        }
    }

    /// One line about the commands.
    #[must_use]
    pub fn help(&self) -> String {
        let (key, plain) = (self.key, self.key.plain());
        let send = if matches!(plain, 'q' | 'p' | 'r' | 'h') {
            key.to_string()
        } else {
            plain.to_string()
        };
        format!(
            "Escape: {key} then q to stop the VM, p power button, r reset, {send} to send {key}, ? help"
        )
    }

    /// Takes what was typed; the end of `typed` may lie anywhere, also between the key and its command.
    pub fn feed(&mut self, typed: &[u8]) -> Vec<Input> {
        let mut inputs = Vec::new();
        let mut guest = Vec::new();
        for &byte in typed {
            if !self.pending {
                if byte == self.key.0 {
                    self.pending = true;
                } else {
                    guest.push(byte);
                }
                continue;
            }
            self.pending = false;
            let input = match byte {
                b'q' => Input::Command(Command::Stop),
                b'p' => Input::Command(Command::PowerButton),
                b'r' => Input::Command(Command::Reset),
                b'?' | b'h' => Input::Help,
                _ if byte == self.key.0 || char::from(byte) == self.key.plain() => {
                    guest.push(self.key.0);
                    continue;
                }
                _ => continue,
            };
            if !guest.is_empty() {
                inputs.push(Input::Guest(std::mem::take(&mut guest)));
            }
            inputs.push(input);
        }
        if !guest.is_empty() {
            inputs.push(Input::Guest(guest));
        }
        inputs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guest(bytes: &[u8]) -> Input {
        Input::Guest(bytes.to_vec())
    }

    fn feed(typed: &[u8]) -> Vec<Input> {
        Escape::new(EscapeKey::default()).feed(typed)
    }

    #[test]
    fn keys() {
        for (text, byte, shown) in [
            ("ctrl-]", 0x1d, "Ctrl-]"),
            ("^]", 0x1d, "Ctrl-]"),
            ("Ctrl-A", 1, "Ctrl-a"),
            ("^\\", 0x1c, "Ctrl-\\"),
            ("^^", 0x1e, "Ctrl-^"),
            ("^_", 0x1f, "Ctrl-_"),
        ] {
            let key: EscapeKey = text.parse().unwrap();
            assert_eq!((key.0, key.to_string().as_str()), (byte, shown));
        }
        for text in [
            "", "a", "ctrl-", "^", "ctrl-ab", "^[", "ctrl-i", "ctrl-m", "^é", "alt-a", "^1",
        ] {
            assert_eq!(text.parse::<EscapeKey>(), Err(NotAnEscapeKey), "{text}");
        }
    }

    #[test]
    fn commands() {
        assert_eq!(feed(b"ls\r"), [guest(b"ls\r")]);
        assert_eq!(
            feed(b"a\x1dpb\x1dr\x1d?\x1dq"),
            [
                guest(b"a"),
                Input::Command(Command::PowerButton),
                guest(b"b"),
                Input::Command(Command::Reset),
                Input::Help,
                Input::Command(Command::Stop),
            ]
        );
        assert_eq!(feed(b"a\x1d]b\x1d\x1dc"), [guest(b"a\x1db\x1dc")]);
        assert_eq!(
            feed(b"a\x1dxb"),
            [guest(b"ab")],
            "an unknown command does nothing"
        );
        assert_eq!(feed(b"\x1d"), []);
    }

    #[test]
    fn a_key_that_is_also_a_command_is_sent_by_doubling() {
        let mut escape = Escape::new("ctrl-q".parse().unwrap());
        assert_eq!(escape.feed(b"\x11q"), [Input::Command(Command::Stop)]);
        assert_eq!(escape.feed(b"\x11\x11"), [guest(b"\x11")]);
        assert!(escape.help().contains("Ctrl-q to send Ctrl-q"));
    }

    /// Guest bytes joined, so that results of different cuts compare.
    fn joined(inputs: Vec<Input>) -> Vec<Input> {
        let mut all: Vec<Input> = Vec::new();
        for input in inputs {
            match (all.last_mut(), input) {
                (Some(Input::Guest(last)), Input::Guest(bytes)) => last.extend(bytes),
                (_, input) => all.push(input),
            }
        }
        all
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            typed in prop::collection::vec(prop_oneof![Just(0x1d), Just(b'q'), Just(b']'), any::<u8>()], 0..40),
            cut in 0_usize..40,
        ) {
            let (first, second) = typed.split_at(cut.min(typed.len()));
            let mut escape = Escape::new(EscapeKey::default());
            let mut inputs = escape.feed(first);
            inputs.extend(escape.feed(second));
            prop_assert_eq!(joined(inputs), joined(feed(&typed)));
        }

        #[test]
        fn without_the_key_all_goes_to_the_guest(typed in prop::collection::vec(0x20_u8.., 1..40)) {
            prop_assert_eq!(feed(&typed), [Input::Guest(typed)]);
        }
    }
}
