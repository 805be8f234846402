//! What is done on all replicas at once, such as growing them.
//!
//! Whoever has not answered may have done it, or do it yet. So an error is looked into: those that have done it are found by what they say of
//! themselves, and nobody goes on beside others who did otherwise, or may.

use std::future::Future;
use std::sync::Arc;

use super::peer::{Info, Peer};
use super::{Admin, Control};
use crate::longhorn::SECTOR;
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::Member;

/// What became of a replica that was told to do something: what is to be kept, before what is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Done,
    /// It has not done it and will not.
    Refused,
    /// It has not done it, and may yet.
    Undecided,
    /// It may have done it, or do it yet, and cannot be asked.
    Unknown,
}

/// A replica that was told to do something.
struct Told {
    member: Arc<Member>,
    outcome: Outcome,
    error: Option<VolumeError>,
}

impl Control {
    /// Does something on all replicas at once. `done` says by what a replica tells of itself whether it has done it. If any has, those that have not are left. If
    /// none has, the first says why, and those are left that may do it yet: all but one of them, if there are no others.
    pub(super) async fn on_all<F, Fut>(
        &self,
        admin: &Admin,
        action: F,
        done: impl Fn(&Peer, &Info) -> bool,
    ) -> Result<(), VolumeError>
    where
        F: Fn(Peer) -> Fut,
        Fut: Future<Output = Result<Info, VolumeError>> + Send + 'static,
    {
        let live = self.live(admin);
        let answers = each(&live, action).await;
        let failed = live.iter().zip(&answers);
        let failed = failed.filter(|(_, answer)| answer.is_err());
        let failed: Vec<_> = failed.map(|(replica, _)| replica.clone()).collect();
        // Nothing is lost with those once another has done it, so they have had their time.
        let is_done = answers.iter().any(Result::is_ok);
        let ask = |peer: Peer| async move {
            match is_done {
                true => peer.get_soon().await,
                false => peer.get().await,
            }
        };
        let mut asked = each(&failed, ask).await.into_iter();
        let told = live.iter().zip(answers).map(|((member, peer), answer)| {
            let error = answer.err();
            let outcome = match &error {
                None => Outcome::Done,
                Some(error) => {
                    let now = asked.next().and_then(Result::ok);
                    judge(error, now.map(|info| done(peer, &info)))
                }
            };
            let member = Arc::clone(member);
            Told {
                member,
                outcome,
                error,
            }
        });
        self.leave_others(told.collect())
    }

    /// Leaves those that did otherwise than those that are kept, or may do so.
    fn leave_others(&self, told: Vec<Told>) -> Result<(), VolumeError> {
        let Some(kept) = told.iter().map(|told| told.outcome).min() else {
            return Err(self.state_error("no replica is left"));
        };
        // Of those that may do it yet each may do it at another moment.
        let decided = matches!(kept, Outcome::Done | Outcome::Refused);
        let mut first = None;
        for Told {
            member,
            outcome,
            error,
        } in told
        {
            if outcome == kept && (decided || first.is_none()) {
                first.get_or_insert(error);
                continue;
            }
            let reason = error.map_or_else(String::new, |error| error.to_string());
            self.shared.fail_behind(&member, &reason);
        }
        match first.flatten() {
            Some(error) if kept != Outcome::Done => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the volume larger. Queues see it with the next request.
    pub(crate) async fn expand(&self, size: u64) -> Result<(), VolumeError> {
        let admin = self.administrate_complete().await?;
        let present = self.shared.size();
        if !size.is_multiple_of(SECTOR) || i64::try_from(size).is_err() {
            return Err(self.state_error(format!("{size} bytes: a size is a multiple of 4096")));
        }
        if size < present {
            let problem = format!("it has {present} bytes, and cannot become smaller");
            return Err(self.state_error(problem));
        }
        if size == present {
            return Ok(());
        }
        // Replicas take one.
        self.ensure_room(&admin, None).await?;
        let frozen = self.freeze_alike().await?;
        let grown = self
            .on_all(
                &admin,
                move |peer| async move { peer.expand(size).await },
                |_, info| info.size == size,
            )
            .await;
        if grown.is_ok() {
            self.shared.set_size(size);
        }
        drop(frozen);
        if grown.is_ok() {
            self.listener.expanded(size);
        }
        grown
    }
}

/// Asks all of these at once. The answers come in their order.
pub(super) async fn each<T, F, Fut>(
    replicas: &[(Arc<Member>, Peer)],
    ask: F,
) -> Vec<Result<T, VolumeError>>
where
    T: Send + 'static,
    F: Fn(Peer) -> Fut,
    Fut: Future<Output = Result<T, VolumeError>> + Send + 'static,
{
    let asking: Vec<_> = replicas
        .iter()
        .map(|(_, peer)| (peer, tokio::spawn(ask(peer.clone()))))
        .collect();
    let mut answers = Vec::new();
    for (peer, asking) in asking {
        let lost = |error: tokio::task::JoinError| VolumeError::Unreachable {
            replica: peer.address.clone(),
            action: "asking it",
            problem: error.to_string(),
        };
        answers.push(asking.await.unwrap_or_else(|error| Err(lost(error))));
    }
    answers
}

/// What became of one that did not say that it has done it. `now` is whether it has, as it says of itself.
fn judge(error: &VolumeError, now: Option<bool>) -> Outcome {
    match (error, now) {
        (_, Some(true)) => Outcome::Done,
        (VolumeError::Refused { .. }, Some(false)) => Outcome::Refused,
        (_, Some(false)) => Outcome::Undecided,
        (_, None) => Outcome::Unknown,
    }
}
