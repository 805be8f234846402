//! Reads and writes of a [`VolumeQueue`], piece by piece: whom to ask, and what the answers lead to.

use std::sync::OnceLock;

use bytes::Bytes;

use super::super::SECTOR;
use super::super::member::Mode;
use super::super::ranges::Range;
use super::request::{Phase, What, describe};
use super::session::{Answer, Ask, Outcome};
use super::{CANCELED, VolumeQueue};
use crate::{Buffer, IoError};

/// Bytes of zeros that are sent at once.
const ZEROS: usize = 256 << 10;

fn zeros(length: u64) -> Bytes {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| vec![0; ZEROS].into());
    // At most as many as there are.
    bytes.slice(..usize::try_from(length).map_or(ZEROS, |length| length.min(ZEROS)))
}

impl VolumeQueue {
    /// Sends the next piece of a request, which has its range if it writes. The gate is open.
    pub(super) fn send_piece(&mut self, number: u32) {
        match self.request(number).map(|request| request.writes()) {
            Some(true) => self.write_piece(number),
            Some(false) => self.read_piece(number),
            None => {}
        }
    }

    /// Has a request go on with its next piece when the gate lets it.
    fn go_on_with(&mut self, number: u32) {
        if let Some(request) = self.request(number) {
            request.phase = Phase::Waiting;
            self.next.push_back(number);
        }
    }

    /// Reads the next piece of a request.
    fn read_piece(&mut self, number: u32) {
        let most = u64::from(self.most);
        let Some(request) = self.request(number) else {
            return;
        };
        let What::Read(buffer) = &request.what else {
            return;
        };
        let piece = (request.length - request.done).min(most);
        let target = buffer.slice(request.done, piece);
        request.piece = piece;
        request.phase = Phase::Asked;
        let position = request.position();
        self.read_somewhere(number, position, target);
    }

    /// Has a replica read a piece that was not tried with it yet. Ends the request if there is none.
    fn read_somewhere(&mut self, number: u32, position: u64, target: Buffer) {
        let tried = match self.request(number) {
            Some(request) => std::mem::take(&mut request.tried),
            None => return,
        };
        let now = self.shared.now();
        let asked = self.reader(&tried).is_some_and(|index| {
            self.turn = index + 1;
            self.sessions[index].ask(number, Ask::Read(target), position, now)
        });
        if let Some(request) = self.request(number) {
            request.tried = tried;
            request.outstanding = u32::from(asked);
        }
        if asked {
            self.asked += 1;
        } else {
            self.end(number, Err(IoError::Os(libc::EIO)));
        }
    }

    /// The session to read by: the primary's if there is one, else the next in turn that was not tried.
    fn reader(&mut self, tried: &[u32]) -> Option<usize> {
        loop {
            let primary = self.shared.primary();
            let count = self.sessions.len();
            let good = |index: &usize| {
                let member = &self.sessions[*index].member;
                member.mode() == Mode::ReadWrite
                    && !tried.contains(&member.id)
                    && primary.is_none_or(|id| member.id == id)
            };
            let found = (0..count).map(|i| (self.turn + i) % count).find(good);
            if found.is_some() {
                return found;
            }
            let primary = primary?;
            if tried.contains(&primary) && self.shared.complete_members() > 1 {
                // Whatever it cannot read it cannot be compared in either. Whoever takes its place is read from now on, and not now the one and then the other.
                self.leave(primary, "it could not read what another is asked for now");
            }
            if self.shared.primary() == Some(primary) {
                return None;
            }
        }
    }

    /// Writes the next piece of a request that has its range.
    fn write_piece(&mut self, number: u32) {
        let rebuilds = self
            .sessions
            .iter()
            .any(|s| s.member.mode() == Mode::WriteOnly);
        let (size, most) = (self.shared.size(), u64::from(self.most));
        let Some(request) = self.request(number) else {
            return;
        };
        let most = match request.what {
            What::Zero => most.min(ZEROS as u64),
            _ => most,
        };
        request.piece = (request.length - request.done).min(most);
        request.tried.clear();
        let (position, piece) = (request.position(), request.piece);
        let mut blocks = Range::of_blocks(position, piece, SECTOR);
        // The last may be a part of one.
        blocks.end = blocks.end.min(size);
        let whole = blocks.start == position && blocks.end == position + piece;
        if rebuilds && !whole {
            request.phase = Phase::Widening;
            // At most two blocks more than a piece.
            let length = usize::try_from(blocks.end - blocks.start).unwrap_or(0);
            let buffer = Buffer::zeroed(length);
            request.widened = Some((blocks.start, buffer.part(buffer.len())));
            self.read_somewhere(number, blocks.start, buffer);
            return;
        }
        let payload = self.payload(number);
        self.write_everywhere(number, position, &payload);
    }

    /// What the piece under way of a write writes.
    fn payload(&mut self, number: u32) -> Bytes {
        let place = self.requests.get_mut(number as usize);
        let Some(request) = place.and_then(Option::as_mut) else {
            return Bytes::new();
        };
        let payload = request.payload(&mut self.pool);
        payload.unwrap_or_else(|| zeros(request.piece))
    }

