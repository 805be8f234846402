//! Comparing replicas that were not closed: what was being written when their engine died may be on some of them and not on others.
//!
//! Nobody was told that such a write was done, so either is right, but not now the one and then the other. While this runs only one replica, the
//! primary, is read; all are written. Piece by piece the others are made like it. If it fails, another takes its place ([`Shared::fail`]): what has been
//! compared is the same on all.
//!
//! Some may have missed more than that ([`Member::is_behind`]). They are made the same, too, but none of them takes anybody's place before the end, and
//! they bear the mark of those that are not complete until then, also for who opens the volume after another crash. Where the last that has everything
//! cannot be read, it is they who are left.
//!
//! Replicas that a write without space left torn ([`Torn`]) are made the same there in the same way, as soon as there is space.
//!
//! [`Shared::fail`]: super::super::shared::Shared::fail
//! [`Torn`]: super::super::torn::Torn

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Weak};
use std::time::Duration;

use paddock_longhorn::wire::MAX_DATA;
use tokio::time::sleep;

use super::client::DataClient;
use super::{Admin, Control};
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::{Member, Mode};
use crate::longhorn::ranges::{Range, Writer};
use crate::longhorn::shared::Post;
use crate::longhorn::status::{Activity, Progress};
use crate::longhorn::text::tells_no_space;

/// Bytes that are compared at once. Less in tests, whose volumes are small.
pub(super) const PIECE: u32 = if cfg!(test) { 64 << 10 } else { MAX_DATA };

/// How long until the gate, or a range, is looked at again.
const AGAIN: Duration = Duration::from_millis(2);

/// How long until replicas without space are given again what they lack.
const FULL_AGAIN: Duration = Duration::from_secs(2);

/// The only request that it has.
const REQUEST: u32 = 0;

/// What came of making a piece the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    /// It is.
    Same,
    /// It is not: something else came first.
    Not,
    /// It is not: one that differs has no space.
    NoSpace,
}

/// What becomes of a replica that differs and has no space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// It is left.
    Leave,
    /// It stays, to be given again later what it lacks.
    Keep,
}

/// Compares all of the volume, as it was opened that time.
pub(super) async fn run(control: Arc<Control>, opening: u32) {
    let post = match control.shared.add_own_post() {
        Ok(post) => post,
        Err(error) => {
            // Only the primary is read until the volume is opened again.
            tracing::error!(volume = %control.options.name, %error, "the replicas cannot be compared");
            return;
        }
    };
    tracing::info!(volume = %control.options.name, "the replicas were not closed: comparing them");
    let mut clients = HashMap::new();
    let mut offset = 0;
    let mut percent = None;
    let pending = |control: &Control| {
        let shared = &control.shared;
        !control.is_closed() && shared.complete_members() > 0 && shared.readable().len() > 1
    };
    while offset < control.shared.size() && pending(&control) && control.is_at(opening).await {
        let size = control.shared.size();
        let now = u8::try_from(u128::from(offset) * 100 / u128::from(size)).unwrap_or(100);
        if percent.replace(now) != Some(now) {
            control.set_progress(Some(&Progress {
                activity: Activity::Resync,
                replica: None,
                percent: now,
                done: offset,
                total: size,
            }));
        }
        let length = u32::try_from(size - offset).map_or(PIECE, |left| left.min(PIECE));
        let piece = Piece {
            opening,
            offset,
            length,
            full: Full::Leave,
        };
        if compare(&control, piece, &post, &mut clients).await == Made::Same {
            offset += u64::from(length);
        }
    }
    drop(post);
    control
        .compared(opening, offset >= control.shared.size())
        .await;
}

/// Makes the same, as soon as they can be, what writes without space leave torn. Ends with the volume.
pub(super) async fn mend(control: Weak<Control>) {
    loop {
        let Some(shared) = control.upgrade().map(|control| Arc::clone(&control.shared)) else {
            return;
        };
        shared.torn.added().await;
        drop(shared);
        loop {
            let Some(control) = control.upgrade().filter(|control| !control.is_closed()) else {
                return;
            };
            if mend_now(&control).await {
                break;
            }
            drop(control);
            sleep(FULL_AGAIN).await;
        }
    }
}

