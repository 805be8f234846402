//! Opening a volume: which of its replicas can be used, and what has to be so before the first request.
//!
//! The order and the rules are Longhorn's (an engine of either kind finds the same set), but for some things: a volume's replicas are never closed or
//! opened by force; one that was not closed is remembered, so that its replicas are compared; and one of which it can be seen that it misses something is
//! left, also where writes are not counted.
//!
//! An engine closes the replicas that have everything. One that was not closed while others were had failed before: its own process may have ended, or
//! the way to it, and it is the same to us. Where none was closed the engine itself died: all may have had everything, and the one that was written last is
//! the one to believe. Those that it wrote long before, or never, are taken in as well, and are worth nothing until they have been compared.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

use super::history;
use super::peer::{Info, Peer};
use super::time::since_epoch;
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::{Member, Socket, Stream};
use crate::longhorn::options::{ReplicaAddress, Taking, VolumeOptions};

/// How long a data connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long sent data may stay without an acknowledgement by the replica's host.
const USER_TIMEOUT: u32 = 30_000;

/// How far apart the last writes of replicas may be that are all the newest.
pub(super) const NEWEST: Duration = Duration::from_secs(5);

/// The sectors that a volume is counted in.
const SECTOR_SIZE: i64 = 512;

/// A replica of a volume that was opened.
pub(super) struct Opened {
    pub peer: Peer,
    /// Why it cannot be used.
    pub problem: Option<String>,
    /// It may miss what was acknowledged, until it has been compared, and bears the mark of one that is not complete.
    pub behind: bool,
}

/// A volume that was opened.
pub(super) struct OpenedSet {
    pub size: u64,
    pub counts_revisions: bool,
    /// Some replica that is used was not closed when it was last used.
    pub unclean: bool,
    /// In their order in the options.
    pub replicas: Vec<Opened>,
    /// Which of them is believed where they differ.
    pub best: usize,
}

/// A replica that is open.
pub(in crate::longhorn) struct Candidate {
    pub peer: Peer,
    pub info: Info,
    /// It was not closed when it was last used.
    pub unclean: bool,
    /// Why it is left.
    pub problem: Option<String>,
}

impl Candidate {
    /// One that is left if what it says of itself is not as it should be.
    pub(in crate::longhorn) fn new(peer: Peer, info: Info, unclean: bool) -> Self {
        let mut candidate = Self {
            info,
            peer,
            unclean,
            problem: None,
        };
        let info = &candidate.info;
        if !is_open(&info.state) {
            let problem = format!("it is {}: it was not rebuilt to the end", info.state);
            candidate.leave(problem);
        } else if info.sector_size != SECTOR_SIZE {
            let problem = format!("its sectors have {} bytes instead of 512", info.sector_size);
            candidate.leave(problem);
        } else if info.size == 0 || !info.size.is_multiple_of(SECTOR_SIZE.unsigned_abs()) {
            let problem = format!("its size of {} bytes cannot be", info.size);
            candidate.leave(problem);
        }
        candidate
    }

    fn leave(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }
}

/// Whether a replica in this state is open, and has everything that it ever had.
fn is_open(state: &str) -> bool {
    matches!(state, "open" | "dirty")
}

/// A data connection to a replica.
pub(super) async fn connect(address: &ReplicaAddress) -> Result<Arc<Socket>, VolumeError> {
    let unreachable = |problem: String| VolumeError::Unreachable {
        replica: address.clone(),
        action: "connecting to its data port",
        problem,
    };
    let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address.data())).await;
    let stream = match connected {
        Ok(stream) => stream.and_then(prepare),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let stream = stream.map_err(|error| unreachable(error.to_string()))?;
    Ok(Socket::new(Stream::Tcp(stream)))
}

fn prepare(stream: TcpStream) -> io::Result<std::net::TcpStream> {
    let stream = stream.into_std()?;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT)?;
    Ok(stream)
}

