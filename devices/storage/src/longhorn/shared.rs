//! What the queues of a volume and its control thread share: the replicas, the gate that stops all I/O for a moment, the ranges being written, and a
//! letter box for each queue.
//!
//! # The gate
//! A snapshot, a new replica or a new size comes between two pieces of what is asked of replicas, on all of them alike. [`Shared::freeze`] keeps queues
//! from sending replicas anything and waits until these have answered what they have; queues hold what is to be sent meanwhile, and send it when the
//! gate opens. A large request is sent piece by piece, and may be cut by that: it was acknowledged to nobody, and a disk that loses its power cuts it as well.
//!
//! # Failures are recorded before anything is acknowledged past them
//! Where somebody keeps a record of which replicas are good, a write that a failed replica misses must not be acknowledged before the record says
//! that it failed: after a crash of this host, it would be taken for a good one. [`Shared::is_recorded`] says whether the record is up to date.
//!
//! # Who has everything when all have failed
//! A replica that fails is *behind* from the first write on that is acknowledged without it. One that failed and is not behind has all that was
//! acknowledged: when none is left, those can be opened again ([`Shared::reinstate`]). A write is acknowledged only while one that has it is still there to be
//! read, so that the last to fail is never behind.
//!
//! After a crash of an engine a replica may be one of the volume's that missed something before: it is behind from the beginning, until it has been
//! compared. Meanwhile it is written and counts for nothing: nobody goes on with it, and it is left when all others are.

use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::counters::{Counters, Totals};
use super::member::{Member, Mode, Socket};
use super::ranges::{Range, Ranges, Writer};
use super::torn::Torn;

/// What a queue is told by others.
#[derive(Debug, Default)]
pub(super) struct Mail {
    /// New connections, each to a replica to which the queue has none.
    pub connections: Vec<(Arc<Member>, Arc<Socket>)>,
    /// Requests that have been granted the range they waited for.
    pub granted: Vec<u32>,
}

/// A queue, as others see it.
#[derive(Debug)]
pub(super) struct Post {
    /// Unique in the life of the volume.
    pub id: u32,
    /// Readable when the queue is to look at what follows.
    pub event: EventFd,
    mail: Mutex<Mail>,
    has_mail: AtomicBool,
    /// Replicas have something of it that they have not answered, or are about to.
    busy: AtomicBool,
    /// Whether it is a queue of somebody who uses the volume.
    is_user: bool,
    /// How often replicas had been reinstated when it came: it has no connections to those that were later.
    opening: u32,
    /// What it has done.
    pub counters: Counters,
}

impl Post {
    /// Takes what has come.
    pub(super) fn take_mail(&self) -> Option<Mail> {
        // In this order: what comes after is seen the next time.
        let any = self.has_mail.swap(false, Ordering::SeqCst);
        any.then(|| std::mem::take(&mut *self.mail.lock()))
    }

    fn write(&self, write: impl FnOnce(&mut Mail)) {
        write(&mut self.mail.lock());
        self.has_mail.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Has the queue look at what is to be done.
    pub(super) fn wake(&self) {
        // Fails only when the counter is full, and then it is readable anyway.
        let _ = self.event.write(1);
    }
}

/// A letter box, as long as it is registered: until this is dropped.
#[derive(Debug)]
pub(super) struct Registered {
    shared: Arc<Shared>,
    post: Arc<Post>,
}

impl Deref for Registered {
    type Target = Post;

    fn deref(&self) -> &Post {
        &self.post
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.remove_post(self.id);
    }
}

/// What queues tell the control thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A replica failed: see its [`Member::failure`].
    Failed(u32),
    /// Replicas that had failed are back.
    Reinstated,
}

/// The state of a volume that all its threads see.
#[derive(Debug)]
pub(super) struct Shared {
    /// The volume's name.
    pub name: String,
    born: Instant,
    /// In bytes.
    size: AtomicU64,
    members: Mutex<Vec<Arc<Member>>>,
    /// How many have failed and are not behind, or are about to have.
    undecided: AtomicU32,
    /// The id of the only replica that is read, plus one, while not all of them are known to have the same; or 0.
    primary: AtomicU32,
    /// Where they may not.
    pub torn: Torn,
    /// Held while a replica is left: who takes the place of the primary is not to be on its way out, too.
    failing: Mutex<()>,
    frozen: AtomicBool,
    quiet: Notify,
    ranges: Mutex<Ranges>,
    posts: Mutex<Vec<Arc<Post>>>,
    next_post: AtomicU32,
    /// How often replicas were reinstated.
    openings: AtomicU32,
    /// What queues have done that are gone.
    past: Mutex<Totals>,
    /// Whether somebody keeps a record of failures.
    records: bool,
    /// Failures and returns that the record does not have yet.
    unrecorded: AtomicU32,
    events: UnboundedSender<Event>,
}

