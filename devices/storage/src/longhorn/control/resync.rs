//! Comparing replicas that were not closed: what was being written when their engine died may be on some of them and not on others.
//!
//! Nobody was told that such a write was done, so either is right, but not now the one and then the other. While this runs only one replica, the
//! primary, is read; all are written. Piece by piece the others are made like it. If it fails, another takes its place ([`Shared::fail`]): what has been
//! compared is the same on all.
//!
//! [`Shared::fail`]: super::super::shared::Shared::fail

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use paddock_longhorn::wire::MAX_DATA;
use tokio::time::sleep;

use super::Control;
use super::client::DataClient;
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::{Member, Mode};
use crate::longhorn::ranges::{Range, Writer};
use crate::longhorn::shared::Post;
use crate::longhorn::status::{Activity, Progress};

/// How long until the gate, or a range, is looked at again.
const AGAIN: Duration = Duration::from_millis(2);

/// The only request that it has.
const REQUEST: u32 = 0;

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
    // Once there is nothing to compare with, what is left is the volume.
    let pending = |control: &Control| !control.is_closed() && control.shared.complete_members() > 1;
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
        let length = u32::try_from(size - offset).map_or(MAX_DATA, |left| left.min(MAX_DATA));
        if compare(&control, opening, &post, &mut clients, offset, length).await {
            offset += u64::from(length);
        }
    }
    drop(post);
    let present = control.opening.lock().await;
    if *present != opening {
        // Whoever opened the replicas again has them compared from the beginning.
        return;
    }
    control.set_progress(None);
    if !control.is_closed() {
        control.shared.set_primary(None);
        tracing::info!(volume = %control.options.name, "the replicas are the same");
        control.listener.compared();
    }
}

impl Control {
    /// Whether it is open, and has not been opened again since that time.
    async fn is_at(&self, opening: u32) -> bool {
        !self.is_closed() && *self.opening.lock().await == opening
    }
}

/// Makes a piece the same on all replicas, while nobody writes it. Whether it is.
async fn compare(
    control: &Control,
    opening: u32,
    post: &Post,
    clients: &mut HashMap<u32, DataClient>,
    offset: u64,
    length: u32,
) -> bool {
    let range = Range {
        start: offset,
        end: offset + u64::from(length),
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
    let same = pass(control, post).await && {
        let present = control.opening.lock().await;
        let same = *present == opening && make_same(control, clients, offset, length).await;
        control.shared.leave(post);
        same
    };
    control
        .shared
        .release(range, REQUEST, post, &mut Vec::new());
    same
}

/// Waits until the gate is open, and goes in. `false` when the volume was closed before that.
async fn pass(control: &Control, post: &Post) -> bool {
    while !control.shared.enter(post) {
        sleep(AGAIN).await;
        if control.is_closed() {
            return false;
        }
    }
    true
}

async fn make_same(
    control: &Control,
    clients: &mut HashMap<u32, DataClient>,
    offset: u64,
    length: u32,
) -> bool {
    let members = control.shared.members().into_iter();
    let good: Vec<Arc<Member>> = members.filter(|m| m.mode() == Mode::ReadWrite).collect();
    let primary = control.shared.primary();
    let Some(primary) = good.iter().find(|member| Some(member.id) == primary) else {
        // It has just failed: another has taken its place.
        return false;
    };
    let Some(right) = read(control, clients, primary, offset, length).await else {
        return false;
    };
    let mut differs = false;
    for member in good.iter().filter(|member| member.id != primary.id) {
        if member.mode() == Mode::Failed {
            // While another was waited for.
            continue;
        }
        let theirs = read(control, clients, member, offset, length).await;
        differs |= theirs.is_some_and(|theirs| theirs != right);
    }
    // Those that have it, too: good replicas are known by when they were last written, where nothing else tells.
    for member in good.iter().filter(|_| differs) {
        let Some(client) = clients.get_mut(&member.id) else {
            continue;
        };
        let deadline = control.options.timeout;
        if let Err(reason) = client.write(deadline, offset, &right).await {
            clients.remove(&member.id);
            control.shared.fail(
                member,
                &format!("it cannot be made like the others: {reason}"),
            );
        }
    }
    true
}

/// Reads from a replica, which fails where it cannot.
async fn read(
    control: &Control,
    clients: &mut HashMap<u32, DataClient>,
    member: &Member,
    offset: u64,
    length: u32,
) -> Option<Vec<u8>> {
    let deadline = control.options.timeout;
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
    match read.await {
        Ok(data) => Some(data),
        Err(reason) => {
            clients.remove(&member.id);
            control
                .shared
                .fail(member, &format!("it cannot be compared: {reason}"));
            None
        }
    }
}
