//! Rebuilding a replica while the guest goes on: it gets every write from a common snapshot on, and the files below that from others.
//!
//! The steps and their order are Longhorn's: `create`, `prepare`, the transfer among the replicas, `verify`. [`Control::add_replica`] takes them all;
//! Longhorn's tools take the first, the second and the last through the controller service and see to the transfer themselves. I/O stands still three times for a
//! moment. Whatever goes wrong leaves the new replica as failed, and nobody else.

mod create;
pub(in crate::longhorn) mod verify;

use std::sync::Arc;
use std::time::{Duration, Instant};

use paddock_longhorn::messages::{FilesSyncRequest, SyncFileInfo};
use tokio::time::sleep;

use super::peer::Peer;
use super::{Admin, Control};
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::{Member, Mode};
use crate::longhorn::options::ReplicaAddress;
use crate::longhorn::status::{Activity, Progress, Rebuilt};

/// How often progress is asked for.
const PROGRESS: Duration = Duration::from_secs(1);

/// What comes behind a file's name for the file that describes it.
const META: &str = ".meta";

/// How far the rebuild of a replica is that was created.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rebuild {
    /// The replica.
    member: u32,
    /// It has been told which files it is to get, and has no others.
    prepared: bool,
}

/// A replica that is written from now on.
pub(crate) struct Created {
    member: Arc<Member>,
    peer: Peer,
    /// How long all I/O stood still.
    frozen: Duration,
}

/// What is to be transferred.
pub(crate) struct Prepared {
    /// The files.
    pub files: Vec<SyncFileInfo>,
    sources: Vec<Peer>,
    /// How long all I/O stood still.
    frozen: Duration,
}

impl Control {
    /// Adds a replica and gives it everything. Its process is running, and nothing uses it.
    pub(crate) async fn add_replica(
        self: &Arc<Self>,
        address: ReplicaAddress,
    ) -> Result<Rebuilt, VolumeError> {
        let since = Instant::now();
        let created = self.create_replica(&address, true).await?;
        self.set_progress(Some(&progress(&address, 0, 0)));
        let completed = self.complete(&created).await;
        self.set_progress(None);
        match completed {
            Ok(frozen) => Ok(Rebuilt {
                took: since.elapsed(),
                frozen: frozen.max(created.frozen),
            }),
            Err(error) => {
                self.shared.fail(&created.member, &error.to_string());
                Err(error)
            }
        }
    }

    /// Gives a replica that was created what it lacks. Returns how long all I/O stood still, the longer of two times.
    async fn complete(&self, created: &Created) -> Result<Duration, VolumeError> {
        let peer = &created.peer;
        let prepared = self.prepare_rebuild(&peer.address).await?;
        let frozen = prepared.frozen;
        self.transfer(created, prepared).await?;
        peer.reload().await?;
        let verified = self.verify_rebuild(&peer.address).await?;
        peer.set_rebuilding(false).await?;
        Ok(frozen.max(verified))
    }

    /// Transfers what is below the common snapshot.
    async fn transfer(&self, created: &Created, prepared: Prepared) -> Result<(), VolumeError> {
        let (member, peer) = (&created.member, &created.peer);
        let total = bytes(&prepared.files);
        self.set_progress(Some(&progress(&peer.address, 0, total)));
        let files = FilesSyncRequest {
            sync_file_info_list: prepared.files,
            ..FilesSyncRequest::default()
        };
        let transfer = peer.fetch(files, &prepared.sources);
        tokio::pin!(transfer);
        loop {
            tokio::select! {
                transferred = &mut transfer => return transferred,
                () = sleep(PROGRESS) => {
                    if member.mode() == Mode::Failed || self.is_ending() {
                        return Err(self.state_error("the rebuild was given up"));
                    }
                    if let Ok(status) = peer.rebuild_status().await {
                        let percent = u8::try_from(status.progress.clamp(0, 100)).unwrap_or(0);
                        self.set_progress(Some(&progress(&peer.address, percent, total)));
                    }
                }
            }
        }
    }

    /// Gives up the rebuild of a replica, and lets go of it. What adds it fails soon after.
    pub(crate) async fn cancel_rebuild(&self, address: &ReplicaAddress) -> Result<(), VolumeError> {
        let mut admin = self.administrate().await?;
        // It cannot become complete meanwhile, for that takes the same permission.
        self.rebuilt(&admin, address)?;
        self.remove(&mut admin, address).await
    }

    /// A replica that is being rebuilt, with its control service.
    fn rebuilt(
        &self,
        admin: &Admin,
        address: &ReplicaAddress,
    ) -> Result<(Arc<Member>, Peer), VolumeError> {
        let member = self.member(address)?;
        let peer = admin.peers.get(&member.id);
        match (member.mode(), peer) {
            (Mode::WriteOnly, Some(peer)) => Ok((member, peer.clone())),
            _ => Err(self.state_error(format!("replica {address} is not being rebuilt"))),
        }
    }
}

fn progress(address: &ReplicaAddress, percent: u8, total: u64) -> Progress {
    let done = u128::from(total) * u128::from(percent) / 100;
    Progress {
        activity: Activity::Rebuild,
        replica: Some(address.clone()),
        percent,
        done: u64::try_from(done).unwrap_or(total),
        total,
    }
}

/// What files take, as the replica says that has them.
fn bytes(files: &[SyncFileInfo]) -> u64 {
    let sizes = files.iter().map(|file| u64::try_from(file.actual_size));
    sizes.flatten().fold(0, u64::saturating_add)
}
