//! Which of the replicas that were opened have everything, as far as they tell it of themselves and of each other.

use std::time::Duration;

use super::history;
use super::open::Candidate;
use super::peer::Info;
use super::time::since_epoch;
use crate::longhorn::options::{ReplicaAddress, Taking, VolumeOptions};

/// How far apart the last writes of replicas may be that are all the newest.
pub(super) const NEWEST: Duration = Duration::from_secs(5);

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
pub(super) fn judge_known(
    options: &VolumeOptions,
    candidates: &mut [Candidate],
) -> (Option<u64>, bool) {
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

pub(super) fn usable(candidates: &mut [Candidate]) -> impl Iterator<Item = &mut Candidate> {
    candidates.iter_mut().filter(|c| c.problem.is_none())
}

/// The one that is believed where they differ: one that holds something before one that is new, then one that was closed before any that was not, and of those
/// the one that was written last.
pub(super) fn best(candidates: &[Candidate]) -> Option<usize> {
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
pub(super) async fn mark_stale(candidates: &mut [Candidate], best: usize) -> Vec<bool> {
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

/// Leaves all where one that something uses, and that cannot be opened therefore, was not written before the best of them: an engine may go on with it,
/// or have died with it, and they miss what it has. One that an engine left behind does not keep them from being opened, for it was written before them.
pub(super) fn leave_beside(
    in_use: &[(ReplicaAddress, Info)],
    counts_revisions: bool,
    candidates: &mut [Candidate],
) {
    let Some(best) = best(candidates) else {
        return;
    };
    let Candidate { info, unclean, .. } = &candidates[best];
    // Clocks differ; but whoever closes a replica knows that it has everything.
    let apart = if *unclean { NEWEST } else { Duration::ZERO };
    let before = |other: &Info| match counts_revisions {
        true => other.revision_counter < info.revision_counter,
        false => since_epoch(other.modified) + apart < since_epoch(info.modified),
    };
    let newer = in_use.iter().find(|(_, other)| {
        let is_new = other.is_empty() && !info.is_empty();
        !is_new && !before(other)
    });
    let Some((other, _)) = newer else {
        return;
    };
    for candidate in usable(candidates) {
        let replica = &candidate.peer.address;
        let problem = format!(
            "replica {replica} may miss what {other} has, which is in use: end what uses it, or restart its process if nothing does"
        );
        candidate.leave(problem);
    }
}

/// Leaves all where so many of those that were named do not answer: half of them, or more. What was written last may be on those alone.
pub(super) fn leave_few(absent: usize, named: usize, candidates: &mut [Candidate]) {
    if absent * 2 < named {
        return;
    }
    for candidate in usable(candidates) {
        let replica = &candidate.peer.address;
        let problem = format!(
            "replica {replica} may miss what those have that do not answer, {absent} of {named}: wait for them, or name only those that have everything"
        );
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
