//! Why a replica could not do something.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong with a replica, in words for people; engines look at some of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host said no.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// What is in the directory makes no sense.
    #[error("{}: {problem}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// It was asked for something that cannot be, or not now.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            doing,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// The whole of it, with what the host said, for those who get a text only.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Io { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }

    pub(crate) fn broken(path: &Path, problem: impl Into<String>) -> Self {
        Self::Broken {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    pub(crate) fn refused(problem: impl Into<String>) -> Self {
        Self::Refused(problem.into())
    }
}

/// What a call on a replica ends with.
pub type Result<T> = std::result::Result<T, Error>;
