//! The last steps of a rebuild: what is to be transferred, and whether it was.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use paddock_longhorn::messages::SyncFileInfo;

use super::super::peer::{CALL_WHILE_FROZEN, Info, Peer};
use super::super::snapshot::{is_head, is_snapshot};
use super::super::{Admin, Control};
use super::{META, Prepared};
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::Member;
use crate::longhorn::options::ReplicaAddress;

/// What a sync agent says that has transferred everything.
const COMPLETE: &str = "complete";

/// How long it may take to remove the files that the others do not have.
const REMOVAL: Duration = Duration::from_secs(600);

impl Control {
    /// Has the new replica's files be those of another, as far as their names go, and the description of what it writes now. Returns what is to
    /// be transferred.
    pub(crate) async fn prepare_rebuild(
        &self,
        address: &ReplicaAddress,
    ) -> Result<Prepared, VolumeError> {
        self.remove_others(address).await?;
        let mut admin = self.administrate().await?;
        let (member, peer) = self.rebuilt(&admin, address)?;
        let (_, source) = self.source(&admin)?;
        let sources = self.complete_members(&admin).map(|(_, peer)| peer);
        let sources = sources.take(self.settings().sync_sources).collect();
        // What an earlier transfer came to, or comes to yet, is not to be taken for this one's.
        if peer.rebuild_status().await?.is_rebuilding {
            let problem = "an earlier rebuild still gives it files; restart its process";
            return Err(lacking(&peer, problem.to_owned()));
        }
        peer.reset_sync_agent().await?;
        let since = Instant::now();
        let frozen = self.shared.freeze().await;
        let aligned = while_frozen(&peer, align(&peer, &source, admin.counts_revisions)).await;
        drop(frozen);
        let frozen = since.elapsed();
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
        match &mut admin.rebuild {
            Some(rebuild) if rebuild.member == member.id => rebuild.prepared = true,
            _ => {
                let problem = format!("the rebuild of {address} was given up");
                return Err(self.state_error(problem));
            }
        }
        Ok(Prepared {
            files,
            sources,
            frozen,
        })
    }

    /// Has the new replica give up files that the others do not have. That may take as long as there are many: nobody waits for it.
    async fn remove_others(&self, address: &ReplicaAddress) -> Result<(), VolumeError> {
        let (peer, source) = {
            let admin = self.administrate().await?;
            (self.rebuilt(&admin, address)?.1, self.source(&admin)?.1)
        };
        let theirs = source.get().await?;
        let removing = async {
            for (file, _) in peer.get().await?.snapshots() {
                if !theirs.disks.contains_key(file) {
                    peer.remove_disk(file).await?;
                }
            }
            Ok(())
        };
        let removed = tokio::time::timeout(REMOVAL, removing).await;
        removed.unwrap_or_else(|_| {
            let problem = "it does not get done with removing the files that the others do not have; empty its directory, and add it again";
            Err(lacking(&peer, problem.to_owned()))
        })
    }

    /// Lets a replica be read that has been given everything, and has looked at its files again. Returns how long all I/O stood still. A replica that is
    /// found to lack something is left; one whose rebuild is not that far is not.
    pub(crate) async fn verify_rebuild(
        &self,
        address: &ReplicaAddress,
    ) -> Result<Duration, VolumeError> {
        let mut admin = self.administrate().await?;
        let (member, peer) = self.rebuilt(&admin, address)?;
        let prepared = admin
            .rebuild
            .is_some_and(|r| r.member == member.id && r.prepared);
        if !prepared {
            let problem = format!("replica {address} has not been prepared for its rebuild");
            return Err(self.state_error(problem));
        }
        let transfer = peer.rebuild_status().await?;
        if transfer.is_rebuilding {
            let problem = format!("replica {address} is still being given its files");
            return Err(self.state_error(problem));
        }
        let verified = match transfer.state == COMPLETE && transfer.error.is_empty() {
            true => self.verify(&admin, &member, &peer).await,
            false => Err(lacking(
                &peer,
                format!(
                    "its files were not transferred: {:?} {}",
                    transfer.state, transfer.error
                ),
            )),
        };
        admin.rebuild = None;
        if let Err(error) = &verified {
            self.shared.fail(&member, &error.to_string());
        }
        verified
    }

