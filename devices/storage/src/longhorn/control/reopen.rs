//! Opening a volume again that has lost all its replicas, while it is used: whoever runs them has started them anew.
//!
//! Which of them have everything that was acknowledged is only known here, and only those are opened: not one that had failed before and missed a
//! write. They ended at different moments of what was not acknowledged, so they are compared, as after a crash, with the one that was read last; where they
//! count writes, those that have seen fewer than another are left, as whenever a volume is opened. When they were written, and whether somebody has closed them
//! since, says nothing that is not known better.
//!
//! A replica that still has the volume open is refused, as it is when a volume is opened: what it was sent before may yet be written, over what comes now.
//! But for one that was opened here, and could not be used then.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::open::{self, Opened};
use super::{Admin, Control, resync, supervise};
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::{Member, Mode};
use crate::longhorn::options::{ReplicaAddress, Taking, VolumeOptions};

/// How often replicas are asked whether they are there again.
const AGAIN: Duration = Duration::from_millis(200);

impl Control {
    /// Opens the replicas that have everything, if all have failed; else nothing is to be done. Replicas that cannot be opened stay failed.
    pub(crate) async fn reopen(self: &Arc<Self>) -> Result<(), VolumeError> {
        let mut admin = self.administrate().await?;
        if self.shared.complete_members() > 0 {
            return Ok(());
        }
        let mut complete = self.shared.complete_when_lost();
        // The one that was read last comes first.
        let primary = self.shared.primary();
        let failed = |member: &Member| member.failure().map(|failure| failure.at);
        complete.sort_by_key(|m| (Some(m.id) != primary, Reverse(failed(m))));
        let reopened = self.reopen_some(&mut admin, &complete).await;
        let problem = reopened.as_ref().err().map(ToString::to_string);
        if let Some(problem) = problem.as_ref().filter(|p| admin.lost.as_ref() != Some(*p)) {
            tracing::warn!(volume = %self.options.name, problem, "its replicas cannot be opened again");
        }
        admin.lost = problem;
        reopened
    }

    async fn reopen_some(
        self: &Arc<Self>,
        admin: &mut Admin,
        complete: &[Arc<Member>],
    ) -> Result<(), VolumeError> {
        self.await_replicas(admin, complete).await;
        let parsed = complete.iter().map(|member| member.address.parse());
        let options = VolumeOptions {
            replicas: parsed.collect::<Result<Vec<ReplicaAddress>, _>>()?,
            size: Some(self.shared.size()),
            revision_counter: Some(admin.counts_revisions),
            taking: Taking::Open,
            ..self.options.clone()
        };
        let opened = open::reopen(&options, complete).await?;
        // One that gets what it lacks from those that were lost gets no more.
        for member in self.shared.members() {
            if member.mode() == Mode::WriteOnly {
                self.shared
                    .fail(&member, "what it was rebuilt from is lost");
            }
        }
        admin.rebuild = None;
        let mut opening = self.opening.lock().await;
        *opening += 1;
        let number = *opening;
        let was_compared = self.shared.primary().is_none();
        let mut back = Vec::new();
        // As many of the one as of the other, in the same order.
        for (old, Opened { peer, problem, .. }) in complete.iter().zip(opened.replicas) {
            let told = match problem {
                None => self
                    .tell_limits(&peer)
                    .await
                    .map_err(|error| error.to_string()),
                Some(problem) => Err(problem),
            };
            if let Err(problem) = told {
                tracing::warn!(volume = %self.options.name, replica = %peer.address, problem, "a replica is not opened again");
                continue;
            }
            let id = admin.next_id;
            admin.next_id += 1;
            admin.peers.remove(&old.id);
            let peer = peer.hurried_by(self.closing.hurry());
            admin.peers.insert(id, peer);
            let new = Member::new(id, old.address.clone(), Mode::ReadWrite);
            back.push((old.id, Arc::new(new)));
        }
        let Some((_, first)) = back.first() else {
            return Err(self.state_error("no replica could be told its limits"));
        };
        self.shared
            .set_primary((back.len() > 1).then_some(first.id));
        self.shared.reinstate(&back);
        if back.len() == 1 && !was_compared {
            // It was never compared to the end, and there is nothing left to compare it with.
            self.set_progress(None);
            self.listener.compared();
        }
        drop(opening);
        for (_, member) in &back {
            supervise::watch(self, member);
        }
        tracing::warn!(volume = %self.options.name, replicas = back.len(), "all replicas had failed; those that have everything were opened again");
        if back.len() > 1 {
            tokio::spawn(resync::run(Arc::clone(self), number));
        }
        Ok(())
    }

    /// Waits until all of these can be opened, at most for the time that a replica may be silent since the last of them failed: those that are not there when
    /// the others are opened have to be rebuilt.
    async fn await_replicas(&self, admin: &Admin, complete: &[Arc<Member>]) {
        let failures = complete.iter().filter_map(|member| member.failure());
        let Some(last) = failures.map(|failure| failure.at).max() else {
            return;
        };
        loop {
            let mut asking = JoinSet::new();
            for peer in complete.iter().filter_map(|m| admin.peers.get(&m.id)) {
                let peer = peer.clone();
                asking.spawn(async move { peer.get().await.is_ok_and(|i| i.state == "closed") });
            }
            let answers = asking.join_all().await;
            // A clock that was set back is no reason to wait.
            let since = SystemTime::now().duration_since(last);
            let over = since.map_or(true, |since| since >= self.options.timeout);
            if over || self.is_ending() || answers.into_iter().all(|ready| ready) {
                return;
            }
            sleep(AGAIN).await;
        }
    }
}
