//! Opening a volume: which of its replicas can be used, and what has to be so before the first request.
//!
//! The order and the rules are Longhorn's (an engine of either kind finds the same set), but for two things: a volume's replicas are never closed or
//! opened by force, and one that was not closed is remembered, so that its replicas are compared.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

use super::peer::{Info, Peer};
use super::time::since_epoch;
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::{Socket, Stream};
use crate::longhorn::options::{ReplicaAddress, Taking, VolumeOptions};

/// How long a data connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long sent data may stay without an acknowledgement by the replica's host.
const USER_TIMEOUT: u32 = 30_000;

/// How far apart the last writes of replicas may be that are all the newest.
const NEWEST: Duration = Duration::from_secs(5);

/// The sectors that a volume is counted in.
const SECTOR_SIZE: i64 = 512;

/// A replica of a volume that was opened.
pub(super) struct Opened {
    pub peer: Peer,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// A volume that was opened.
pub(super) struct OpenedSet {
    pub size: u64,
    pub counts_revisions: bool,
    /// Some replica was not closed when it was last used.
    pub unclean: bool,
    pub replicas: Vec<Opened>,
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
    if before.state != "closed" {
        let state = before.state;
        return Err(refused(format!(
            "it is {state} and must be closed; if nothing uses it any more, restart its process"
        )));
    }
    peer.open(options.size.unwrap_or(0)).await?;
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
    let mut opening = tokio::task::JoinSet::new();
    for (place, address) in options.replicas.iter().cloned().enumerate() {
        let options = options.clone();
        opening.spawn(async move { (place, open_one(&address, &options).await) });
    }
    let mut candidates = Vec::new();
    let mut replicas = Vec::new();
    while let Some(joined) = opening.join_next().await {
        match joined {
            Ok((place, Ok(candidate))) => candidates.push((place, candidate)),
            Ok((place, Err(error))) => {
                let peer = Peer::new(&options.replicas[place], &options.name)?;
                let problem = Some(error.to_string());
                replicas.push((place, Opened { peer, problem }));
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
    let (size, counts_revisions) = judge(options, &mut candidates);
    let unclean = candidates.iter().any(|candidate| candidate.unclean);
    let hopeless = size.is_none() || candidates.iter().all(|c| c.problem.is_some());
    for candidate in &candidates {
        // Whoever tries again, or rebuilds one that is left, shall find them as we did.
        let left = hopeless || (candidate.problem.is_some() && !candidate.unclean);
        if left && options.taking != Taking::HandedOver {
            let _ = candidate.peer.close().await;
        }
    }
    for (place, candidate) in places.into_iter().zip(candidates) {
        let Candidate { peer, problem, .. } = candidate;
        replicas.push((place, Opened { peer, problem }));
    }
    replicas.sort_by_key(|(place, _)| *place);
    let replicas: Vec<Opened> = replicas.into_iter().map(|(_, replica)| replica).collect();
    if let (Some(size), true) = (
        size,
        replicas.iter().any(|replica| replica.problem.is_none()),
    ) {
        return Ok(OpenedSet {
            size,
            counts_revisions,
            unclean,
            replicas,
        });
    }
    let mut problems = Vec::new();
    for Opened { peer, problem } in replicas {
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
    let size = agree_on_size(options, candidates);
    let counts_revisions = agree_on_counting(options, candidates);
    choose(options, counts_revisions, candidates);
    (size, counts_revisions)
}

fn usable(candidates: &mut [Candidate]) -> impl Iterator<Item = &mut Candidate> {
    candidates.iter_mut().filter(|c| c.problem.is_none())
}

/// The size: what was asked for, or what they all have. Those of another are left.
fn agree_on_size(options: &VolumeOptions, candidates: &mut [Candidate]) -> Option<u64> {
    let largest = usable(candidates).map(|c| c.info.size).max()?;
    let size = options.size.unwrap_or(largest);
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
    if counts_revisions {
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
    } else if options.taking == Taking::Salvage {
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
}
