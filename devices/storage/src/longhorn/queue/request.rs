//! A request on its way, and what the answers of the replicas mean for it. No I/O here.

use std::time::Instant;

use bytes::Bytes;

use super::super::ranges::Range;
use super::pool::Pool;
use super::session::{Answer, Outcome};
use crate::{Buffer, IoError};

/// What is to be done.
#[derive(Debug)]
pub(super) enum What {
    Read(Buffer),
    Write(Buffer),
    Zero,
}

/// How far a piece is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// No replica has anything of it: it waits for its range, or for its next piece to be sent.
    Waiting,
    /// What surrounds it in its blocks is being read, for a replica that is being rebuilt has not got that yet.
    Widening,
    /// Replicas have it.
    Asked,
}

/// A request on its way. It is done piece by piece, each of at most the frame's size.
#[derive(Debug)]
pub(super) struct InFlight {
    pub tag: u64,
    pub what: What,
    /// Its place among the writes of the queue.
    pub order: u64,
    /// When it was begun.
    pub since: Instant,
    /// First byte on the volume.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes of the pieces that are done.
    pub done: u64,
    /// Bytes of the piece under way.
    pub piece: u64,
    /// The copy of the piece under way.
    pub copy: Option<Bytes>,
    /// What a write has to itself.
    pub range: Option<Range>,
    pub phase: Phase,
    /// Answers to come.
    pub outstanding: u32,
    /// Replicas that were to write the piece and that have everything, by id.
    pub readable: Vec<u32>,
    /// The others that were to write it, by id: they are being rebuilt, or compared.
    pub incomplete: Vec<u32>,
    /// What went wrong with the piece.
    pub failures: Vec<Answer>,
    /// Replicas that could not read the piece.
    pub tried: Vec<u32>,
    /// The blocks that a piece is widened to.
    pub widened: Option<(u64, Buffer)>,
}

/// What to do about a write that all replicas have answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Replicas that have it and were read when they were asked.
    pub holders: Vec<u32>,
    /// Replicas that miss it, and why: they are left before it is acknowledged.
    pub failed: Vec<(u32, String)>,
    /// What the submitter is told.
    pub result: Result<(), IoError>,
}

impl InFlight {
    pub(super) fn new(tag: u64, what: What, order: u64, offset: u64, length: u64) -> Self {
        Self {
            tag,
            what,
            order,
            since: Instant::now(),
            offset,
            length,
            done: 0,
            piece: 0,
            copy: None,
            range: None,
            phase: Phase::Waiting,
            outstanding: 0,
            readable: Vec::new(),
            incomplete: Vec::new(),
            failures: Vec::new(),
            tried: Vec::new(),
            widened: None,
        }
    }

    pub(super) fn writes(&self) -> bool {
        !matches!(self.what, What::Read(_))
    }

    /// Where the piece under way is on the volume.
    pub(super) fn position(&self) -> u64 {
        self.offset + self.done
    }

    /// What is to be written of the piece under way; `None` for zeros.
    pub(super) fn payload(&mut self, pool: &mut Pool) -> Option<Bytes> {
        if let Some(copy) = self.copy.take() {
            pool.give(copy);
        }
        if let What::Write(buffer) = &self.what {
            // At most a frame's.
            let piece = usize::try_from(self.piece).unwrap_or(0);
            self.copy = Some(pool.copy(buffer, self.done, piece));
        }
        self.copy.clone()
    }

    /// Judges a write that all replicas have answered. A replica that misses it is left, and it is well if there is one that has it and is read.
    ///
    /// Without space it is not the replicas' fault, as long as none of those that are read has any: none of them has the write, and none is left. One that
    /// is being rebuilt, or compared, and has it is: it would keep what the others never had.
    pub(super) fn judge(&mut self) -> Verdict {
        let failures = std::mem::take(&mut self.failures);
        let readable = std::mem::take(&mut self.readable);
        let incomplete = std::mem::take(&mut self.incomplete);
        let missing = |id: &u32| failures.iter().any(|answer| answer.member == *id);
        let well = !readable.iter().all(missing);
        let full = |answer: &&Answer| {
            answer.outcome == Outcome::NoSpace && readable.contains(&answer.member)
        };
        let spared = !well && failures.iter().any(|answer| full(&answer));
        let missed = failures
            .iter()
            .filter(|answer| !(spared && full(answer)))
            .map(|answer| (answer.member, describe(&answer.outcome)));
        let ahead = incomplete
            .into_iter()
            .filter(|id| spared && !missing(id))
            .map(|id| (id, "it has what the others have no space for".to_owned()));
        let failed = missed.chain(ahead).collect();
        let result = match (well, spared) {
            (true, _) => Ok(()),
            (false, true) => Err(IoError::Os(libc::ENOSPC)),
            (false, false) => Err(IoError::Os(libc::EIO)),
        };
        let mut holders = readable;
        holders.retain(|id| !missing(id));
        Verdict {
            holders,
            failed,
            result,
        }
    }
}

/// Why a replica is left.
pub(super) fn describe(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => String::new(),
        Outcome::NoSpace => "it has no space left, and others have".to_owned(),
        Outcome::Refused(text) => format!("it answered: {text}"),
        Outcome::Lost => "the connection ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::{Answer, Outcome};
    use super::{InFlight, What};
    use crate::{Buffer, IoError};

    /// Judges a write to `readable` replicas and to 9, which is being rebuilt, and what failed.
    fn judge(readable: &[u32], failures: &[(u32, Outcome)]) -> (Vec<u32>, Result<(), IoError>) {
        let what = What::Write(Buffer::zeroed(512));
        let mut request = InFlight::new(0, what, 0, 0, 512);
        request.readable = readable.to_vec();
        request.incomplete = vec![9];
        request.failures = failures
            .iter()
            .map(|(member, outcome)| Answer {
                request: 0,
                member: *member,
                outcome: outcome.clone(),
            })
            .collect();
        let verdict = request.judge();
        let failed = verdict.failed.iter().map(|(id, _)| *id).collect();
        (failed, verdict.result)
    }

    #[test]
    fn who_misses_a_write_is_left() {
        let refused = || Outcome::Refused("no".to_owned());
        assert_eq!(judge(&[1, 2, 3], &[]), (vec![], Ok(())));
        assert_eq!(judge(&[1, 2, 3], &[(2, Outcome::Lost)]), (vec![2], Ok(())));
        assert_eq!(judge(&[1, 2], &[(9, refused())]), (vec![9], Ok(())));
        let eio = Err(IoError::Os(libc::EIO));
        assert_eq!(
            judge(&[1, 2], &[(1, refused()), (2, Outcome::Lost)]),
            (vec![1, 2], eio)
        );
        // Only one that is being rebuilt has it.
        assert_eq!(judge(&[1], &[(1, Outcome::Lost)]), (vec![1], eio));
        assert_eq!(judge(&[], &[]), (vec![], eio));
    }

    #[test]
    fn without_space_nobody_is_left_if_it_is_so_for_all() {
        let enospc = Err(IoError::Os(libc::ENOSPC));
        let full = |id| (id, Outcome::NoSpace);
        assert_eq!(judge(&[1, 2], &[full(1)]), (vec![1], Ok(())));
        assert_eq!(judge(&[1], &[full(1), full(9)]), (vec![9], enospc));
        // It has what none of the others has.
        assert_eq!(judge(&[1, 2], &[full(1), full(2)]), (vec![9], enospc));
        assert_eq!(
            judge(&[1, 2], &[full(1), (2, Outcome::Lost)]),
            (vec![2, 9], enospc)
        );
    }
}