    async fn verify(
        &self,
        admin: &Admin,
        member: &Arc<Member>,
        peer: &Peer,
    ) -> Result<Duration, VolumeError> {
        let (_, source) = self.source(admin)?;
        let since = Instant::now();
        let frozen = self.shared.freeze().await;
        let compared = async {
            let (theirs, ours) = (source.get().await?, peer.get().await?);
            if !alike(&theirs, &ours) {
                let problem = "its files are not those of the others after the transfer";
                return Err(lacking(peer, problem.to_owned()));
            }
            if admin.counts_revisions {
                peer.set_revision_counter(theirs.revision_counter).await?;
            }
            if member.promote() {
                return Ok(());
            }
            let problem = format!("replica {} failed while it was rebuilt", peer.address);
            Err(self.state_error(problem))
        };
        let compared: Result<(), VolumeError> = while_frozen(peer, compared).await;
        drop(frozen);
        let frozen = since.elapsed();
        compared?;
        self.record_replicas()?;
        Ok(frozen)
    }
}

fn lacking(peer: &Peer, problem: String) -> VolumeError {
    VolumeError::Refused {
        replica: peer.address.clone(),
        action: "rebuilding it",
        problem,
    }
}

/// Does something while no request is under way, and gives it up when the guest has waited for long enough.
async fn while_frozen<T>(
    peer: &Peer,
    action: impl Future<Output = Result<T, VolumeError>>,
) -> Result<T, VolumeError> {
    let done = tokio::time::timeout(CALL_WHILE_FROZEN, action).await;
    done.unwrap_or_else(|_| {
        let seconds = CALL_WHILE_FROZEN.as_secs();
        let problem = format!("it took more than {seconds} s, and all I/O stood still");
        Err(lacking(peer, problem))
    })
}

/// While no request is under way. Returns what the source has.
async fn align(peer: &Peer, source: &Peer, counts_revisions: bool) -> Result<Info, VolumeError> {
    if counts_revisions {
        peer.set_revision_counter(0).await?;
    }
    let (theirs, ours) = (source.get().await?, peer.get().await?);
    if let Some((name, _)) = theirs.snapshots().find(|(name, _)| !is_snapshot(name)) {
        return Err(misnamed(source, name));
    }
    for (of, info) in [(source, &theirs), (peer, &ours)] {
        if !is_head(&info.head) {
            return Err(misnamed(of, &info.head));
        }
    }
    if let Some((name, _)) = ours
        .snapshots()
        .find(|(name, _)| !theirs.disks.contains_key(*name))
    {
        let problem = format!("it has a file {name:?} again that was removed");
        return Err(lacking(peer, problem));
    }
    let (from, to) = (
        format!("{}{META}", theirs.head),
        format!("{}{META}", ours.head),
    );
    peer.receive_from(source, &from, &to).await?;
    Ok(theirs)
}

/// A replica whose word for a file is not passed on: another would write a file of that name, in its directory or beside it.
fn misnamed(peer: &Peer, name: &str) -> VolumeError {
    lacking(
        peer,
        format!("it has a file {name:?}, which no replica has"),
    )
}

/// Whether two replicas have the same files below their heads, in the same order where order counts.
pub(in crate::longhorn) fn alike(one: &Info, other: &Info) -> bool {
    let chain = |info: &Info| info.chain.iter().skip(1).cloned().collect::<Vec<_>>();
    let files = |info: &Info| {
        let names = info.snapshots().map(|(name, _)| name.clone());
        names.collect::<BTreeSet<_>>()
    };
    chain(one) == chain(other) && files(one) == files(other)
}