impl Shared {
    pub(super) fn new(
        name: String,
        size: u64,
        records: bool,
        events: UnboundedSender<Event>,
    ) -> Self {
        Self {
            name,
            born: Instant::now(),
            size: AtomicU64::new(size),
            members: Mutex::default(),
            undecided: AtomicU32::new(0),
            primary: AtomicU32::new(0),
            torn: Torn::default(),
            failing: Mutex::default(),
            frozen: AtomicBool::new(false),
            quiet: Notify::new(),
            ranges: Mutex::default(),
            posts: Mutex::default(),
            next_post: AtomicU32::new(0),
            openings: AtomicU32::new(0),
            past: Mutex::default(),
            records,
            unrecorded: AtomicU32::new(0),
            events,
        }
    }

    /// Milliseconds since the volume was opened.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::SeqCst);
    }

    pub(super) fn members(&self) -> Vec<Arc<Member>> {
        self.members.lock().clone()
    }

    /// Adds a replica. Where there are queues, only while they are frozen and after they were sent their connections.
    pub(super) fn add_member(&self, member: Arc<Member>) {
        self.members.lock().push(member);
    }

    /// Forgets a replica that has failed.
    pub(super) fn remove_member(&self, id: u32) {
        let mut members = self.members.lock();
        if let Some(index) = members.iter().position(|member| member.id == id) {
            self.set_behind(&members.remove(index));
        }
    }

    /// Notes that a replica that has failed misses something. The list of replicas is locked.
    fn set_behind(&self, member: &Member) {
        if member.fall_behind() {
            self.undecided.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Whether no replica has failed that is not behind: a write that all the others have, of which there is one, may be acknowledged.
    pub(super) fn is_decided(&self) -> bool {
        self.undecided.load(Ordering::SeqCst) == 0
    }

    /// Decides about a write that these replicas have and no others: those that have failed without it are behind from now on, if it is to be
    /// acknowledged. It is if one that has it is still there to be read.
    pub(super) fn decide(&self, holders: &[u32]) -> bool {
        let members = self.members.lock();
        let holds = |member: &Member| holders.contains(&member.id);
        let kept = members
            .iter()
            .any(|member| holds(member) && member.mode() == Mode::ReadWrite);
        for member in members.iter() {
            if kept && !holds(member) && member.mode() == Mode::Failed {
                self.set_behind(member);
            }
        }
        kept
    }

    /// Where all have failed, those that have everything that was acknowledged.
    pub(super) fn complete_when_lost(&self) -> Vec<Arc<Member>> {
        let members = self.members.lock();
        if members.iter().any(|member| member.is_complete()) {
            return Vec::new();
        }
        let complete = members.iter().filter(|member| !member.is_behind());
        complete.cloned().collect()
    }

    /// Puts replicas that were opened again in the place of what they were. Queues that there are have no connections to them, and fail until they are
    /// closed. The record of failures has to hear of it before anything is acknowledged.
    pub(super) fn reinstate(&self, replicas: &[(u32, Arc<Member>)]) {
        if self.records {
            self.unrecorded.fetch_add(1, Ordering::SeqCst);
        }
        self.openings.fetch_add(1, Ordering::SeqCst);
        let mut members = self.members.lock();
        for (old, new) in replicas {
            if let Some(place) = members.iter_mut().find(|member| member.id == *old) {
                let old = std::mem::replace(place, Arc::clone(new));
                self.set_behind(&old);
            }
        }
        drop(members);
        let _ = self.events.send(Event::Reinstated);
    }

    /// The only replica that is to be read, if not all are.
    pub(super) fn primary(&self) -> Option<u32> {
        self.primary.load(Ordering::SeqCst).checked_sub(1)
    }

    /// Has only that replica read, until all of the volume is the same on all of them; or, with `None`, all.
    pub(super) fn set_primary(&self, id: Option<u32>) {
        self.torn.set_whole(id.is_some());
        self.read_only(id);
    }

    /// All of the volume was made the same on all replicas, except where they were torn meanwhile. Whether all of them are read from now on.
    pub(super) fn settle(&self) -> bool {
        self.torn.set_whole(false);
        self.read_all()
    }

    /// Has all replicas read, if they are the same. Whether they are.
    pub(super) fn read_all(&self) -> bool {
        self.torn.if_none(|| self.read_only(None))
    }

    /// No replica had space for a write, and each may have kept another part of it: one is read, until they have been made the same there.
    pub(super) fn tear(&self, range: Range) {
        // Whoever is read now is not on its way out.
        let _failing = self.failing.lock();
        let members = self.members.lock();
        let mut complete = members.iter().filter(|member| member.is_complete());
        let (Some(first), Some(_)) = (complete.next(), complete.next()) else {
            return;
        };
        let id = first.id;
        // In this order: whoever finds that they are the same everywhere does not have all of them read after that.
        self.torn.add(range);
        if self.primary().is_none() {
            tracing::warn!(volume = %self.name, replica = %first.address, "a write had no space on any replica: only one is read until they are the same again");
            self.read_only(Some(id));
        }
    }

    fn read_only(&self, id: Option<u32>) {
        let number = id.map_or(0, |id| id.saturating_add(1));
        self.primary.store(number, Ordering::SeqCst);
    }

    /// Leaves a replica for good: it is not read any more when this returns. If it was the primary, another is by then, if there is one that has everything.
    pub(super) fn fail(&self, member: &Member, reason: &str) {
        let failing = self.failing.lock();
        self.leave_one(member, reason);
        self.leave_incomplete(&failing);
    }

    /// The same, if there is another that has everything. Whether there is.
    pub(super) fn fail_spare(&self, member: &Member, reason: &str) -> bool {
        let failing = self.failing.lock();
        let members = self.members();
        let spare = members.iter().any(|m| m.id != member.id && m.is_complete());
        if spare {
            self.leave_one(member, reason);
            self.leave_incomplete(&failing);
        }
        spare
    }

    /// Leaves those that are being compared, when nobody is left who has what they may lack.
    fn leave_incomplete(&self, _failing: &MutexGuard<'_, ()>) {
        let members = self.members();
        if members.iter().any(|member| member.is_complete()) {
            return;
        }
        for member in members.iter().filter(|m| m.mode() == Mode::ReadWrite) {
            self.leave_one(
                member,
                "it was not compared to the end with one that has everything",
            );
        }
    }

    fn leave_one(&self, member: &Member, reason: &str) {
        let failed = member.fail(reason, || {
            self.succeed(member.id);
            if self.records {
                self.unrecorded.fetch_add(1, Ordering::SeqCst);
            }
            if !member.is_behind() {
                self.undecided.fetch_add(1, Ordering::SeqCst);
            }
        });
        if failed {
            tracing::warn!(volume = %self.name, replica = %member.address, reason, "a replica failed");
            // Nobody listens once the volume is being closed.
            let _ = self.events.send(Event::Failed(member.id));
        }
    }

    /// Makes another replica the primary, if this one is and there is one that has everything.
    fn succeed(&self, id: u32) {
        if self.primary() != Some(id) {
            return;
        }
        let members = self.members.lock();
        let good = |member: &&Arc<Member>| member.id != id && member.is_complete();
        if let Some(member) = members.iter().find(good) {
            self.read_only(Some(member.id));
        }
    }

    /// Leaves a replica that is not known to have everything.
    pub(super) fn fail_behind(&self, member: &Member, reason: &str) {
        self.fail(member, reason);
        let _members = self.members.lock();
        self.set_behind(member);
    }

    /// Whether writes may be acknowledged: there is nothing that the record does not have.
    pub(super) fn is_recorded(&self) -> bool {
        self.unrecorded.load(Ordering::SeqCst) == 0
    }

    /// Notes that the record now has so many changes more.
    pub(super) fn recorded(&self, changes: u32) {
        self.unrecorded.fetch_sub(changes, Ordering::SeqCst);
        self.wake_all();
    }

    /// A letter box for a new queue.
    pub(super) fn add_post(self: &Arc<Self>) -> io::Result<Registered> {
        self.add_post_of(true)
    }

    /// A letter box for the volume's own requests.
    pub(super) fn add_own_post(self: &Arc<Self>) -> io::Result<Registered> {
        self.add_post_of(false)
    }

    fn add_post_of(self: &Arc<Self>, is_user: bool) -> io::Result<Registered> {
        let post = Arc::new(Post {
            id: self.next_post.fetch_add(1, Ordering::Relaxed),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            mail: Mutex::default(),
            has_mail: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            is_user,
            opening: self.openings.load(Ordering::SeqCst),
            counters: Counters::default(),
        });
        self.posts.lock().push(Arc::clone(&post));
        let shared = Arc::clone(self);
        Ok(Registered { shared, post })
    }

    fn remove_post(&self, id: u32) {
        let mut posts = self.posts.lock();
        if let Some(index) = posts.iter().position(|post| post.id == id) {
            let gone = posts.remove(index);
            let mut past = self.past.lock();
            *past = past.plus(gone.counters.totals());
        }
        drop(posts);
        self.quiet.notify_waiters();
    }

    /// The letter boxes of those that have connections to the replicas. A queue of before these were reinstated has none, and is to get none to a new one: all
    /// that it has would be written to that one alone.
    pub(super) fn connected_posts(&self) -> Vec<Arc<Post>> {
        let opening = self.openings.load(Ordering::SeqCst);
        let posts = self.posts.lock();
        let connected = posts.iter().filter(|post| post.opening == opening);
        connected.cloned().collect()
    }

    /// Whether somebody uses the volume.
    pub(super) fn is_used(&self) -> bool {
        self.posts.lock().iter().any(|post| post.is_user)
    }

    /// What was done since the volume was opened.
    #[cfg(feature = "controller")]
    pub(super) fn totals(&self) -> Totals {
        // In this order, as where a queue goes: nothing is counted twice.
        let posts = self.posts.lock();
        let past = *self.past.lock();
        posts
            .iter()
            .fold(past, |sum, post| sum.plus(post.counters.totals()))
    }

    fn wake_all(&self) {
        for post in self.posts.lock().iter() {
            post.wake();
        }
    }

    /// Sends a queue its connection to a new replica.
    pub(super) fn send_connection(&self, post: &Post, member: &Arc<Member>, socket: Arc<Socket>) {
        post.write(|mail| mail.connections.push((Arc::clone(member), socket)));
    }

    /// Says that a queue, of which replicas have nothing, is about to send something. Whether it may; otherwise it is woken up when it may.
    pub(super) fn enter(&self, post: &Post) -> bool {
        post.busy.store(true, Ordering::SeqCst);
        // After that store: either we see that it is frozen, or whoever freezes it sees that we are busy.
        if self.frozen.load(Ordering::SeqCst) {
            self.leave(post);
            return false;
        }
        true
    }

    /// Whether a queue of which replicas have something may send more.
    pub(super) fn is_open(&self) -> bool {
        !self.frozen.load(Ordering::SeqCst)
    }

    /// Says that replicas have nothing of a queue any more.
    pub(super) fn leave(&self, post: &Post) {
        post.busy.store(false, Ordering::SeqCst);
        if self.frozen.load(Ordering::SeqCst) {
            self.quiet.notify_waiters();
        }
    }

    /// Keeps all queues from sending replicas anything, and waits until these have answered what they have. Called by the control thread, one at a time.
    /// Dropping what it returns, or it before it returns, opens the gate.
    pub(super) async fn freeze(self: &Arc<Self>) -> Frozen {
        let frozen = Frozen(Arc::clone(self));
        self.frozen.store(true, Ordering::SeqCst);
        loop {
            let quiet = self.quiet.notified();
            tokio::pin!(quiet);
            // From here on a notification is not missed.
            quiet.as_mut().enable();
            let busy = |post: &Arc<Post>| post.busy.load(Ordering::SeqCst);
            if !self.posts.lock().iter().any(busy) {
                return frozen;
            }
            quiet.await;
        }
    }

    /// Asks for a range to be written. Whether it is granted; otherwise the queue will get mail.
    pub(super) fn acquire(&self, range: Range, writer: Writer) -> bool {
        self.ranges.lock().acquire(range, writer)
    }

    /// Gives a range back, or gives up waiting for it. Requests of `post` that get theirs now are appended to `granted`, those of others are told so.
    pub(super) fn release(&self, range: Range, request: u32, post: &Post, granted: &mut Vec<u32>) {
        let writer = Writer {
            queue: post.id,
            request,
        };
        let mut writers = Vec::new();
        self.ranges.lock().release(range, writer, &mut writers);
        self.tell(&writers, post, granted);
    }

    fn tell(&self, writers: &[Writer], own: &Post, granted: &mut Vec<u32>) {
        for writer in writers {
            if writer.queue == own.id {
                granted.push(writer.request);
                continue;
            }
            let posts = self.posts.lock();
            if let Some(post) = posts.iter().find(|post| post.id == writer.queue) {
                post.write(|mail| mail.granted.push(writer.request));
            }
        }
    }

    /// How many replicas have all of the volume.
    pub(super) fn complete_members(&self) -> usize {
        let members = self.members.lock();
        let complete = members.iter().filter(|member| member.is_complete());
        complete.count()
    }

    /// The replicas that have all of the volume, or will once they have been compared.
    pub(super) fn readable(&self) -> Vec<Arc<Member>> {
        let mut members = self.members();
        members.retain(|member| member.mode() == Mode::ReadWrite);
        members
    }
}

/// The gate is shut, until this is dropped.
#[derive(Debug)]
pub(super) struct Frozen(Arc<Shared>);

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.frozen.store(false, Ordering::SeqCst);
        self.0.wake_all();
    }
}