/// Makes it the same as far as it can be now. Whether that is everywhere.
async fn mend_now(control: &Control) -> bool {
    let Ok(post) = control.shared.add_own_post() else {
        return false;
    };
    let mut clients = HashMap::new();
    while let Some(torn) = control.shared.torn.first() {
        let end = torn.end.min(control.shared.size());
        let length = u32::try_from(end.saturating_sub(torn.start))
            .unwrap_or(PIECE)
            .min(PIECE);
        let done = Range {
            start: torn.start,
            end: torn.start + u64::from(length),
        };
        // The last block may be a part of one.
        let done = if done.end >= end { torn } else { done };
        let piece = Piece {
            opening: *control.opening.lock().await,
            offset: torn.start,
            length,
            full: Full::Keep,
        };
        let differ = control.shared.readable().len() > 1;
        if differ && length > 0 && compare(control, piece, &post, &mut clients).await != Made::Same
        {
            return false;
        }
        control.shared.torn.remove(done);
    }
    if control.shared.read_all() {
        tracing::info!(volume = %control.options.name, "the replicas are the same again");
    }
    true
}

impl Control {
    /// Whether it is open, and has not been opened again since that time.
    async fn is_at(&self, opening: u32) -> bool {
        !self.is_closed() && *self.opening.lock().await == opening
    }

    /// The comparison has ended: all is the same, if it was the `whole` volume or nobody is left to compare with. Where all were lost before that, they are
    /// compared again once they are back.
    async fn compared(&self, opening: u32, whole: bool) {
        let Ok(admin) = self.administrate().await else {
            return self.set_progress(None);
        };
        if *self.opening.lock().await != opening {
            // Whoever opened the replicas again has them compared from the beginning.
            return;
        }
        if whole {
            self.promote_compared(&admin).await;
        }
        self.set_progress(None);
        let (complete, all) = (self.shared.complete_members(), self.shared.readable().len());
        if complete == 0 || !whole && all > 1 {
            tracing::warn!(volume = %self.options.name, "all replicas failed before they were compared");
            return;
        }
        if self.shared.settle() {
            tracing::info!(volume = %self.options.name, "the replicas are the same");
        }
        self.listener.compared();
    }

    /// Those that may have missed something have everything now. One that cannot be told so is left.
    async fn promote_compared(&self, admin: &Admin) {
        let mut promoted = false;
        for (member, peer) in self.live(admin) {
            if member.mode() != Mode::ReadWrite || !member.is_behind() {
                continue;
            }
            match peer.set_rebuilding(false).await {
                // Unless it has failed meanwhile.
                Ok(_) => promoted |= member.promote(),
                Err(error) => self.shared.fail(&member, &error.to_string()),
            }
        }
        if !promoted {
            return;
        }
        if let Err(error) = self.record_replicas() {
            // They are not taken the next time, and nothing is lost by that.
            tracing::error!(volume = %self.options.name, %error, "replicas that were compared are not recorded");
        }
    }
}

/// What is to be made the same.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// While the replicas are those that were opened that time.
    opening: u32,
    offset: u64,
    length: u32,
    full: Full,
}

/// Makes a piece the same on all replicas, while nobody writes it.
async fn compare(
    control: &Control,
    piece: Piece,
    post: &Post,
    clients: &mut HashMap<u32, DataClient>,
) -> Made {
    let range = Range {
        start: piece.offset,
        end: piece.offset + u64::from(piece.length),
    };
    let writer = Writer {
        queue: post.id,
        request: REQUEST,
    };
    // First the range, then the gate, as queues do: whoever has the range may be waiting there.
    if !control.shared.acquire(range, writer) {
        while post.take_mail().is_none_or(|mail| mail.granted.is_empty()) {
            sleep(AGAIN).await;
        }
    }
    let mut made = Made::Not;
    if pass(control, post).await {
        let present = control.opening.lock().await;
        if *present == piece.opening {
            made = make_same(control, clients, piece).await;
        }
        control.shared.leave(post);
    }
    control
        .shared
        .release(range, REQUEST, post, &mut Vec::new());
    made
}

