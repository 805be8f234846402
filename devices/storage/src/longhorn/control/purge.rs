//! Snapshots that are to go: noted on all replicas, which then give back what they have, each by itself and in its own time.
//!
//! A replica looks at what is to go when it begins, and no more: where it is at it already, it has to begin again once it is done.

use super::Control;
use super::expand::each;
use super::peer::Peer;
use super::snapshot::file_of;
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::Member;
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
            let is_purging = peer.purge_status().await?.is_purging;
            if !is_purging {
                peer.start_purge().await?;
            }
            Ok(is_purging)
        };
        let live = self.live(&admin);
        // One that does not begin is no reason for the others not to.
        let were_purging = each(&live, start).await;
        let mut again = self.purge_again.lock();
        for ((member, _), was_purging) in live.iter().zip(&were_purging) {
            match was_purging {
                Ok(true) => again.insert(member.id),
                Ok(false) => again.remove(&member.id),
                Err(_) => false,
            };
        }
        were_purging.into_iter().try_for_each(|told| told.map(drop))
    }

    /// How far they are. Has those begin again that had begun before they were told of everything that is to go.
    pub(crate) async fn purge(&self) -> Result<Purge, VolumeError> {
        let live = {
            let admin = self.administrate().await?;
            self.live(&admin)
        };
        let mut all = Purge {
            running: false,
            percent: 100,
        };
        for (member, peer) in live {
            let status = peer.purge_status().await?;
            if !status.is_purging && self.purge_again(&member, &peer).await? {
                all.running = true;
                all.percent = 0;
                continue;
            }
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

    /// Has one that is done begin again, if it began before it was told of everything that is to go. Whether that was so.
    async fn purge_again(&self, member: &Member, peer: &Peer) -> Result<bool, VolumeError> {
        let has_to = || self.purge_again.lock().contains(&member.id);
        if !has_to() {
            return Ok(false);
        }
        // Not while files that may go are copied to another.
        let _admin = self.administrate_complete().await?;
        // Somebody else who looks at the purge may have done it meanwhile.
        if has_to() {
            peer.start_purge().await?;
            self.purge_again.lock().remove(&member.id);
        }
        Ok(true)
    }
}
