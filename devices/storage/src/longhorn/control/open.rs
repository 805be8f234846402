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

use super::judge::{best, judge, judge_known, leave_beside, leave_few, mark_stale, usable};
use super::peer::{Info, Peer};
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::{Member, Socket, Stream};
use crate::longhorn::options::{ReplicaAddress, Taking, VolumeOptions};

/// How long a data connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long sent data may stay without an acknowledgement by the replica's host.
const USER_TIMEOUT: u32 = 30_000;

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
            let problem = format!(
                "it is {}: it was not rebuilt to the end; name one that is complete, or salvage this one alone",
                info.state
            );
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

    pub(super) fn leave(&mut self, problem: String) {
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

/// A replica that was not opened.
struct Unopened {
    error: VolumeError,
    /// What it says of itself, where something uses it.
    in_use: Option<Info>,
}

impl From<VolumeError> for Unopened {
    fn from(error: VolumeError) -> Self {
        Self {
            error,
            in_use: None,
        }
    }
}

/// Opens one replica.
async fn open_one(
    address: &ReplicaAddress,
    options: &VolumeOptions,
    lost: Option<&Member>,
) -> Result<Candidate, Unopened> {
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
            let problem = format!("it is {state}, and was to be handed over open");
            return Err(refused(problem).into());
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
        let error = refused(format!(
            "it is {} and must be closed; if nothing uses it any more, restart its process",
            before.state
        ));
        let in_use = is_open(&before.state).then_some(before);
        return Err(Unopened { error, in_use });
    }
    if !ours {
        let opened = peer.open(options.size.unwrap_or(0)).await;
        // Where nothing was heard it may be open, or be opened yet.
        let refuses = matches!(opened, Err(VolumeError::Refused { .. }));
        if let Some(lost) = lost.filter(|_| !refuses) {
            lost.set_reopened();
        }
        if let Err(error) = opened {
            // Another engine may have been faster.
            let now = if refuses { peer.get().await.ok() } else { None };
            let in_use = now.filter(|info| is_open(&info.state));
            return Err(Unopened { error, in_use });
        }
    }
    let alone = options.replicas.len() == 1;
    if alone && before.rebuilding && options.taking == Taking::Salvage {
        // There is nothing more complete, and whoever asks for it knows that.
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
/// Where `recorded`, the replicas in the options are known to have everything that was acknowledged, each of them.
///
/// # Errors
/// When none is left. Those that were opened are closed again.
pub(super) async fn open(
    options: &VolumeOptions,
    recorded: bool,
) -> Result<OpenedSet, VolumeError> {
    take(options, recorded, &[]).await
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
    take(options, true, lost).await
}

/// What came of opening each replica, in their order in the options.
struct Attempt {
    candidates: Vec<(usize, Candidate)>,
    left: Vec<(usize, Opened)>,
    /// How many of those do not answer.
    absent: usize,
    /// Those of them that something uses.
    in_use: Vec<(ReplicaAddress, Info)>,
}

async fn open_each(options: &VolumeOptions, lost: &[Arc<Member>]) -> Result<Attempt, VolumeError> {
    let mut opening = tokio::task::JoinSet::new();
    for (place, address) in options.replicas.iter().cloned().enumerate() {
        let options = options.clone();
        let lost = lost.get(place).cloned();
        opening.spawn(async move { (place, open_one(&address, &options, lost.as_deref()).await) });
    }
    let mut opened = Vec::new();
    while let Some(joined) = opening.join_next().await {
        opened.push(joined.map_err(|error| VolumeError::Host {
            volume: options.name.clone(),
            problem: error.to_string(),
        })?);
    }
    opened.sort_by_key(|(place, _)| *place);
    let mut attempt = Attempt {
        candidates: Vec::new(),
        left: Vec::new(),
        absent: 0,
        in_use: Vec::new(),
    };
    for (place, result) in opened {
        let Unopened { error, in_use } = match result {
            Ok(candidate) => {
                attempt.candidates.push((place, candidate));
                continue;
            }
            Err(unopened) => unopened,
        };
        let address = &options.replicas[place];
        attempt.absent += usize::from(matches!(error, VolumeError::Unreachable { .. }));
        attempt
            .in_use
            .extend(in_use.map(|info| (address.clone(), info)));
        let opened = Opened {
            peer: Peer::new(address, &options.name)?,
            problem: Some(error.to_string()),
            behind: false,
        };
        attempt.left.push((place, opened));
    }
    Ok(attempt)
}

async fn take(
    options: &VolumeOptions,
    recorded: bool,
    lost: &[Arc<Member>],
) -> Result<OpenedSet, VolumeError> {
    let Attempt {
        candidates,
        left: mut replicas,
        absent,
        in_use,
    } = open_each(options, lost).await?;
    let (places, mut candidates): (Vec<usize>, Vec<Candidate>) = candidates.into_iter().unzip();
    let known = !lost.is_empty();
    let (size, counts_revisions) = match known {
        true => judge_known(options, &mut candidates),
        false => {
            // Each of those that are recorded is enough by itself.
            let absent = if recorded { 0 } else { absent };
            judge_beside(options, absent, &in_use, &mut candidates)
        }
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

/// Leaves those that do not agree with the others, and all of them where those that were not opened may have what they miss. Returns what [`judge`] does.
fn judge_beside(
    options: &VolumeOptions,
    absent: usize,
    in_use: &[(ReplicaAddress, Info)],
    candidates: &mut [Candidate],
) -> (Option<u64>, bool) {
    let (size, counts_revisions) = judge(options, candidates);
    if options.taking == Taking::Open {
        leave_few(absent, options.replicas.len(), candidates);
    }
    if options.taking != Taking::HandedOver {
        leave_beside(in_use, counts_revisions, candidates);
    }
    (size, counts_revisions)
}
