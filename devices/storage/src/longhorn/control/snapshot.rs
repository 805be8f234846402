//! Snapshots: taken on all replicas between two requests, listed, and gone back to.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::expand::each;
use super::peer::{Info, NewSnapshot, Peer};
use super::{Admin, Control, time};
use crate::longhorn::error::VolumeError;
use crate::longhorn::status::{Snapshot, Taken};

/// How a snapshot's file is called.
const PREFIX: &str = "volume-snap-";
const SUFFIX: &str = ".img";

/// The most bytes of a snapshot's name, so that the names of its files fit into a directory.
const MAX_NAME: usize = 200;

/// The most bytes of a file's name, before what comes behind that of its description.
const MAX_FILE: usize = 240;

/// How often it is looked whether the next second has come.
const PART_OF_A_SECOND: Duration = Duration::from_millis(50);

pub(super) fn file_of(name: &str) -> String {
    format!("{PREFIX}{name}{SUFFIX}")
}

/// The name of the snapshot that a file has.
pub(in crate::longhorn) fn name_of(file: &str) -> &str {
    let name = file
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_suffix(SUFFIX));
    name.unwrap_or(file)
}

/// Whether a file is called as that of a snapshot is, and is in the directory of its replica.
pub(super) fn is_snapshot(file: &str) -> bool {
    let plain = |name: &str| {
        !name.is_empty() && !name.contains(|c: char| c == '/' || c == '\\' || c.is_control())
    };
    file.len() <= MAX_FILE && name_of(file) != file && plain(name_of(file))
}

