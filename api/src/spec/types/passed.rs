//! Descriptors that were passed to the process, where a path or a name would stand.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::super::problem::quoted;
use super::ValueError;

/// What stands before a number or a name.
const PREFIX: &str = "fd:";
/// The first number: those below are standard input, output and error.
const FIRST: i32 = 3;
/// systemd's limit, in bytes.
const MAX_NAME: usize = 255;

/// A descriptor that is open when the process starts: `fd:N` by its number, 3 or more, or `fd:NAME` by its name in
/// `LISTEN_FDNAMES`, of printable ASCII characters without `:`, `+` and `/`.
///
/// A file whose name looks like that is `./fd:N`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PassedFd {
    /// By its number.
    Number(i32),
    /// By its name.
    Name(String),
}

impl PassedFd {
    /// What a text stands for; `None` if it is not about a descriptor.
    ///
    /// # Errors
    /// When it is about one that cannot be.
    #[must_use]
    pub fn in_text(text: &str) -> Option<Result<Self, ValueError>> {
        text.starts_with(PREFIX).then(|| text.parse())
    }

    /// What a path stands for; `None` if it is not about a descriptor.
    ///
    /// # Errors
    /// When it is about one that cannot be.
    #[must_use]
    pub fn in_path(path: &Path) -> Option<Result<Self, ValueError>> {
        let bytes = path.as_os_str().as_encoded_bytes();
        bytes.starts_with(PREFIX.as_bytes()).then(|| {
            let text = path.as_os_str().to_string_lossy();
            if OsStr::new(&*text) == path.as_os_str() {
                text.parse()
            } else {
                Err(malformed(&text))
            }
        })
    }
}

impl FromStr for PassedFd {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let which = text
            .strip_prefix(PREFIX)
            .filter(|which| (1..=MAX_NAME).contains(&which.len()))
            .ok_or_else(|| malformed(text))?;
        if which.bytes().all(|byte| byte.is_ascii_digit()) {
            return match which.parse() {
                Ok(number) if number < FIRST => Err(ValueError::out_of_range(format!(
                    "{} is standard input, output or error; pass a descriptor from {FIRST} on",
                    quoted(text)
                ))),
                Ok(number) => Ok(Self::Number(number)),
                Err(_) => Err(malformed(text)),
            };
        }
        let usable = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b':' | b'+' | b'/');
        if which.bytes().all(usable) && !which.starts_with('-') {
            Ok(Self::Name(which.to_owned()))
        } else {
            Err(malformed(text))
        }
    }
}

impl fmt::Display for PassedFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{PREFIX}{number}"),
            Self::Name(name) => write!(f, "{PREFIX}{name}"),
        }
    }
}

/// The queues of a tap, each a passed descriptor: `fd:N`, or `fd:N+M+…` for several. The first carries the first queue pair.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PassedTap(Vec<PassedFd>);

impl PassedTap {
    /// What a text stands for; `None` if it is not about descriptors.
    ///
    /// # Errors
    /// When it is about some that cannot be.
    #[must_use]
    pub fn in_text(text: &str) -> Option<Result<Self, ValueError>> {
        text.starts_with(PREFIX).then(|| text.parse())
    }

    /// The descriptors, at least one.
    #[must_use]
    pub fn queues(&self) -> &[PassedFd] {
        &self.0
    }
}

impl FromStr for PassedTap {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let list = text.strip_prefix(PREFIX).ok_or_else(|| malformed(text))?;
        let queues = list
            .split('+')
            .map(|which| format!("{PREFIX}{which}").parse());
        queues.collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for PassedTap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, queue) in self.0.iter().enumerate() {
            let text = queue.to_string();
            match index {
                0 => f.write_str(&text)?,
                _ => write!(f, "+{}", &text[PREFIX.len()..])?,
            }
        }
        Ok(())
    }
}

fn malformed(text: &str) -> ValueError {
    ValueError::malformed(format!(
        "{} is not a passed descriptor: fd:N with a number from {FIRST} on, or fd:NAME with a name in LISTEN_FDNAMES; a file of \
         such a name is ./fd:…",
        quoted(text)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names() {
        for (text, expected) in [
            ("fd:3", PassedFd::Number(3)),
            ("fd:1023", PassedFd::Number(1023)),
            ("fd:api", PassedFd::Name("api".to_owned())),
            (
                "fd:paddock@web.socket",
                PassedFd::Name("paddock@web.socket".to_owned()),
            ),
        ] {
            assert_eq!(text.parse(), Ok(expected.clone()));
            assert_eq!(expected.to_string(), text);
            assert_eq!(PassedFd::in_path(Path::new(text)), Some(Ok(expected)));
        }
    }

    #[test]
    fn the_queues_of_a_tap() {
        for (text, count) in [("fd:3", 1), ("fd:net0", 1), ("fd:3+4+net", 3)] {
            let tap = PassedTap::in_text(text).unwrap().unwrap();
            assert_eq!(tap.queues().len(), count);
            assert_eq!(tap.to_string(), text);
        }
        assert_eq!(PassedTap::in_text("tap0"), None);
        for text in ["fd:", "fd:3+", "fd:+3", "fd:3+1", "fd:3++4", "fd:3+fd:4"] {
            assert!(PassedTap::in_text(text).unwrap().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_none() {
        for text in ["", "3", "./fd:3", "/fd:3", "FD:3", "fd"] {
            assert_eq!(PassedFd::in_text(text), None, "{text}");
            assert_eq!(PassedFd::in_path(Path::new(text)), None, "{text}");
        }
        let long = format!("fd:{}", "x".repeat(256));
        for text in [
            "fd:",
            "fd:-1",
            "fd:2147483648",
            "fd:a b",
            "fd:ä",
            "fd:3+4",
            "fd:a:b",
            "fd:/a",
            &long,
        ] {
            let error = PassedFd::in_text(text).unwrap().unwrap_err();
            assert!(error.detail.contains("fd:NAME"), "{text}: {error}");
        }
        for text in ["fd:0", "fd:1", "fd:2", "fd:002"] {
            let error = text.parse::<PassedFd>().unwrap_err();
            assert!(error.detail.contains("standard input"), "{text}: {error}");
        }
    }
}
