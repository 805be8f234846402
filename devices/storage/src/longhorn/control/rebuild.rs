//! Rebuilding a replica while the guest goes on: it gets every write from a common snapshot on, and the files below that from another replica.
//!
//! The steps and their order are Longhorn's (`longhorn add-replica` does the same with its engine): I/O stands still three times for a moment, and the
//! replicas transfer the files among themselves. Whatever goes wrong leaves the new replica as failed, and nobody else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use paddock_longhorn::messages::{FilesSyncRequest, SyncFileInfo};
use tokio::time::sleep;

use super::peer::{Info, NewSnapshot, Peer};
use super::{Control, open, supervise, time};
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::{Member, Mode};
use crate::longhorn::options::ReplicaAddress;
use crate::longhorn::shared::Frozen;
use crate::longhorn::status::{Activity, Progress, Rebuilt};

/// How often progress is asked for.
const PROGRESS: Duration = Duration::from_secs(1);

/// What comes behind a file's name for the file that describes it.
const META: &str = ".meta";

/// A replica that has been added and is not complete.
struct Joined {
    member: Arc<Member>,
    peer: Peer,
    source: Peer,
    /// What is to be transferred.
    files: Vec<SyncFileInfo>,
}

/// The time for which all I/O stood still, the longest of several.
#[derive(Default)]
struct Stillness {
    longest: Duration,
}

impl Stillness {
    fn end(&mut self, frozen: Frozen, since: Instant) {
        drop(frozen);
        self.longest = self.longest.max(since.elapsed());
    }
}

impl Control {
    /// Adds a replica and gives it everything. Its process is running, and nothing uses it.
    pub(crate) async fn add_replica(
        self: &Arc<Self>,
        address: ReplicaAddress,
    ) -> Result<Rebuilt, VolumeError> {
        let since = Instant::now();
        let mut still = Stillness::default();
        let progress = |percent| Progress {
            activity: Activity::Rebuild,
            replica: Some(address.clone()),
            percent,
        };
        let joined = self.join(&address, &mut still).await?;
        self.set_progress(Some(&progress(0)));
        let completed = self.complete(&joined, &progress, &mut still).await;
        self.set_progress(None);
        if let Err(error) = completed {
            self.shared.fail(&joined.member, &error.to_string());
            return Err(error);
        }
        Ok(Rebuilt {
            took: since.elapsed(),
            frozen: still.longest,
        })
    }

    /// Makes a replica ready, and has it get every write from now on.
    async fn join(
        self: &Arc<Self>,
        address: &ReplicaAddress,
        still: &mut Stillness,
    ) -> Result<Joined, VolumeError> {
        let mut admin = self.administrate_complete().await?;
        let name = address.to_string();
        if self
            .shared
            .members()
            .iter()
            .any(|member| member.address == name)
        {
            return Err(self.state_error(format!(
                "it has a replica {name} already; remove that first"
            )));
        }
        let peer = Peer::new(address, &self.options.name)?;
        let (_, source) = self.source(&admin)?;
        self.prepare(&peer).await?;
        let opened = self.open_new(&peer, admin.counts_revisions).await;
        let mut sockets = Vec::new();
        let posts = self.shared.posts();
        let connected = async {
            opened?;
            for _ in &posts {
                sockets.push(open::connect(address).await?);
            }
            Ok(())
        };
        let connected: Result<(), VolumeError> = connected.await;
        if let Err(error) = connected {
            let _ = peer.close().await;
            return Err(error);
        }
        let id = admin.next_id;
        admin.next_id += 1;
        let member = Arc::new(Member::new(id, name, Mode::WriteOnly));
        let snapshot = NewSnapshot {
            name: time::unique_name(),
            user_created: false,
            created: time::now(),
            labels: std::collections::HashMap::new(),
        };

        let frozen = self.shared.freeze().await;
        let start = Instant::now();
        let taken = async {
            peer.snapshot(&snapshot).await?;
            self.snapshot_all(&admin, &snapshot).await
        };
        if let Err(error) = taken.await {
            still.end(frozen, start);
            let _ = peer.close().await;
            return Err(error);
        }
        for (post, socket) in posts.iter().zip(sockets) {
            member.adopt(&socket);
            self.shared.send_connection(post, &member, socket);
        }
        self.shared.add_member(Arc::clone(&member));
        admin.peers.insert(id, peer.clone());
        still.end(frozen, start);

        supervise::watch(self, &member);
        let told = self.tell_listener().map_err(|error| VolumeError::Host {
            volume: self.options.name.clone(),
            problem: format!("the replicas cannot be recorded: {error}"),
        });
        let mut joined = Joined {
            member,
            peer,
            source,
            files: Vec::new(),
        };
        let files = async {
            told?;
            joined.peer.set_rebuilding(true).await?;
            self.align(&joined, admin.counts_revisions, still).await
        };
        match files.await {
            Ok(files) => {
                joined.files = files;
                Ok(joined)
            }
            Err(error) => {
                self.shared.fail(&joined.member, &error.to_string());
                Err(error)
            }
        }
    }