/// Waits until the gate is open, and goes in. `false` when the volume was closed before that.
async fn pass(control: &Control, post: &Post) -> bool {
    while !control.shared.enter(post) {
        sleep(AGAIN).await;
        if control.is_closed() {
            return false;
        }
    }
    // It was closed, or handed over, before the gate was opened again: the replicas may be somebody else's.
    if control.is_closed() {
        control.shared.leave(post);
        return false;
    }
    true
}

async fn make_same(
    control: &Control,
    clients: &mut HashMap<u32, DataClient>,
    piece: Piece,
) -> Made {
    let Piece { offset, length, .. } = piece;
    let good = control.shared.readable();
    let primary = control.shared.primary();
    let Some(primary) = good.iter().find(|member| Some(member.id) == primary) else {
        // It has just failed: another has taken its place.
        return Made::Not;
    };
    let right = match read(control, clients, primary, offset, length).await {
        Ok(right) => right,
        Err(reason) => {
            leave_unreadable(control, primary, &good, &reason);
            return Made::Not;
        }
    };
    let mut differs = false;
    for member in good.iter().filter(|member| member.id != primary.id) {
        if member.mode() == Mode::Failed {
            // While another was waited for.
            continue;
        }
        match read(control, clients, member, offset, length).await {
            Ok(theirs) => differs |= theirs != right,
            Err(reason) => {
                let reason = format!("it cannot be compared: {reason}");
                control.shared.fail(member, &reason);
            }
        }
    }
    // Those that have it, too: good replicas are known by when they were last written, where nothing else tells. So the one to believe comes last.
    let others = good.iter().filter(|member| member.id != primary.id);
    let mut made = Made::Same;
    for member in others.chain([primary]).filter(|_| differs) {
        let Some(client) = clients.get_mut(&member.id) else {
            continue;
        };
        let deadline = control.options.timeout;
        if let Err(reason) = client.write(deadline, offset, &right).await {
            clients.remove(&member.id);
            if piece.full == Full::Keep && tells_no_space(&reason) {
                made = Made::NoSpace;
                continue;
            }
            let reason = format!("it cannot be made like the others: {reason}");
            control.shared.fail(member, &reason);
        }
    }
    made
}

/// The primary could not be read. Another takes its place, if one has everything; else the others cannot be given what they may lack. The last that has
/// everything stays, for what else it can read; if it is gone, whoever uses the volume will notice.
fn leave_unreadable(control: &Control, primary: &Member, good: &[Arc<Member>], reason: &str) {
    let problem = format!("it cannot be compared: {reason}");
    if control.shared.fail_spare(primary, &problem) {
        return;
    }
    for member in good.iter().filter(|member| member.id != primary.id) {
        let from = &primary.address;
        let problem = format!(
            "what it lacks cannot be read from {from}, which alone has everything: {reason}"
        );
        control.shared.fail(member, &problem);
    }
}

/// Reads from a replica. The last that has everything is waited for twice as long as others.
async fn read(
    control: &Control,
    clients: &mut HashMap<u32, DataClient>,
    member: &Member,
    offset: u64,
    length: u32,
) -> Result<Vec<u8>, String> {
    let deadline = control.patience(member);
    let read = async {
        let client = match clients.entry(member.id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let address = member
                    .address
                    .parse()
                    .map_err(|error: VolumeError| error.to_string())?;
                entry.insert(DataClient::connect(&address, deadline).await?)
            }
        };
        client.read(deadline, offset, length).await
    };
    let read = read.await;
    if read.is_err() {
        clients.remove(&member.id);
    }
    read
}
