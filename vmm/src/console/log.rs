//! A log of what a console prints, in files of bounded size and number.
//!
//! When `PATH` is full it becomes `PATH.1`, the former `PATH.1` becomes `PATH.2`, and so on; the oldest goes. Files begin at a line's start
//! where lines are of a usual length. On the thread of an [`Output`](crate::terminal::Output), whose bounded buffer keeps a slow disk away
//! from the guest. The guest chooses all bytes and how fast: the disk space it can take is `size` × `files`.
//!
//! What goes wrong is reported when it begins and when it is over, not for each line, and never ends the console: the file is opened anew a
//! second later, and where output is missing the log says how much. So a full disk that has room again, and a file that somebody moved
//! away, need no attention.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use paddock_api::spec::ConsoleLog;
use paddock_devices::throttle::Throttle;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// How long after an error the file is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// A file that has less room than this is left for the next when a line does not fit.
const LINE: u64 = 4096;

/// A log in rotated files. Writing to it never fails.
#[derive(Debug)]
pub struct RotatingLog {
    spec: ConsoleLog,
    file: Option<OpenFile>,
    /// Bytes that could not be written and of which the log does not tell yet.
    lost: u64,
    /// After an error: not before then.
    retry_at: Option<Instant>,
    /// What goes wrong and has been reported: it is not reported again before it is over.
    reported: Option<io::ErrorKind>,
    throttle: Throttle,
}

/// The present file.
#[derive(Debug)]
struct OpenFile {
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    length: u64,
    at_line_start: bool,
}

impl RotatingLog {
    /// Opens the log, to be continued where it ends.
    ///
    /// # Errors
    /// When the file cannot be opened or is not a regular one.
    pub fn open(spec: &ConsoleLog) -> io::Result<Self> {
        Ok(Self {
            file: Some(OpenFile::open(&spec.path)?),
            spec: spec.clone(),
            lost: 0,
            retry_at: None,
            reported: None,
            throttle: Throttle::new(),
        })
    }

    /// Writes all of `bytes`; what cannot be written is counted.
    fn store(&mut self, mut bytes: &[u8]) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            self.lost = self.lost.saturating_add(as_u64(bytes.len()));
            return;
        }
        self.retry_at = None;
        match self.tell_lost().and_then(|()| self.put(&mut bytes)) {
            Ok(()) => {
                if self.reported.take().is_some() {
                    tracing::info!(path = %self.spec.path.display(), "the console's log goes on");
                }
            }
            Err(error) => {
                self.file = None;
                self.lost = self.lost.saturating_add(as_u64(bytes.len()));
                self.retry_at = Some(Instant::now() + RETRY);
                self.report(&error);
            }
        }
    }

    fn report(&mut self, error: &io::Error) {
        if self.reported == Some(error.kind()) {
            return;
        }
        // A disk that is full every other moment makes no more lines than this.
        if let Some(held_back) = self.throttle.pass() {
            let path = self.spec.path.display();
            tracing::warn!(%path, %error, held_back, "the console's log loses output until this is mended");
            self.reported = Some(error.kind());
        }
    }

    fn tell_lost(&mut self) -> io::Result<()> {
        if self.lost > 0 {
            let text = format!(
                "\r\n[paddock: {} bytes of output were lost here]\r\n",
                self.lost
            );
            self.put(&mut text.as_bytes())?;
            self.lost = 0;
        }
        Ok(())
    }

    /// Writes `bytes`, into as many files as it takes; after an error, they are what was not written.
    fn put(&mut self, bytes: &mut &[u8]) -> io::Result<()> {
        let size = self.spec.size.bytes();
        if self
            .file
            .as_ref()
            .is_some_and(|open| !open.is_at(&self.spec.path))
        {
            self.file = None;
        }
        while !bytes.is_empty() {
            let open = match self.file.take() {
                Some(open) => open,
                None => OpenFile::open(&self.spec.path)?,
            };
            let open = self.file.insert(open);
            match fitting(bytes, open, size) {
                0 => self.rotate()?,
                count => {
                    let written = open.write(&bytes[..count])?;
                    *bytes = &bytes[written..];
                }
            }
        }
        Ok(())
    }

    /// Gives every file the next number, and leaves none without one.
    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        let spec = &self.spec;
        let last = spec.files.saturating_sub(1);
        if last == 0 {
            return unless_absent(fs::remove_file(&spec.path));
        }
        for number in (0..last).rev() {
            unless_absent(fs::rename(spec.file(number), spec.file(number + 1)))?;
        }
        Ok(())
    }
}

impl Write for RotatingLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.store(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many of `bytes`, which are some, go into the file before it is full: up to a line's end where there is one. 0 if the file is to be
/// rotated first.
fn fitting(bytes: &[u8], open: &OpenFile, size: u64) -> usize {
    let room = size.saturating_sub(open.length);
    let most = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
    if most == bytes.len() {
        return most;
    }
    match bytes[..most].iter().rposition(|byte| *byte == b'\n') {
        Some(end) => end + 1,
        // A line that began in the file before would be cut for nothing.
        None if open.length > 0 && open.at_line_start && room < LINE => 0,
        None => most,
    }
}

impl OpenFile {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::CLOEXEC
            | OFlags::NOCTTY
            | OFlags::NOFOLLOW
            // A pipe without a reader must not hold us up; it is refused below.
            | OFlags::NONBLOCK;
        let file = match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => File::from(file),
            Err(Errno::LOOP) => return Err(unusable(path)),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(unusable(path));
        }
        Ok(Self {
            file,
            identity: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            at_line_start: false,
        })
    }

    /// Whether the file is still the one at `path`.
    fn is_at(&self, path: &Path) -> bool {
        fs::symlink_metadata(path)
            .is_ok_and(|metadata| self.identity == (metadata.dev(), metadata.ino()))
    }

    /// Writes some of `bytes`, which are some.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.length = self.length.saturating_add(as_u64(count));
                    self.at_line_start = bytes[..count].ends_with(b"\n");
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn unusable(path: &Path) -> io::Error {
    let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    io::Error::other(if is_link {
        "it is a symbolic link, and logs are rotated by renaming; name the file itself"
    } else {
        "it is not a regular file, and logs are rotated by renaming"
    })
}

fn unless_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn as_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