/// Opens one replica.
async fn open_one(
    address: &ReplicaAddress,
    options: &VolumeOptions,
    lost: Option<&Member>,
) -> Result<Candidate, VolumeError> {
    let peer = Peer::new(address, &options.name)?;
    let refused = |problem: String| VolumeError::Refused {
        replica: address.clone(),
        action: "opening it",
        problem,
    };
    let before = peer.get().await?;
    if options.taking == Taking::HandedOver {
        if !is_open(&before.state) {
            let state = before.state;
            return Err(refused(format!(
                "it is {state}, and was to be handed over open"
            )));
        }
        return Ok(Candidate {
            info: before,
            peer,
            unclean: false,
            problem: None,
        });
    }
    let ours = is_open(&before.state) && lost.is_some_and(Member::is_reopened);
    if before.state != "closed" && !ours {
        let state = before.state;
        return Err(refused(format!(
            "it is {state} and must be closed; if nothing uses it any more, restart its process"
        )));
    }
    if !ours {
        let opened = peer.open(options.size.unwrap_or(0)).await;
        // Where nothing was heard it may be open, or be opened yet.
        let refuses = matches!(opened, Err(VolumeError::Refused { .. }));
        if let Some(lost) = lost.filter(|_| !refuses) {
            lost.set_reopened();
        }
        opened?;
    }
    if options.replicas.len() == 1 && before.rebuilding {
        // There is nothing more complete.
        peer.set_rebuilding(false).await?;
    }
    let info = peer.get().await?;
    let mut candidate = Candidate::new(peer, info, before.dirty);
    if candidate.problem.is_none() {
        if let Err(error) = candidate.peer.set_unmap_marks_removed(false).await {
            candidate.leave(error.to_string());
        }
    }
    Ok(candidate)
}

/// Opens all that can be, and leaves those that do not agree with the others.
///
/// # Errors
/// When none is left. Those that were opened are closed again.
pub(super) async fn open(options: &VolumeOptions) -> Result<OpenedSet, VolumeError> {
    take(options, &[]).await
}

/// Opens replicas again that all had failed: as many as there are in the options, in the same order. They are known to have everything that was acknowledged,
/// whenever they were written last and whoever has closed them since; the first of them is to be believed.
///
/// # Errors
/// When none is left.
pub(super) async fn reopen(
    options: &VolumeOptions,
    lost: &[Arc<Member>],
) -> Result<OpenedSet, VolumeError> {
    take(options, lost).await
}

async fn take(options: &VolumeOptions, lost: &[Arc<Member>]) -> Result<OpenedSet, VolumeError> {
    let mut opening = tokio::task::JoinSet::new();
    for (place, address) in options.replicas.iter().cloned().enumerate() {
        let options = options.clone();
        let lost = lost.get(place).cloned();
        opening.spawn(async move { (place, open_one(&address, &options, lost.as_deref()).await) });
    }
    let mut candidates = Vec::new();
    let mut replicas = Vec::new();
    while let Some(joined) = opening.join_next().await {
        match joined {
            Ok((place, Ok(candidate))) => candidates.push((place, candidate)),
            Ok((place, Err(error))) => {
                let peer = Peer::new(&options.replicas[place], &options.name)?;
                let opened = Opened {
                    peer,
                    problem: Some(error.to_string()),
                    behind: false,
                };
                replicas.push((place, opened));
            }
            Err(error) => {
                return Err(VolumeError::Host {
                    volume: options.name.clone(),
                    problem: error.to_string(),
                });
            }
        }
    }
    candidates.sort_by_key(|(place, _)| *place);
    let (places, mut candidates): (Vec<usize>, Vec<Candidate>) = candidates.into_iter().unzip();
    let known = !lost.is_empty();
    let (size, counts_revisions) = match known {
        true => judge_known(options, &mut candidates),
        false => judge(options, &mut candidates),
    };
    let unclean = usable(&mut candidates).any(|candidate| candidate.unclean);
    let best = best(&candidates);
    let guessed = unclean && options.taking == Taking::Open && !counts_revisions && !known;
    let behind = match best {
        Some(best) if guessed => mark_stale(&mut candidates, best).await,
        _ => vec![false; candidates.len()],
    };
    let best = best.map(|index| places[index]);
    for candidate in &candidates {
        let left = candidate.problem.is_some() && options.taking != Taking::HandedOver;
        // Whoever tries again, or rebuilds it, shall find it as we did: one that was not closed would seem to have been.
        if left && !candidate.unclean {
            let _ = candidate.peer.close().await;
        }
    }
    for ((place, candidate), behind) in places.into_iter().zip(candidates).zip(behind) {
        let Candidate { peer, problem, .. } = candidate;
        let opened = Opened {
            peer,
            problem,
            behind,
        };
        replicas.push((place, opened));
    }
    replicas.sort_by_key(|(place, _)| *place);
    let replicas: Vec<Opened> = replicas.into_iter().map(|(_, replica)| replica).collect();
    if let (Some(size), Some(best)) = (size, best) {
        return Ok(OpenedSet {
            size,
            counts_revisions,
            unclean,
            replicas,
            best,
        });
    }
    let mut problems = Vec::new();
    for Opened { peer, problem, .. } in replicas {
        let problem = problem.unwrap_or_else(|| format!("replica {}: unused", peer.address));
        problems.push(problem);
    }
    Err(VolumeError::NoReplica {
        volume: options.name.clone(),
        problems,
    })
}

