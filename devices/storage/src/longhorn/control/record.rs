//! The record of a volume: which of its replicas have everything, in a file of the host's.
//!
//! A replica that failed knows nothing of it. Once none of the processes runs any more, what is on its disk tells it from the others by the count of writes, if
//! that is kept, or by a date; so it is written down here before anything is acknowledged that it misses. Longhorn's manager keeps the like, some seconds later.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::lease::Lease;
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::Mode;
use crate::longhorn::options::{ReplicaAddress, Taking, VolumeOptions};
use crate::longhorn::status::ReplicaStatus;

/// The most bytes of such a file: more than all replicas that a volume may have take.
const MAX_BYTES: u64 = 64 << 10;

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// The volume's name.
    volume: String,
    /// The replicas that have everything.
    complete: Vec<String>,
}

/// The record of one volume.
#[derive(Debug)]
pub(super) struct Record {
    volume: String,
    path: PathBuf,
    /// What was written last. Locked while it is.
    written: Mutex<Option<Content>>,
    /// While the volume is open.
    lease: Mutex<Option<Lease>>,
}

impl Record {
    /// The one that a volume is to have, if any. Nobody else has it from now on.
    ///
    /// # Errors
    /// When another engine has it, of this process or of another.
    pub(super) fn of(options: &VolumeOptions) -> Result<Option<Self>, VolumeError> {
        let Some(path) = options.record.clone() else {
            return Ok(None);
        };
        let record = Self {
            volume: options.name.clone(),
            path,
            written: Mutex::default(),
            lease: Mutex::default(),
        };
        let lease = Lease::take(&record.path);
        match lease.map_err(|error| record.error(&format!("it cannot be locked: {error}")))? {
            Some(lease) => *record.lease.lock() = Some(lease),
            None => {
                return Err(record.error(
                    "it is in use: the volume is open elsewhere; end that VM or command first",
                ));
            }
        }
        Ok(Some(record))
    }

    /// The volume is closed, and others may have it.
    pub(super) fn release(&self) {
        *self.lease.lock() = None;
    }

    fn error(&self, problem: &str) -> VolumeError {
        VolumeError::Host {
            volume: self.volume.clone(),
            problem: format!("its record {}: {problem}", self.path.display()),
        }
    }

    /// The replicas that are to be opened: those that have everything. `None` before there is a record, and where it is not gone by.
    ///
    /// # Errors
    /// When it cannot be read, is of another volume, or names none of them.
    pub(super) fn choose(
        &self,
        options: &VolumeOptions,
    ) -> Result<Option<Vec<ReplicaAddress>>, VolumeError> {
        let all = options.replicas.clone();
        // Also where it is not gone by: it is replaced, and what is no record of this volume must not be.
        let Some(content) = self.read()? else {
            return Ok(None);
        };
        if content.volume != self.volume {
            let problem = format!(
                "it is that of volume {:?}; give each volume one of its own",
                content.volume
            );
            return Err(self.error(&problem));
        }
        if options.taking != Taking::Open {
            return Ok(None);
        }
        let is_complete =
            |replica: &ReplicaAddress| content.complete.contains(&replica.to_string());
        let (complete, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_complete);
        if complete.is_empty() {
            let names: Vec<String> = content
                .complete
                .iter()
                .map(|name| format!("{name:?}"))
                .collect();
            let problem = format!(
                "only {} have everything, and none of these is to be used; name them, or salvage the best of the others, which may lose what was written last",
                names.join(", ")
            );
            return Err(self.error(&problem));
        }
        for replica in others {
            tracing::warn!(volume = self.volume, %replica, record = %self.path.display(),
                "a replica is left out, for it is not recorded to have everything; add it again");
        }
        Ok(Some(complete))
    }

