//! The set of replicas: who is in it, and letting go of one.

use std::sync::Arc;

use super::peer::Peer;
use super::{Admin, Control};
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::Member;
use crate::longhorn::options::ReplicaAddress;
use crate::longhorn::status::ReplicaStatus;

impl Control {
    /// The replicas, those that failed included.
    pub(crate) fn replicas(&self) -> Vec<ReplicaStatus> {
        let members = self.shared.members();
        members.iter().filter_map(|one| status(one)).collect()
    }

    /// Those that are to be recorded: not one that is read once it has been compared.
    pub(super) fn complete_replicas(&self) -> Vec<ReplicaStatus> {
        let members = self.shared.members();
        let complete = members.iter().filter(|member| member.is_complete());
        complete.filter_map(|one| status(one)).collect()
    }

    /// A replica, by where it is.
    pub(super) fn member(&self, address: &ReplicaAddress) -> Result<Arc<Member>, VolumeError> {
        let name = address.to_string();
        let mut members = self.shared.members().into_iter();
        let found = members.find(|member| member.address == name);
        found.ok_or_else(|| VolumeError::NotFound {
            volume: self.options.name.clone(),
            what: "replica",
            name,
        })
    }

    /// Refuses to do without a replica that has what no other is known to have.
    pub(super) fn ensure_spare(&self, member: &Member) -> Result<(), VolumeError> {
        let name = &member.address;
        if member.is_complete() && self.shared.complete_members() == 1 {
            return Err(self.state_error(format!("{name} is the only replica that has all of it")));
        }
        if self.shared.primary() == Some(member.id) {
            let problem = format!("{name} is what the others are compared with; wait for that");
            return Err(self.state_error(problem));
        }
        Ok(())
    }

    /// Tells the owner which replicas there are, after a change of ours, and records it.
    pub(super) fn record_replicas(&self) -> Result<(), VolumeError> {
        self.tell_listener();
        let recorded = self
            .record
            .as_ref()
            .map(|record| record.write(&self.complete_replicas()));
        recorded.unwrap_or(Ok(()))
    }

    /// Lets go of a replica: it misses what is written from now on.
    pub(crate) async fn remove_replica(&self, address: &ReplicaAddress) -> Result<(), VolumeError> {
        let mut admin = self.administrate().await?;
        self.remove(&mut admin, address).await
    }

    /// The same, for those who have the permission.
    pub(super) async fn remove(
        &self,
        admin: &mut Admin,
        address: &ReplicaAddress,
    ) -> Result<(), VolumeError> {
        let member = self.member(address)?;
        self.ensure_spare(&member)?;
        self.shared.fail(&member, "it was removed");
        self.shared.remove_member(member.id);
        if let Some(peer) = admin.peers.remove(&member.id) {
            // It may be gone for long.
            if let Err(error) = give_back(&peer).await {
                tracing::info!(volume = %self.options.name, %error, "a replica that was removed is not closed");
            }
        }
        self.record_replicas()
    }
}

/// A replica, as it is told to others.
fn status(member: &Member) -> Option<ReplicaStatus> {
    Some(ReplicaStatus {
        address: member.address.parse().ok()?,
        mode: member.mode(),
        failure: member.failure(),
    })
}

/// Closes a replica that gets no more writes, marked as one that is not complete: closed it would look like those that are. One that cannot be marked stays
/// open, as one that was not closed.
pub(super) async fn give_back(peer: &Peer) -> Result<(), VolumeError> {
    if let Err(error) = peer.set_rebuilding(true).await {
        // It may have the mark from a rebuild.
        if !peer.get().await?.rebuilding {
            return Err(error);
        }
    }
    peer.close().await.map(drop)
}