/// Leaves those that do not agree with the others. Returns the volume's size, unless none is left, and whether its writes are counted.
pub(in crate::longhorn) fn judge(
    options: &VolumeOptions,
    candidates: &mut [Candidate],
) -> (Option<u64>, bool) {
    let counts_revisions = agree_on_counting(options, candidates);
    choose(options, counts_revisions, candidates);
    let size = agree_on_size(options, candidates);
    (size, counts_revisions)
}

/// The same, where they are known to have had everything: how old they are, and whether they were closed, says nothing.
fn judge_known(options: &VolumeOptions, candidates: &mut [Candidate]) -> (Option<u64>, bool) {
    let counts_revisions = agree_on_counting(options, candidates);
    if counts_revisions {
        leave_those_behind(candidates);
    }
    // They may have lost it with their disk.
    leave_empty(candidates);
    let first = candidates.iter().position(|c| c.problem.is_none());
    leave_other_histories(candidates, first);
    let size = agree_on_size(options, candidates);
    (size, counts_revisions)
}

fn usable(candidates: &mut [Candidate]) -> impl Iterator<Item = &mut Candidate> {
    candidates.iter_mut().filter(|c| c.problem.is_none())
}

/// The one that is believed where they differ: one that holds something before one that is new, then one that was closed before any that was not, and of those
/// the one that was written last.
fn best(candidates: &[Candidate]) -> Option<usize> {
    let places = candidates.iter().enumerate();
    places
        .filter(|(_, candidate)| candidate.problem.is_none())
        .max_by_key(|(_, c)| (!c.info.is_empty(), !c.unclean, c.info.modified))
        .map(|(place, _)| place)
}

/// Those that may miss what the best has: which are empty, or were written last long before it. Each is marked as one that is not complete until it has been
/// compared: an engine that dies before that must not take it for the best, for what it was given last is new. One that cannot be marked is left.
///
/// Those that were written last together were all used by the engine that died, unless it died within [`NEWEST`] of one's failure: either has all that was
/// acknowledged. Where the best itself is empty there is nothing to miss.
async fn mark_stale(candidates: &mut [Candidate], best: usize) -> Vec<bool> {
    let (empty, newest) = {
        let best = &candidates[best].info;
        (best.is_empty(), since_epoch(best.modified))
    };
    let mut stale = Vec::new();
    for candidate in &mut *candidates {
        let info = &candidate.info;
        let older = info.is_empty() || since_epoch(info.modified) + NEWEST < newest;
        let marks = candidate.problem.is_none() && !empty && older;
        stale.push(marks);
        if !marks {
            continue;
        }
        if let Err(error) = candidate.peer.set_rebuilding(true).await {
            candidate.leave(format!("it may miss what others have, and {error}"));
        }
    }
    stale
}

/// The size: what was asked for, or what the best has. Those of another are left.
fn agree_on_size(options: &VolumeOptions, candidates: &mut [Candidate]) -> Option<u64> {
    // Not the largest: one may have grown when the others refused, and failed since.
    let size = candidates[best(candidates)?].info.size;
    let size = options.size.unwrap_or(size);
    for candidate in usable(candidates) {
        if candidate.info.size != size {
            let (replica, has) = (&candidate.peer.address, candidate.info.size);
            let problem = format!("replica {replica} has {has} bytes, and the volume {size}");
            candidate.leave(problem);
        }
    }
    Some(size)
}

/// Whether writes are counted: as was asked for, or as they all do. Those that do otherwise are left.
fn agree_on_counting(options: &VolumeOptions, candidates: &mut [Candidate]) -> bool {
    let counting = usable(candidates)
        .filter(|c| c.info.counts_revisions)
        .count();
    // What a counter says is worth more than that others have none.
    let counts = options.revision_counter.unwrap_or(counting > 0);
    for candidate in usable(candidates) {
        if candidate.info.counts_revisions != counts {
            let replica = &candidate.peer.address;
            let (does, volume) = if counts {
                ("does not count", "does")
            } else {
                ("counts", "does not")
            };
            let problem = format!("replica {replica} {does} its writes, and the volume {volume}");
            candidate.leave(problem);
        }
    }
    counts
}

