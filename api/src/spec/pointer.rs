//! JSON pointers (RFC 6901), the way every problem names its place in a document.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::problem::quoted;
use super::types::ValueError;

/// A place in a JSON document: `""` is the whole document, `/disks/0/path` a field of the first disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JsonPointer(String);

impl JsonPointer {
    /// The whole document.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// The pointer to a member of the object this one points to.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        let mut text = self.0.clone();
        text.push('/');
        text.push_str(&key.replace('~', "~0").replace('/', "~1"));
        Self(text)
    }

    /// The pointer to an element of the array this one points to.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}/{index}", self.0))
    }

    /// The pointer as RFC 6901 writes it. May hold any character that a key of the document held.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the whole document.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The pointer without its last segment, and that segment unescaped; `None` for the whole document.
    #[must_use]
    pub fn split_last(&self) -> Option<(Self, String)> {
        let (parent, last) = self.0.rsplit_once('/')?;
        Some((
            Self(parent.to_owned()),
            last.replace("~1", "/").replace("~0", "~"),
        ))
    }

    /// This place as seen from `other`, if it is there or inside it.
    #[must_use]
    pub fn relative_to(&self, other: &Self) -> Option<Self> {
        let inside = self.is_within(other).then(|| self.0.get(other.0.len()..));
        inside.flatten().map(|rest| Self(rest.to_owned()))
    }

    /// Whether this is `other` or a place inside it.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.0
            .strip_prefix(&other.0)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for JsonPointer {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() || text.starts_with('/') {
            Ok(Self(text.to_owned()))
        } else {
            Err(ValueError::malformed(format!(
                "{} is not a JSON pointer: it starts with \"/\" or is empty",
                quoted(text)
            )))
        }
    }
}

impl fmt::Display for JsonPointer {
    /// Fit for a terminal or a log: what a document's author put into a key cannot start a new line or an escape sequence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_splits() {
        let pointer = JsonPointer::root().key("a/b~c").index(3);
        assert_eq!(pointer.as_str(), "/a~1b~0c/3");
        let (parent, last) = pointer.split_last().unwrap();
        assert_eq!(last, "3");
        assert_eq!(parent.split_last().unwrap().1, "a/b~c");
        assert_eq!(JsonPointer::root().split_last(), None);
        assert_eq!("/a~1b~0c/3".parse(), Ok(pointer));
        assert_eq!("".parse(), Ok(JsonPointer::root()));
        assert!("disks/0".parse::<JsonPointer>().is_err());
    }

    #[test]
    fn within_is_by_segment() {
        let disk = JsonPointer::root().key("disks").index(1);
        assert!(disk.key("path").is_within(&disk));
        let path = disk.key("path").relative_to(&disk);
        assert_eq!(path, Some(JsonPointer::root().key("path")));
        assert_eq!(JsonPointer::root().relative_to(&disk), None);
        assert!(disk.is_within(&disk));
        assert!(disk.is_within(&JsonPointer::root()));
        assert!(!JsonPointer::root().key("disks").index(12).is_within(&disk));
    }

    #[test]
    fn display_is_safe_on_a_terminal() {
        assert_eq!(
            JsonPointer::root().key("a\x1b[2J\n").to_string(),
            "/a\\u{1b}[2J\\n"
        );
    }
}
