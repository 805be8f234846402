//! The first step of a rebuild: the replica becomes one of the volume's, and gets every write from a snapshot on that it has in common with the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::MutexGuard;

use super::super::peer::{NewSnapshot, Peer};
use super::super::remove::give_back;
use super::super::{Admin, Control, open, supervise, time};
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
    /// Makes a replica ready, and has it get every write from now on. `marked` has it remember from the first moment that it is not complete;
    /// Longhorn's tools do that themselves, and would fail where it is done.
    pub(crate) async fn create_replica(
        self: &Arc<Self>,
        address: &ReplicaAddress,
        marked: bool,
    ) -> Result<Created, VolumeError> {
        // One after the other, and without the permission that others wait for: a replica that is none of ours yet may take its time.
        let _adding = self.adding.lock().await;
        let peer = Peer::new(address, &self.options.name)?.hurried_by(self.closing.hurry());
        let snapshot = NewSnapshot {
            name: time::unique_name(),
            user_created: false,
            created: time::now(),
            labels: HashMap::new(),
        };
        let size = self.shared.size();
        let settings = self.settings();
        let counts_revisions = {
            let admin = self.administrate_complete().await?;
            self.ensure_new(address)?;
            self.ensure_room(&admin, Some(&snapshot.name)).await?;
            admin.counts_revisions
        };
        let has_mark = self.open_new(&peer, size).await?;
        let ready = async {
            if has_mark != marked {
                peer.set_rebuilding(marked).await?;
            }
            self.check_new(&peer, size, counts_revisions).await?;
            // Nothing is written to it yet: it may as well be done now, while nobody waits.
            peer.snapshot(&snapshot).await?;
            let admin = self.administrate_complete().await?;
            self.ensure_new(address)?;
            if self.shared.size() != size || self.settings() != settings {
                let problem = "it was changed while a replica was added; add that again";
                return Err(self.state_error(problem));
            }
            self.join(admin, &peer, &snapshot).await
        };
        match ready.await {
            Ok((member, frozen)) => {
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
            Err(error) => {
                // What it said of itself before may be gone, and with it that it misses something. Left open it says that it was not closed.
                let _ = give_back(&peer).await;
                Err(error)
            }
        }
    }

    fn ensure_new(&self, address: &ReplicaAddress) -> Result<(), VolumeError> {
        if self.member(address).is_err() {
            return Ok(());
        }
        let problem = format!("it has a replica {address} already; remove that first");
        Err(self.state_error(problem))
    }

    /// Has a replica that is ready get every write from a common snapshot on, which it has taken. Returns how long all I/O stood still.
    async fn join(
        &self,
        mut admin: MutexGuard<'_, Admin>,
        peer: &Peer,
        snapshot: &NewSnapshot,
    ) -> Result<(Arc<Member>, Duration), VolumeError> {
        let posts = self.shared.connected_posts();
        let mut connecting = Vec::new();
        for _ in &posts {
            let address = peer.address.clone();
            connecting.push(tokio::spawn(async move { open::connect(&address).await }));
        }
        let mut sockets = Vec::new();
        for connecting in connecting {
            let connected = connecting.await;
            sockets.push(connected.map_err(|error| self.state_error(error.to_string()))??);
        }
        let id = admin.next_id;
        admin.next_id += 1;
        let member = Arc::new(Member::new(id, peer.address.to_string(), Mode::WriteOnly));
        let since = Instant::now();
        let frozen = self.freeze_alike().await?;
        self.snapshot_all(&admin, snapshot).await?;
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
        Ok((member, since.elapsed()))
    }

    /// Opens a closed replica that is to be rebuilt. Whether it has the mark that it is not complete, from a rebuild that came to no end.
    async fn open_new(&self, peer: &Peer, size: u64) -> Result<bool, VolumeError> {
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
        peer.open(size).await?;
        Ok(info.rebuilding)
    }

    /// Refuses one that is open and cannot be one of the volume's. One that is smaller grows.
    async fn check_new(
        &self,
        peer: &Peer,
        size: u64,
        counts_revisions: bool,
    ) -> Result<(), VolumeError> {
        let mut info = peer.get().await?;
        if info.size < size {
            peer.expand(size).await?;
            info = peer.get().await?;
        }
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