/// Leaves those that are known to miss something, or not known to have everything.
fn choose(options: &VolumeOptions, counts_revisions: bool, candidates: &mut [Candidate]) {
    match options.taking {
        _ if counts_revisions => leave_those_behind(candidates),
        Taking::Salvage => {
            leave_empty(candidates);
            leave_all_but_one(candidates);
        }
        Taking::Open => leave_older(candidates),
        // Whoever hands them over knows which are good.
        Taking::HandedOver => {}
    }
    if options.taking == Taking::Open {
        leave_other_histories(candidates, best(candidates));
    }
}

/// Leaves those that have never held anything, if others have: they are new, and get what they lack by a rebuild only.
fn leave_empty(candidates: &mut [Candidate]) {
    if usable(candidates).all(|candidate| candidate.info.is_empty()) {
        return;
    }
    for candidate in usable(candidates).filter(|candidate| candidate.info.is_empty()) {
        let replica = &candidate.peer.address;
        let problem = format!("replica {replica} is empty, and others are not; add it instead");
        candidate.leave(problem);
    }
}

/// Leaves those that have seen fewer writes than another.
fn leave_those_behind(candidates: &mut [Candidate]) {
    let highest = usable(candidates).map(|c| c.info.revision_counter).max();
    for candidate in usable(candidates) {
        let counter = candidate.info.revision_counter;
        if Some(counter) < highest {
            let replica = &candidate.peer.address;
            let others = highest.unwrap_or(0);
            let problem =
                format!("replica {replica} has seen {counter} writes, and another {others}");
            candidate.leave(problem);
        }
    }
}

/// Leaves all but the one that holds most, of those that were written last.
fn leave_all_but_one(candidates: &mut [Candidate]) {
    let newest = usable(candidates)
        .map(|c| since_epoch(c.info.modified))
        .max();
    let newest = newest.unwrap_or_default();
    // Of those written last, the one that holds most; of those, the one written last of all.
    let best = usable(candidates)
        .filter(|c| since_epoch(c.info.modified) + NEWEST >= newest)
        .max_by_key(|c| (c.info.head_bytes, c.info.modified))
        .map(|c| c.peer.address.clone());
    for candidate in usable(candidates) {
        if Some(&candidate.peer.address) != best.as_ref() {
            let replica = &candidate.peer.address;
            let problem = format!("replica {replica} is not the one that was salvaged");
            candidate.leave(problem);
        }
    }
}

/// Leaves those that were not closed and not written after others were, and those that were closed before others were written. If one was written long
/// after any was closed, nobody can tell who has everything, and all are left.
fn leave_older(candidates: &mut [Candidate]) {
    let written = |candidate: &Candidate| since_epoch(candidate.info.modified);
    let closed = usable(candidates).filter(|c| !c.unclean && !c.info.is_empty());
    let Some(closed) = closed.map(|c| written(c)).max() else {
        // They are new, or their engine died: they are compared.
        return;
    };
    leave_empty(candidates);
    let newer = usable(candidates)
        .find(|c| c.unclean && written(c) > closed + NEWEST)
        .map(|c| c.peer.address.clone());
    for candidate in usable(candidates) {
        let replica = &candidate.peer.address;
        let written = written(candidate);
        let problem = match &newer {
            Some(newer) if candidate.unclean => format!(
                "replica {replica} was not closed when it was last used, and others were, but {newer} was written after that; name only those that have everything"
            ),
            Some(newer) => format!(
                "replica {replica} was closed before {newer} was written, which was not closed; name only those that have everything"
            ),
            // Else its engine may have died with its first writes, before the others were written at all.
            None if candidate.unclean && written <= closed => format!(
                "replica {replica} was not closed when it was last used, and others were: it may miss what they have"
            ),
            None if written + NEWEST < closed => {
                let before = (closed - written).as_secs();
                format!(
                    "replica {replica} was last written {before} s before another: it may miss what that has"
                )
            }
            None => continue,
        };
        candidate.leave(problem);
    }
}

/// Leaves those with which something else was done than with the best, such as a snapshot while they were away.
fn leave_other_histories(candidates: &mut [Candidate], best: Option<usize>) {
    let Some(best) = best else {
        return;
    };
    let (best, info) = (
        candidates[best].peer.address.clone(),
        candidates[best].info.clone(),
    );
    for candidate in usable(candidates) {
        if history::differ(&candidate.info, &info) {
            let replica = &candidate.peer.address;
            let problem = format!(
                "replica {replica} has other snapshots than {best}, which was used later or closed, or was not there when a snapshot was taken or gone back to"
            );
            candidate.leave(problem);
        }
    }
}
