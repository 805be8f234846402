//! Logs for the journal: it keeps times itself, and takes the severity from `<N>` in front of a line, as in `sd-daemon(3)`.

use std::ffi::OsStr;
use std::os::fd::AsFd;

/// How severe, by syslog's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Priority {
    /// Something that was asked for failed.
    Error = 3,
    /// Something is not as it should be.
    Warning = 4,
    /// Normal, and worth knowing.
    Info = 6,
    /// For those who look for a mistake.
    Debug = 7,
}

impl From<&tracing::Level> for Priority {
    fn from(level: &tracing::Level) -> Self {
        match *level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warning,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG | tracing::Level::TRACE => Self::Debug,
        }
    }
}

/// Whether `stream` is the one that the service manager has connected to the journal; `variable` is what `JOURNAL_STREAM` says, its
/// device and inode. One that was redirected since is another.
#[must_use]
pub fn is_journal(stream: impl AsFd, variable: Option<&OsStr>) -> bool {
    let numbers = variable
        .and_then(OsStr::to_str)
        .and_then(|text| text.split_once(':'));
    let Some((device, inode)) = numbers else {
        return false;
    };
    let (Ok(device), Ok(inode)) = (device.parse::<u64>(), inode.parse::<u64>()) else {
        return false;
    };
    rustix::fs::fstat(stream).is_ok_and(|stat| stat.st_dev == device && stat.st_ino == inode)
}

/// The text with its severity in front of every line: each is an entry of its own.
#[must_use]
pub fn with_priority(text: &[u8], priority: Priority) -> Vec<u8> {
    let prefix = [b'<', b'0' + priority as u8, b'>'];
    let mut lines = Vec::with_capacity(text.len() + prefix.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        lines.extend(prefix);
        lines.extend(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_stream_is_known_by_its_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let stream = File::create(directory.path().join("stream")).unwrap();
        let metadata = stream.metadata().unwrap();
        let (device, inode) = (metadata.dev(), metadata.ino());
        let is = |text: &str| is_journal(&stream, Some(OsStr::new(text)));
        assert!(is(&format!("{device}:{inode}")));
        for other in [
            format!("{device}:{}", inode + 1),
            format!("{}:{inode}", device + 1),
            String::new(),
            ":".to_owned(),
            format!("{device}"),
            format!("{device}:{inode}:"),
            format!("-1:{inode}"),
        ] {
            assert!(!is(&other), "{other}");
        }
        assert!(!is_journal(&stream, None));
    }

    #[test]
    fn every_line_has_its_severity() {
        let lines = with_priority(b"the guest crashed:\n  rip 0\n", Priority::Error);
        assert_eq!(lines, b"<3>the guest crashed:\n<3>  rip 0\n");
        assert_eq!(with_priority(b"x", Priority::Info), b"<6>x");
        assert_eq!(with_priority(b"", Priority::Info), b"");
        for (level, number) in [
            (tracing::Level::ERROR, b"<3>"),
            (tracing::Level::WARN, b"<4>"),
            (tracing::Level::INFO, b"<6>"),
            (tracing::Level::DEBUG, b"<7>"),
            (tracing::Level::TRACE, b"<7>"),
        ] {
            assert_eq!(with_priority(b"x", Priority::from(&level))[..3], *number);
        }
    }
}