    fn read(&self) -> Result<Option<Content>, VolumeError> {
        // A pipe would be waited for, until somebody wrote to it.
        match self.path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Ok(metadata) if !metadata.is_file() => {
                return Err(self.error("it is no regular file; give another path"));
            }
            _ => {}
        }
        let mut text = String::new();
        let file = File::open(&self.path);
        let read = file.and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
        read.map_err(|error| self.error(&format!("it cannot be read: {error}")))?;
        let content = serde_json::from_str(&text);
        content.map(Some).map_err(|error| {
            self.error(&format!(
                "it cannot be understood: {error}; if it is no record, give another path"
            ))
        })
    }

    /// Writes down which replicas have everything. It is on the disk when this returns. Where all have failed the last stay recorded: nothing is acknowledged
    /// that these miss.
    ///
    /// # Errors
    /// When it could not be written.
    pub(super) fn write(&self, replicas: &[ReplicaStatus]) -> Result<(), VolumeError> {
        let complete = replicas.iter().filter(|one| one.mode == Mode::ReadWrite);
        let complete: Vec<String> = complete.map(|one| one.address.to_string()).collect();
        let lease = self.lease.lock();
        // Somebody else's, once the volume is closed or handed over.
        if complete.is_empty() || lease.is_none() {
            return Ok(());
        }
        let content = Content {
            volume: self.volume.clone(),
            complete,
        };
        let mut written = self.written.lock();
        if written.as_ref() != Some(&content) {
            *written = None;
            let replaced = self.replace(&content);
            replaced.map_err(|error| self.error(&format!("it cannot be written: {error}")))?;
            *written = Some(content);
        }
        Ok(())
    }

    fn replace(&self, content: &Content) -> io::Result<()> {
        let parent = self.path.parent();
        let named = parent.filter(|parent| !parent.as_os_str().is_empty());
        let directory = named.unwrap_or(Path::new("."));
        let opened = File::open(directory)?;
        let file = tempfile::NamedTempFile::new_in(directory)?;
        // Not by its name, which is another each time and would be in the error.
        let mut open = file.as_file();
        serde_json::to_writer(open, content)?;
        open.write_all(b"\n")?;
        open.sync_all()?;
        file.persist(&self.path)?;
        opened.sync_all()
    }

    /// Another engine has the volume from now on: whoever runs that knows who has everything, and this would not hear of it.
    pub(super) fn forget(&self) {
        let mut lease = self.lease.lock();
        *self.written.lock() = None;
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(volume = self.volume, record = %self.path.display(), %error,
                "the record is not removed; remove it before the volume is used here again");
        }
        *lease = None;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn options(path: &Path, replicas: &[&str]) -> VolumeOptions {
        let replicas = replicas
            .iter()
            .map(|text| text.parse().expect("an address"));
        VolumeOptions {
            record: Some(path.to_owned()),
            ..VolumeOptions::new("v", replicas.collect())
        }
    }

    fn chosen_while_held(options: &VolumeOptions) -> String {
        let error = Record::of(options).expect_err("another has it");
        error.to_string()
    }

    fn status(address: &str, mode: Mode) -> ReplicaStatus {
        ReplicaStatus {
            address: address.parse().expect("an address"),
            mode,
            failure: None,
        }
    }

    fn record(options: &VolumeOptions) -> Record {
        let record = Record::of(options).expect("nobody has it");
        record.expect("a record")
    }

    fn chosen(options: &VolumeOptions) -> Result<Vec<String>, String> {
        let record = record(options);
        let chosen = record.choose(options).map_err(|error| error.to_string())?;
        let chosen = chosen.unwrap_or_else(|| options.replicas.clone());
        Ok(chosen.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn those_that_have_everything_are_chosen() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("v.json");
        let all = options(&path, &["a:1", "b:1", "c:1"]);
        assert_eq!(
            chosen(&all).expect("before a record"),
            ["a:1", "b:1", "c:1"]
        );
        let modes = [
            status("a:1", Mode::ReadWrite),
            status("b:1", Mode::Failed),
            status("c:1", Mode::WriteOnly),
        ];
        record(&all).write(&modes).expect("written");
        assert_eq!(chosen(&all).expect("one"), ["a:1"]);
        // Once all have failed, nothing is acknowledged.
        let failed = [status("a:1", Mode::Failed)];
        record(&all).write(&failed).expect("kept");
        assert_eq!(chosen(&all).expect("one"), ["a:1"]);
        let none = chosen(&options(&path, &["b:1", "d:1"])).expect_err("none of them");
        assert!(
            none.contains("\"a:1\"") && none.contains("salvage"),
            "{none}"
        );
        let salvage = VolumeOptions {
            taking: Taking::Salvage,
            ..options(&path, &["b:1"])
        };
        assert_eq!(chosen(&salvage).expect("whatever is there"), ["b:1"]);
        let held = record(&all);
        let error = chosen_while_held(&all);
        assert!(error.contains("open elsewhere"), "{error}");
        held.forget();
        held.write(&modes).expect("nothing is written");
        assert_eq!(chosen(&all).expect("all again").len(), 3);
        assert_eq!(
            fs::read_dir(&directory).expect("it").count(),
            0,
            "nothing is left"
        );
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("v.json");
        let wanted = options(&path, &["a:1"]);
        for (text, words) in [
            ("", "understood"),
            ("{\"volume\": \"v\"}", "understood"),
            (
                "{\"volume\": \"v\", \"complete\": [], \"x\": 1}",
                "understood",
            ),
            (
                "{\"volume\": \"w\", \"complete\": [\"a:1\"]}",
                "that of volume \"w\"",
            ),
            ("{\"volume\": \"v\", \"complete\": []}", "none of these"),
        ] {
            fs::write(&path, text).expect("written");
            let error = chosen(&wanted).expect_err(text);
            // It is replaced then, which an image of a disk must not be.
            let salvage = VolumeOptions {
                taking: Taking::Salvage,
                ..wanted.clone()
            };
            assert_eq!(chosen(&salvage).is_ok(), words == "none of these", "{text}");
            assert!(error.contains("v.json") && error.contains(words), "{error}");
        }
        fs::write(&path, vec![b' '; 1 << 20]).expect("written");
        chosen(&wanted).expect_err("too large");
        fs::remove_file(&path).expect("removed");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).expect("a pipe");
        let error = chosen(&wanted).expect_err("a pipe");
        assert!(error.contains("no regular file"), "{error}");
        let nowhere = directory.path().join("none/v.json");
        let error = Record::of(&options(&nowhere, &["a:1"])).expect_err("no directory");
        assert!(error.to_string().contains("cannot be locked"), "{error}");
    }
}
