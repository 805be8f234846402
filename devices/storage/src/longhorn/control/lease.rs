//! The lease on a volume's record: one engine at a time. Replicas know whether they are open, not by whom, and lose even that with their process.
//!
//! It is a lock on a file beside the record, so that it goes with the process that has it, and holds on every host that has the directory, where its file system
//! passes locks on, as NFS does.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// What is appended to the record's name.
const SUFFIX: &str = ".lock";

/// How often the file is opened anew: whoever lets go of the lease removes it.
const ATTEMPTS: usize = 100;

/// The lease, until this is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    path: PathBuf,
    _file: File,
}

impl Lease {
    /// Takes the lease on the record at this path. `None` while another has it.
    ///
    /// # Errors
    /// When the file cannot be made, or locked.
    pub(super) fn take(record: &Path) -> io::Result<Option<Self>> {
        let mut path = record.as_os_str().to_owned();
        path.push(SUFFIX);
        let path = PathBuf::from(path);
        let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
        for _ in 0..ATTEMPTS {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(flags)
                .open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            // Its last holder may have removed it meanwhile, and another made it anew.
            let own = file.metadata()?;
            let is_own =
                |there: std::fs::Metadata| (there.dev(), there.ino()) == (own.dev(), own.ino());
            if path.symlink_metadata().is_ok_and(is_own) {
                return Ok(Some(Self { path, _file: file }));
            }
        }
        Err(io::Error::other("somebody removes it again and again"))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Before the lock is let go: nobody else has it yet.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(lock = %self.path.display(), %error, "not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::Lease;

    #[test]
    fn one_has_it_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let record = directory.path().join("v.json");
        let take = || Lease::take(&record).expect("no error");
        let first = take().expect("it is free");
        assert!(take().is_none());
        drop(first);
        assert_eq!(fs::read_dir(&directory).expect("it").count(), 0);
        assert!(take().is_some());
    }

    #[test]
    fn many_who_take_it_and_let_go_never_have_it_together() {
        let directory = tempfile::tempdir().expect("a directory");
        let record = directory.path().join("v.json");
        let (holders, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        // With so many it may be removed again and again.
                        let Ok(Some(lease)) = Lease::take(&record) else {
                            continue;
                        };
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        taken.fetch_add(1, Ordering::SeqCst);
                        holders.fetch_sub(1, Ordering::SeqCst);
                        drop(lease);
                    }
                });
            }
        });
        assert!(taken.into_inner() >= 500);
    }

    #[test]
    fn what_is_no_file_is_no_lock() {
        let directory = tempfile::tempdir().expect("a directory");
        let record = directory.path().join("v.json");
        Lease::take(&directory.path().join("none/v.json")).expect_err("no directory");
        let elsewhere = directory.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, directory.path().join("v.json.lock")).expect("made");
        Lease::take(&record).expect_err("a link");
        assert!(!elsewhere.exists());
    }
}
