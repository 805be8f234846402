//! The first step of a rebuild: the replica becomes one of the volume's, and gets every write from a snapshot on that it has in common with the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::super::peer::{NewSnapshot, Peer};
use super::super::{Control, open, supervise, time};
use super::{Created, Rebuild};
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::{Member, Mode};
use crate::longhorn::options::ReplicaAddress;

fn refused(peer: &Peer, problem: impl Into<String>) -> VolumeError {
    VolumeError::Refused {
        replica: peer.address.clone(),
        action: "adding it",
        problem: problem.into(),
    }
}

impl Control {
    /// Makes a replica ready, and has it get every write from now on.
    pub(crate) async fn create_replica(
        self: &Arc<Self>,
        address: &ReplicaAddress,
    ) -> Result<Created, VolumeError> {
        let mut admin = self.administrate_complete().await?;
        if self.member(address).is_ok() {
            let problem = format!("it has a replica {address} already; remove that first");
            return Err(self.state_error(problem));
        }
        let peer = Peer::new(address, &self.options.name)?;
        let snapshot = NewSnapshot {
            name: time::unique_name(),
            user_created: false,
            created: time::now(),
            labels: HashMap::new(),
        };
        self.ensure_room(&admin, Some(&snapshot.name)).await?;
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
        let member = Arc::new(Member::new(id, address.to_string(), Mode::WriteOnly));

        let frozen = self.shared.freeze().await;
        let since = Instant::now();
        let taken = async {
            peer.snapshot(&snapshot).await?;
            self.snapshot_all(&admin, &snapshot).await
        };
        if let Err(error) = taken.await {
            drop(frozen);
            let _ = peer.close().await;
            return Err(error);
        }
        for (post, socket) in posts.iter().zip(sockets) {
            member.adopt(&socket);
            self.shared.send_connection(post, &member, socket);
        }
        self.shared.add_member(Arc::clone(&member));
        admin.peers.insert(id, peer.clone());
        admin.rebuild = Some(Rebuild {
            member: id,
            prepared: false,
        });
        drop(frozen);
        let frozen = since.elapsed();

        supervise::watch(self, &member);
        if let Err(error) = self.record_replicas() {
            self.shared.fail(&member, &error.to_string());
            return Err(error);
        }
        Ok(Created {
            member,
            peer,
            frozen,
        })
    }

    /// Brings a closed replica into a state from which it can be rebuilt.
    async fn prepare(&self, peer: &Peer) -> Result<(), VolumeError> {
        let size = self.shared.size();
        let mut info = peer.get().await?;
        if info.state == "initial" {
            // Lost with all it had, or new.
            peer.create(size).await?;
            info = peer.get().await?;
        }
        if info.state != "closed" {
            let state = info.state;
            let problem = format!(
                "it is {state} and must be closed; if nothing uses it any more, restart its process"
            );
            return Err(refused(peer, problem));
        }
        if info.size > size {
            let has = info.size;
            let problem = format!("it has {has} bytes, and the volume only {size}");
            return Err(refused(peer, problem));
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
        if info.size != size {
            return Err(refused(peer, "it is not of the volume's size"));
        }
        if info.counts_revisions != counts_revisions {
            let problem = "it counts its writes and the volume does not, or the other way round; start it otherwise";
            return Err(refused(peer, problem));
        }
        self.tell_limits(peer).await
    }
}