    /// Brings a closed replica into a state from which it can be rebuilt.
    async fn prepare(&self, peer: &Peer) -> Result<(), VolumeError> {
        let info = peer.get().await?;
        let refused = |problem: String| VolumeError::Refused {
            replica: peer.address.clone(),
            action: "adding it",
            problem,
        };
        if info.state != "closed" {
            let state = info.state;
            return Err(refused(format!(
                "it is {state} and must be closed; if nothing uses it any more, restart its process"
            )));
        }
        let size = self.shared.size();
        if info.size > size {
            let has = info.size;
            return Err(refused(format!(
                "it has {has} bytes, and the volume only {size}"
            )));
        }
        if info.size < size || info.rebuilding {
            peer.open(size).await?;
            let ready = async {
                if info.rebuilding {
                    peer.set_rebuilding(false).await?;
                }
                if info.size < size {
                    peer.expand(size).await?;
                }
                Ok(())
            };
            let ready: Result<(), VolumeError> = ready.await;
            peer.close().await?;
            ready?;
        }
        Ok(())
    }

    async fn open_new(&self, peer: &Peer, counts_revisions: bool) -> Result<(), VolumeError> {
        let size = self.shared.size();
        peer.open(size).await?;
        let info = peer.get().await?;
        let refused = |problem: &str| {
            Err(VolumeError::Refused {
                replica: peer.address.clone(),
                action: "adding it",
                problem: problem.to_owned(),
            })
        };
        if info.size != size {
            return refused("it is not of the volume's size");
        }
        if info.counts_revisions != counts_revisions {
            return refused(
                "it counts its writes and the volume does not, or the other way round; start it otherwise",
            );
        }
        peer.set_unmap_marks_removed(false).await.map(drop)
    }

    /// Has the new replica's files be those of another, as far as their names go, and the description of what it writes now.
    async fn align(
        &self,
        joined: &Joined,
        counts_revisions: bool,
        still: &mut Stillness,
    ) -> Result<Vec<SyncFileInfo>, VolumeError> {
        let frozen = self.shared.freeze().await;
        let start = Instant::now();
        let aligned = async {
            let (peer, source) = (&joined.peer, &joined.source);
            if counts_revisions {
                peer.set_revision_counter(0).await?;
            }
            let theirs = source.get().await?;
            let ours = peer.get().await?;
            for (file, _) in ours.snapshots() {
                if !theirs.disks.contains_key(file) {
                    peer.remove_disk(file).await?;
                }
            }
            let (from, to) = (
                format!("{}{META}", theirs.head),
                format!("{}{META}", ours.head),
            );
            peer.receive_from(source, &from, &to).await?;
            Ok(theirs)
        };
        let aligned: Result<Info, VolumeError> = aligned.await;
        still.end(frozen, start);
        let mut files = Vec::new();
        for (file, disk) in aligned?.snapshots() {
            for (name, size) in [(file.clone(), disk.size), (format!("{file}{META}"), 0)] {
                files.push(SyncFileInfo {
                    from_file_name: name.clone(),
                    to_file_name: name,
                    actual_size: size,
                });
            }
        }
        Ok(files)
    }

    /// Transfers what is below the common snapshot, and lets the replica be read.
    async fn complete(
        &self,
        joined: &Joined,
        progress: &impl Fn(u8) -> Progress,
        still: &mut Stillness,
    ) -> Result<(), VolumeError> {
        let (peer, source) = (&joined.peer, &joined.source);
        let files = FilesSyncRequest {
            sync_file_info_list: joined.files.clone(),
            ..FilesSyncRequest::default()
        };
        let transfer = peer.fetch(files, source);
        tokio::pin!(transfer);
        loop {
            tokio::select! {
                transferred = &mut transfer => break transferred?,
                () = sleep(PROGRESS) => {
                    if joined.member.mode() == Mode::Failed || self.is_closed() {
                        return Err(self.state_error("the rebuild was given up"));
                    }
                    if let Ok(status) = peer.rebuild_status().await {
                        let percent = u8::try_from(status.progress.clamp(0, 100)).unwrap_or(0);
                        self.set_progress(Some(&progress(percent)));
                    }
                }
            }
        }
        peer.reload().await?;
        let admin = self.administrate().await?;
        let frozen = self.shared.freeze().await;
        let start = Instant::now();
        let verified = async {
            let (theirs, ours) = (source.get().await?, peer.get().await?);
            let chain = |info: &Info| info.chain.iter().skip(1).cloned().collect::<Vec<_>>();
            if chain(&theirs) != chain(&ours) {
                return Err(VolumeError::Refused {
                    replica: peer.address.clone(),
                    action: "rebuilding it",
                    problem: "its files are not those of the others after the transfer".to_owned(),
                });
            }
            if admin.counts_revisions {
                peer.set_revision_counter(theirs.revision_counter).await?;
            }
            if !joined.member.promote() {
                return Err(self.state_error(format!(
                    "replica {} failed while it was rebuilt",
                    peer.address
                )));
            }
            Ok(())
        };
        let verified = verified.await;
        still.end(frozen, start);
        verified?;
        peer.set_rebuilding(false).await?;
        self.tell_listener().map_err(|error| VolumeError::Host {
            volume: self.options.name.clone(),
            problem: format!("the replicas cannot be recorded: {error}"),
        })
    }
}
