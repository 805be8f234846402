//! Snapshots that are to go: noted on all replicas, which then give back what they have, each by itself and in its own time.

use super::Control;
use super::expand::each;
use super::peer::Peer;
use super::snapshot::file_of;
use crate::longhorn::error::VolumeError;
use crate::longhorn::status::Purge;

impl Control {
    /// Notes on all replicas that a snapshot is to go.
    pub(crate) async fn remove_snapshot(&self, name: &str) -> Result<(), VolumeError> {
        let admin = self.administrate_complete().await?;
        let file = file_of(name);
        let mark = |peer: Peer| {
            let file = file.clone();
            async move {
                // Another may have given it back already.
                let has = peer.get().await?.disks.contains_key(&file);
                if has {
                    peer.mark_as_removed(&file).await?;
                }
                Ok(has)
            }
        };
        // A replica that does not note it is no worse for that: the snapshot only stays.
        let marked = each(&self.live(&admin), mark).await;
        let marked = marked.into_iter().collect::<Result<Vec<bool>, _>>()?;
        if marked.contains(&true) {
            return Ok(());
        }
        Err(VolumeError::NotFound {
            volume: self.options.name.clone(),
            what: "snapshot",
            name: name.to_owned(),
        })
    }

    /// Has all replicas begin to give back what is to go.
    pub(crate) async fn start_purge(&self) -> Result<(), VolumeError> {
        let admin = self.administrate_complete().await?;
        let start = |peer: Peer| async move {
            match peer.purge_status().await?.is_purging {
                true => Ok(()),
                false => peer.start_purge().await,
            }
        };
        // One that does not begin is no reason for the others not to.
        let started = each(&self.live(&admin), start).await;
        started.into_iter().collect()
    }

    /// How far they are.
    pub(crate) async fn purge(&self) -> Result<Purge, VolumeError> {
        let live = {
            let admin = self.administrate().await?;
            self.live(&admin)
        };
        let mut all = Purge {
            running: false,
            percent: 100,
        };
        for (_, peer) in live {
            let status = peer.purge_status().await?;
            if !status.error.is_empty() {
                return Err(VolumeError::Refused {
                    replica: peer.address.clone(),
                    action: "purging its snapshots",
                    problem: status.error,
                });
            }
            if status.is_purging {
                let percent = u8::try_from(status.progress.clamp(0, 100)).unwrap_or(0);
                all.running = true;
                all.percent = all.percent.min(percent);
            }
        }
        Ok(all)
    }
}