/// Whether a file is called as one that is written.
pub(super) fn is_head(file: &str) -> bool {
    let number = file.strip_prefix("volume-head-");
    let number = number.and_then(|rest| rest.strip_suffix(SUFFIX));
    number.is_some_and(|n| (1..=10).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Its snapshots, the oldest first.
pub(in crate::longhorn) fn describe(info: &Info) -> Vec<Snapshot> {
    let snapshots = info.snapshots().map(|(file, disk)| {
        let mut labels: Vec<(String, String)> = disk.labels.clone().into_iter().collect();
        labels.sort();
        Snapshot {
            name: name_of(file).to_owned(),
            created: disk.created.clone(),
            user_created: disk.user_created,
            removed: disk.removed,
            size: u64::try_from(disk.size).unwrap_or(0),
            parent: (!disk.parent.is_empty()).then(|| name_of(&disk.parent).to_owned()),
            labels,
        }
    });
    let mut snapshots: Vec<Snapshot> = snapshots.collect();
    snapshots.sort_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
    snapshots
}

impl Control {
    /// Takes a snapshot; one without a name gets one.
    pub(crate) async fn snapshot(
        &self,
        name: Option<String>,
        labels: HashMap<String, String>,
    ) -> Result<Taken, VolumeError> {
        let admin = self.administrate_complete().await?;
        let snapshot = self.name_snapshot(name, labels)?;
        self.ensure_room(&admin, Some(&snapshot.name)).await?;
        // From here on nothing more is sent, and what replicas have is waited for.
        let since = Instant::now();
        let frozen = self.freeze_alike().await?;
        let taken = self.snapshot_all(&admin, &snapshot).await;
        drop(frozen);
        let frozen = since.elapsed();
        taken?;
        let taken = Taken {
            name: snapshot.name,
            frozen,
        };
        self.listener.snapshot_taken(&taken);
        Ok(taken)
    }

    fn name_snapshot(
        &self,
        name: Option<String>,
        labels: HashMap<String, String>,
    ) -> Result<NewSnapshot, VolumeError> {
        let user_created = true;
        let name = name.unwrap_or_else(time::unique_name);
        let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(letters) {
            let problem = format!(
                "{name:?} cannot be a snapshot's name; use 1 to {MAX_NAME} letters, digits, '-', '_' and '.'"
            );
            return Err(self.state_error(problem));
        }
        Ok(NewSnapshot {
            name,
            user_created,
            created: time::now(),
            labels,
        })
    }

    /// Refuses before anything stands still what a replica would refuse, or what the volume is not to have.
    pub(super) async fn ensure_room(
        &self,
        admin: &Admin,
        name: Option<&str>,
    ) -> Result<(), VolumeError> {
        let (_, source) = self.source(admin)?;
        let info = source.get().await?;
        if let Some(name) = name.filter(|name| info.disks.contains_key(&file_of(name))) {
            return Err(self.state_error(format!("it has a snapshot {name} already")));
        }
        let settings = self.settings();
        if info.snapshots_left <= 0 || info.snapshots_used >= settings.max_snapshots {
            let problem = format!(
                "it has {} snapshots, as many as it may have; remove some, and purge them",
                info.snapshots_used
            );
            return Err(self.state_error(problem));
        }
        let (most, taken) = (settings.max_snapshot_bytes, info.snapshot_bytes);
        if most != 0 && info.head_bytes > most.saturating_sub(taken) {
            let problem = format!(
                "its snapshots take {taken} bytes of the {most} that they may, and another would take {} more; remove some, and purge them",
                info.head_bytes
            );
            return Err(self.state_error(problem));
        }
        Ok(())
    }

    /// Has all replicas take a snapshot, while no request is under way. Those that do not are left, unless none does, and none may.
    pub(super) async fn snapshot_all(
        &self,
        admin: &Admin,
        snapshot: &NewSnapshot,
    ) -> Result<(), VolumeError> {
        let (taken, created) = (file_of(&snapshot.name), snapshot.created.clone());
        let snapshot = snapshot.clone();
        let take = move |peer: Peer| {
            let snapshot = snapshot.clone();
            async move { peer.snapshot(&snapshot).await }
        };
        self.on_all(admin, take, |_, info| info.is_on(&taken, &created))
            .await
    }

    /// The snapshots there are, the oldest first.
    pub(crate) async fn snapshots(&self) -> Result<Vec<Snapshot>, VolumeError> {
        let source = {
            let admin = self.administrate().await?;
            self.source(&admin)?.1
        };
        Ok(describe(&source.get().await?))
    }

    /// Goes back to a snapshot, with no queue open: nobody expects a disk that he uses to become another.
    pub(crate) async fn revert(&self, name: &str) -> Result<(), VolumeError> {
        let admin = self.administrate_complete().await?;
        if self.shared.is_used() {
            return Err(self
                .state_error("a snapshot can be gone back to only while nobody uses the volume"));
        }
        let (_, source) = self.source(&admin)?;
        let file = file_of(name);
        let info = source.get().await?;
        if info.disks.get(&file).is_none_or(|disk| disk.removed) {
            return Err(VolumeError::NotFound {
                volume: self.options.name.clone(),
                what: "snapshot",
                name: name.to_owned(),
            });
        }
        // One that did not go back may look the same: its head is where it was.
        let mut heads = HashMap::new();
        let mut made = HashSet::new();
        for (_, peer) in self.live(&admin) {
            let info = peer.get().await?;
            made.extend(info.disks.get(&info.head).map(|head| head.created.clone()));
            heads.insert(peer.address.clone(), info.head);
        }
        // The next to open the volume tells heads apart by when they were made, in whole seconds.
        let mut created = time::now();
        while made.contains(&created) {
            tokio::time::sleep(PART_OF_A_SECOND).await;
            created = time::now();
        }
        let back = |peer: &Peer, info: &Info| {
            let before = heads.get(&peer.address);
            info.is_on(&file, &created) && before.is_some_and(|head| *head != info.head)
        };
        let (to, now) = (file.clone(), created.clone());
        let go = move |peer: Peer| {
            let (to, now) = (to.clone(), now.clone());
            async move { peer.revert(&to, &now).await }
        };
        self.on_all(&admin, go, back).await?;
        self.count_one_more(&admin).await
    }

    /// Has those that went back have seen one write more than those that were not there, where writes are counted: they are told apart by that.
    async fn count_one_more(&self, admin: &Admin) -> Result<(), VolumeError> {
        if !admin.counts_revisions {
            return Ok(());
        }
        let asked = each(&self.live(admin), |peer| async move { peer.get().await }).await;
        let counters = asked
            .into_iter()
            .flatten()
            .map(|info| info.revision_counter);
        let next = counters.max().unwrap_or(0).saturating_add(1);
        let count = move |peer: Peer| async move { peer.set_revision_counter(next).await };
        self.on_all(admin, count, |_, info| info.revision_counter == next)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::{file_of, is_head, is_snapshot, name_of};

    #[test]
    fn files_and_names() {
        assert_eq!(file_of("a"), "volume-snap-a.img");
        assert_eq!(name_of("volume-snap-a.img"), "a");
        assert_eq!(name_of("volume-head-001.img"), "volume-head-001.img");
    }

    #[test]
    fn what_is_no_file_of_a_replica() {
        for name in [
            "a",
            "expand-4096",
            "0123abcd-4567",
            "with space",
            "..",
            "a.b",
        ] {
            assert!(is_snapshot(&file_of(name)), "{name}");
        }
        for name in ["", "/../../x", "a/b", "a\0", "a\n", &"x".repeat(230)] {
            assert!(!is_snapshot(&file_of(name)), "{name}");
        }
        for file in [
            "../x",
            "volume.meta",
            "volume-head-000.img",
            "volume-snap-a.img.meta",
        ] {
            assert!(!is_snapshot(file), "{file}");
        }
        assert!(is_head("volume-head-000.img") && is_head("volume-head-1000.img"));
        for file in [
            "volume-head-.img",
            "volume-head-../x.img",
            "volume-snap-1.img",
            "",
        ] {
            assert!(!is_head(file), "{file}");
        }
    }
}