    /// Writes the blocks around a piece, now that they were read.
    fn write_widened(&mut self, number: u32) {
        let Some(request) = self.request(number) else {
            return;
        };
        let Some((start, buffer)) = request.widened.take() else {
            return;
        };
        let shift = request.position() - start;
        buffer.copy_from_at(shift, &self.payload(number));
        let mut blocks = vec![0; usize::try_from(buffer.len()).unwrap_or(0)];
        buffer.copy_to(&mut blocks);
        self.write_everywhere(number, start, &blocks.into());
    }

    /// Has all replicas write something.
    fn write_everywhere(&mut self, number: u32, position: u64, payload: &Bytes) {
        let now = self.shared.now();
        let (mut readable, mut incomplete, mut outstanding) = (Vec::new(), Vec::new(), 0);
        let mut refused = Vec::new();
        for session in &mut self.sessions {
            let id = session.member.id;
            if session.member.mode() == Mode::Failed {
                continue;
            }
            match session.member.is_complete() {
                true => readable.push(id),
                false => incomplete.push(id),
            }
            if session.ask(number, Ask::Write(payload.clone()), position, now) {
                outstanding += 1;
            } else {
                refused.push(Answer {
                    request: number,
                    member: id,
                    outcome: Outcome::Refused("too many requests".to_owned()),
                });
            }
        }
        if let Some(request) = self.request(number) {
            request.phase = Phase::Asked;
            request.readable = readable;
            request.incomplete = incomplete;
            request.failures = refused;
            request.outstanding = outstanding;
        }
        if outstanding == 0 {
            self.written(number);
        } else {
            self.asked += 1;
        }
    }

    /// Takes note of a replica's answer.
    pub(super) fn answered(&mut self, answer: Answer) {
        let number = answer.request;
        let Some(request) = self.request(number) else {
            return;
        };
        request.outstanding -= 1;
        let over = request.outstanding == 0;
        if request.writes() && request.phase == Phase::Asked {
            if answer.outcome != Outcome::Done {
                request.failures.push(answer);
            }
            if over {
                self.asked -= 1;
                self.written(number);
            }
            return;
        }
        // A read has one.
        self.asked -= 1;
        if answer.outcome == Outcome::Done {
            self.was_read(number);
        } else {
            self.was_not_read(number, answer);
        }
    }

    /// All replicas have answered a write.
    fn written(&mut self, number: u32) {
        let Some(request) = self.request(number) else {
            return;
        };
        let verdict = request.judge();
        let piece = Range::of_blocks(request.position(), request.piece, SECTOR);
        request.done += request.piece;
        let complete = request.done == request.length;
        for (member, reason) in &verdict.failed {
            self.leave(*member, reason);
        }
        if verdict.result == Err(IoError::Os(libc::ENOSPC)) {
            self.shared.tear(piece);
        }
        let result = match verdict.result {
            // Those that have it failed elsewhere meanwhile: others may miss it that had something else.
            Ok(()) if !self.is_kept(&verdict.holders) => Err(IoError::Os(libc::EIO)),
            result => result,
        };
        if complete || result.is_err() {
            self.end(number, result);
        } else if self.abandoned {
            self.end(number, Err(CANCELED));
        } else {
            self.go_on_with(number);
        }
    }

    /// Whether a write may be acknowledged that these replicas have and no others, now that the others were left.
    fn is_kept(&self, holders: &[u32]) -> bool {
        if !self.shared.is_decided() {
            return self.shared.decide(holders);
        }
        // After that look: had one failed since without this write, it would not be decided.
        self.sessions.iter().any(|session| {
            let member = &session.member;
            holders.contains(&member.id) && member.mode() == Mode::ReadWrite
        })
    }

    /// A piece was read.
    fn was_read(&mut self, number: u32) {
        let Some(request) = self.request(number) else {
            return;
        };
        // Those that could not, while another could, have failed.
        let failures = std::mem::take(&mut request.failures);
        let widening = request.phase == Phase::Widening;
        let over = !widening && request.done + request.piece == request.length;
        if !widening {
            request.done += request.piece;
        }
        request.tried.clear();
        for answer in failures {
            self.leave(answer.member, &describe(&answer.outcome));
        }
        if over {
            self.end(number, Ok(()));
        } else if self.abandoned {
            self.end(number, Err(CANCELED));
        } else if widening {
            // Still the same piece: whoever shuts the gate waits for that, too.
            self.write_widened(number);
        } else {
            self.go_on_with(number);
        }
    }

    /// A replica could not read a piece: another is asked. If none can, it is the submitter's to know and nobody is left for it.
    fn was_not_read(&mut self, number: u32, answer: Answer) {
        let Some(request) = self.request(number) else {
            return;
        };
        request.tried.push(answer.member);
        request.failures.push(answer);
        if self.abandoned {
            return self.end(number, Err(CANCELED));
        }
        let Some(request) = self.request(number) else {
            return;
        };
        let (position, target) = match (&request.what, &request.widened) {
            (_, Some((start, buffer))) => (*start, buffer.part(buffer.len())),
            (What::Read(buffer), None) => (
                request.position(),
                buffer.slice(request.done, request.piece),
            ),
            _ => return,
        };
        self.read_somewhere(number, position, target);
    }

    /// Leaves a replica that answers and does not do.
    fn leave(&mut self, id: u32, reason: &str) {
        if let Some(index) = self.sessions.iter().position(|s| s.member.id == id) {
            self.lose(index, reason);
        }
    }
}
