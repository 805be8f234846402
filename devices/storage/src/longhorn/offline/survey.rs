//! Looking at replicas: what they have, and what an engine would make of each.

use tokio::task::JoinSet;

use super::create::look_inside;
use crate::longhorn::control::judge::judge;
use crate::longhorn::control::open::Candidate;
use crate::longhorn::control::peer::{Info, Peer};
use crate::longhorn::control::snapshot::{describe, name_of};
use crate::longhorn::error::VolumeError;
use crate::longhorn::options::{ReplicaAddress, VolumeOptions};
use crate::longhorn::status::Snapshot;

/// What an engine would make of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It has everything, as far as it and the others know.
    Complete,
    /// It was not closed when it was last used. It may have everything; opening the volume makes those that do the same.
    Unclean,
    /// It is open: something uses it, or did and crashed.
    InUse,
    /// It misses something that another has, or is otherwise not like the others.
    Stale,
    /// It was not rebuilt to the end.
    Incomplete,
    /// It has no files.
    Empty,
    /// Its files are not as they should be.
    Broken,
    /// It cannot be asked.
    Unreachable,
}

/// A replica, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub address: ReplicaAddress,
    /// What an engine would make of it.
    pub standing: Standing,
    /// Why it is not complete, and what to do; for people.
    pub problem: Option<String>,
    /// Its size in bytes, where it told one.
    pub size: Option<u64>,
    /// What it holds, where it could be opened, or is open.
    pub inside: Option<Inside>,
}

/// What a replica holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    /// The file that is written.
    pub head: String,
    /// Bytes that it takes.
    pub head_bytes: u64,
    /// The snapshots below it, from the newest on.
    pub chain: Vec<String>,
    /// All snapshots, those outside the chain included, the oldest first.
    pub snapshots: Vec<Snapshot>,
    /// How many writes it has seen, where it counts them.
    pub revision_counter: Option<u64>,
}

impl From<&Info> for Inside {
    fn from(info: &Info) -> Self {
        let chain = info.chain.iter().skip(1);
        let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
        Self {
            head: info.head.clone(),
            head_bytes: unsigned(info.head_bytes),
            chain: chain.map(|file| name_of(file).to_owned()).collect(),
            snapshots: describe(info),
            revision_counter: info
                .counts_revisions
                .then(|| unsigned(info.revision_counter)),
        }
    }
}

const INCOMPLETE: &str = "it was not rebuilt to the end";

/// What one replica says for itself.
struct Look {
    peer: Peer,
    standing: Standing,
    problem: Option<String>,
    size: Option<u64>,
    /// As it is while it is open.
    info: Option<Info>,
}

impl Look {
    async fn at(peer: Peer) -> Self {
        let mut look = Self {
            peer,
            standing: Standing::Complete,
            problem: None,
            size: None,
            info: None,
        };
        match look.peer.get().await {
            Ok(info) => {
                look.size = (info.size > 0).then_some(info.size);
                look.take(info).await;
            }
            Err(error) => look.fail(error),
        }
        look
    }

    /// Goes on by what it said while it was closed, unless it is open.
    async fn take(&mut self, info: Info) {
        let (standing, problem) = match info.state.as_str() {
            "initial" => (Standing::Empty, "it has no files".to_owned()),
            "closed" if info.dirty && info.rebuilding => {
                (Standing::Incomplete, INCOMPLETE.to_owned())
            }
            "closed" if info.dirty => {
                let problem = "it was not closed when it was last used";
                (Standing::Unclean, problem.to_owned())
            }
            "closed" => return self.open().await,
            "open" | "dirty" | "rebuilding" => {
                let problem = format!(
                    "it is {}: something uses it, or did and crashed; if nothing does, restart its process",
                    info.state
                );
                self.info = Some(info);
                (Standing::InUse, problem)
            }
            state => {
                let problem = format!("it is in the state {state:?}; look at its log");
                (Standing::Broken, problem)
            }
        };
        self.standing = standing;
        self.problem = Some(problem);
    }

    async fn open(&mut self) {
        match look_inside(&self.peer, self.size.unwrap_or(0)).await {
            Ok(info) => {
                if info.rebuilding {
                    self.standing = Standing::Incomplete;
                    self.problem = Some(INCOMPLETE.to_owned());
                }
                self.info = Some(info);
            }
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: VolumeError) {
        self.standing = match error {
            VolumeError::Unreachable { .. } => Standing::Unreachable,
            _ => Standing::Broken,
        };
        self.problem = Some(match error {
            VolumeError::Unreachable { problem, .. } => {
                format!(
                    "it cannot be reached: {problem}; is its process running, and this its control port?"
                )
            }
            VolumeError::Refused { problem, .. } => problem,
            other => other.to_string(),
        });
    }
}

/// Looks at all of them, at once.
pub(super) async fn survey(options: &VolumeOptions, peers: Vec<Peer>) -> Vec<Found> {
    let mut looking = JoinSet::new();
    for (place, peer) in peers.into_iter().enumerate() {
        looking.spawn(async move { (place, Look::at(peer).await) });
    }
    let mut looks = Vec::new();
    while let Some(joined) = looking.join_next().await {
        // None is aborted.
        looks.extend(joined);
    }
    looks.sort_by_key(|(place, _)| *place);
    let mut looks: Vec<Look> = looks.into_iter().map(|(_, look)| look).collect();
    compare_with_others(options, &mut looks);
    let found = looks.into_iter().map(|look| Found {
        address: look.peer.address,
        standing: look.standing,
        problem: look.problem,
        size: look.size,
        inside: look.info.as_ref().map(Inside::from),
    });
    found.collect()
}

/// Finds those that an engine would leave, by its own judgement.
fn compare_with_others(options: &VolumeOptions, looks: &mut [Look]) {
    let complete = looks.iter_mut();
    let mut complete: Vec<&mut Look> = complete
        .filter(|look| look.standing == Standing::Complete)
        .collect();
    let candidates = complete.iter().filter_map(|look| {
        let info = look.info.clone()?;
        Some(Candidate::new(look.peer.clone(), info, false))
    });
    let mut candidates: Vec<Candidate> = candidates.collect();
    judge(options, &mut candidates);
    for candidate in candidates {
        let found = complete
            .iter_mut()
            .find(|look| look.peer.address == candidate.peer.address);
        if let (Some(look), Some(problem)) = (found, candidate.problem) {
            look.standing = Standing::Stale;
            look.problem = Some(problem);
        }
    }
}
