//! The control side of a volume: a thread of its own with a small runtime, on which everything runs that is not a guest's request: opening and closing, pings,
//! snapshots, rebuilds, a new size.
//!
//! What changes the set of replicas, or comes between two requests on all of them, is done by one task at a time, which holds [`Admin`].

pub(super) mod client;
mod closing;
mod expand;
mod history;
pub(super) mod judge;
mod lease;
pub(super) mod limits;
pub(super) mod open;
pub(super) mod peer;
mod purge;
pub(super) mod rebuild;
mod record;
mod remove;
mod reopen;
mod resync;
pub(super) mod snapshot;
mod supervise;
#[cfg(test)]
mod tests;
pub(super) mod time;
#[cfg(feature = "controller")]
mod tools;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use parking_lot::Mutex as SyncMutex;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Mutex, MutexGuard, Notify, mpsc::unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::closing::Closing;
use self::limits::Settings;
use self::peer::Peer;
use self::rebuild::Rebuild;
use self::record::Record;
use super::error::VolumeError;
use super::member::{Failure, Member, Mode, Socket};
use super::options::{ReplicaAddress, Taking, VolumeOptions};
use super::shared::{Frozen, Registered, Shared};
use super::status::{Listener, Progress};

/// What only one task at a time may change.
#[derive(Debug)]
pub(super) struct Admin {
    /// The control services of the replicas, by their members' ids.
    peers: HashMap<u32, Peer>,
    next_id: u32,
    /// Whether the replicas count writes.
    counts_revisions: bool,
    /// The rebuild that was begun last, if it has not ended.
    rebuild: Option<Rebuild>,
    /// Why the replicas could not be opened again the last time, after all had failed.
    lost: Option<String>,
}

/// The control side of a volume.
pub(super) struct Control {
    pub shared: Arc<Shared>,
    pub options: VolumeOptions,
    admin: Mutex<Admin>,
    /// Held while a replica is made ready to be added, before [`Admin`].
    adding: Mutex<()>,
    listener: Arc<dyn Listener>,
    record: Option<Record>,
    /// Why and since when the record lacks that a replica has failed.
    record_failure: SyncMutex<Option<Failure>>,
    /// How far the present rebuild or resynchronization is.
    progress: SyncMutex<Option<Progress>>,
    settings: SyncMutex<Settings>,
    /// How often the replicas were opened again. Locked while they are, and while a piece of them is compared.
    opening: Mutex<u32>,
    /// The ids of the members that have to begin another purge when they are done with the present one.
    purge_again: SyncMutex<HashSet<u32>>,
    /// It is to be closed.
    closing: Closing,
    /// It was closed, or handed over.
    closed: AtomicBool,
}

impl Control {
    fn state_error(&self, problem: impl Into<String>) -> VolumeError {
        VolumeError::State {
            volume: self.options.name.clone(),
            problem: problem.into(),
        }
    }

    /// The replicas that are written, with their control services.
    fn live(&self, admin: &Admin) -> Vec<(Arc<Member>, Peer)> {
        let members = self.shared.members().into_iter();
        let live = members.filter(|member| member.mode() != Mode::Failed);
        live.filter_map(|member| {
            let peer = admin.peers.get(&member.id)?.clone();
            Some((member, peer))
        })
        .collect()
    }

    /// The replicas that have everything, to take from what others lack.
    fn complete_members(&self, admin: &Admin) -> impl Iterator<Item = (Arc<Member>, Peer)> {
        let primary = self.shared.primary();
        let complete = move |member: &Member| {
            member.mode() == Mode::ReadWrite && primary.is_none_or(|id| member.id == id)
        };
        let live = self.live(admin).into_iter();
        live.filter(move |(member, _)| complete(member))
    }

    /// One of them.
    fn source(&self, admin: &Admin) -> Result<(Arc<Member>, Peer), VolumeError> {
        let first = self.complete_members(admin).next();
        first.ok_or_else(|| self.state_error("no replica is left that has all of it"))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether nothing is to be begun any more: it is closed, or is to be.
    pub(super) fn is_ending(&self) -> bool {
        self.is_closed() || self.closing.has_begun()
    }

    /// It is to be closed: nothing is begun any more but the requests of queues, and replicas that do not answer are left soon.
    pub(super) fn expect_close(&self) {
        self.closing.begin();
    }

    /// Takes the only permission to change something, while it is open and is to stay so.
    async fn administrate(&self) -> Result<MutexGuard<'_, Admin>, VolumeError> {
        let admin = self.admin.lock().await;
        if self.is_closed() {
            return Err(self.state_error("it is closed"));
        }
        if self.closing.has_begun() {
            return Err(self.state_error("it is being closed"));
        }
        Ok(admin)
    }

    /// The same, while all replicas have everything.
    async fn administrate_complete(&self) -> Result<MutexGuard<'_, Admin>, VolumeError> {
        let admin = self.administrate().await?;
        let rebuilt = |member: &Arc<Member>| member.mode() == Mode::WriteOnly;
        if self.shared.members().iter().any(rebuilt) {
            return Err(self.state_error("a replica is being rebuilt; wait for that, or remove it"));
        }
        self.ensure_alike()?;
        Ok(admin)
    }

    /// Refuses what is to be done to replicas that are the same only.
    fn ensure_alike(&self) -> Result<(), VolumeError> {
        match self.shared.primary() {
            None => Ok(()),
            Some(_) => Err(self.state_error("its replicas are being compared; wait for that")),
        }
    }

    /// Shuts the gate, for what is to be done to replicas that are the same: the last write before it may have left them torn.
    async fn freeze_alike(&self) -> Result<Frozen, VolumeError> {
        let frozen = self.shared.freeze().await;
        self.ensure_alike()?;
        Ok(frozen)
    }

    pub(super) fn progress(&self) -> Option<Progress> {
        self.progress.lock().clone()
    }

    fn set_progress(&self, progress: Option<&Progress>) {
        *self.progress.lock() = progress.cloned();
        self.listener.progress(progress);
    }

    /// Connects a new queue to all replicas.
    pub(super) async fn connect_queue(
        &self,
    ) -> Result<(Registered, Vec<(Arc<Member>, Arc<Socket>)>), VolumeError> {
        let admin = self.administrate().await?;
        if self.settings().withheld {
            return Err(self.state_error(
                "its frontend was shut down through its controller service; start it again there",
            ));
        }
        let mut connecting = Vec::new();
        for (member, peer) in self.live(&admin) {
            // At once: those that do not answer shall not add up.
            let connected = tokio::spawn(async move { open::connect(&peer.address).await });
            connecting.push((member, connected));
        }
        let mut connections = Vec::new();
        for (member, connected) in connecting {
            match connected.await {
                Ok(Ok(socket)) => {
                    member.adopt(&socket);
                    connections.push((member, socket));
                }
                Ok(Err(error)) => self.shared.fail(&member, &error.to_string()),
                Err(error) => self.shared.fail(&member, &error.to_string()),
            }
        }
        let post = self.shared.add_post().map_err(|error| VolumeError::Host {
            volume: self.options.name.clone(),
            problem: error.to_string(),
        })?;
        Ok((post, connections))
    }

    /// Waits until replicas have answered what they were sent, and closes them.
    pub(super) async fn close(&self) -> Result<(), VolumeError> {
        // Those who wait for their turn are not let go first.
        self.expect_close();
        let admin = self.admin.lock().await;
        if self.is_closed() {
            return Ok(());
        }
        let frozen = timeout(closing::REQUESTS, self.shared.freeze()).await.ok();
        let live = self.end(&admin);
        let mut closing = JoinSet::new();
        // Otherwise they stay open and unclean, so that whoever opens them next compares them.
        if frozen.is_none() {
            tracing::error!(volume = %self.options.name, "its requests do not end: its replicas are not closed, and will be compared the next time");
        } else if self.shared.primary().is_some() {
            tracing::warn!(volume = %self.options.name, "closed before its replicas were compared, or while they differ for want of space: they stay open, and will be compared the next time");
        } else {
            for (member, peer) in live {
                closing.spawn(async move {
                    let closed = match member.mode() {
                        // Whoever rebuilds it may not have marked it yet.
                        Mode::WriteOnly => remove::give_back(&peer).await,
                        _ => peer.close().await.map(drop),
                    };
                    (closed, peer)
                });
            }
        }
        while let Some(closed) = closing.join_next().await {
            if let Ok((Err(error), peer)) = closed {
                tracing::warn!(volume = %self.options.name, replica = %peer.address, %error, "it cannot be closed");
            }
        }
        drop(frozen);
        if let Some(record) = &self.record {
            record.release();
        }
        Ok(())
    }

    /// Waits until replicas have answered what they were sent, and leaves them open. Returns those that have everything. One that was left may look no different.
    pub(super) async fn hand_over(&self) -> Result<Vec<ReplicaAddress>, VolumeError> {
        let admin = self.administrate_complete().await?;
        let frozen = self.freeze_alike().await?;
        let live = self.end(&admin);
        drop(frozen);
        if let Some(record) = &self.record {
            record.forget();
        }
        Ok(live.into_iter().map(|(_, peer)| peer.address).collect())
    }

    /// Nothing is asked of the replicas any more. Returns those that are not given up.
    fn end(&self, admin: &Admin) -> Vec<(Arc<Member>, Peer)> {
        self.closed.store(true, Ordering::SeqCst);
        let live = self.live(admin);
        for socket in live.iter().flat_map(|(member, _)| member.sockets()) {
            socket.shut_down();
        }
        live
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The thread of a volume's control side. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct ControlThread {
    handle: Handle,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl ControlThread {
    /// Starts it.
    pub(super) fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("volume".to_owned())
            .spawn(move || {
                runtime.block_on(stopped.notified());
                // A name server that does not answer is not waited for.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            handle,
            stop,
            thread: Some(thread),
        })
    }

    /// The runtime of the thread.
    pub(super) fn runtime(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs something there. It goes on where nobody waits for it.
    pub(super) fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Running<T> {
        let (sender, receiver) = mpsc::channel();
        self.handle.spawn(async move {
            // Nobody may wait.
            let _ = sender.send(future.await);
        });
        Running(receiver)
    }
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, it has said so.
            let _ = thread.join();
        }
    }
}

/// Something that runs on the control thread.
pub(super) struct Running<T>(mpsc::Receiver<T>);

impl<T> Running<T> {
    /// Waits for it; `None` when it will never end.
    pub(super) fn wait(self) -> Option<T> {
        self.0.recv().ok()
    }
}

/// Where nothing but the time of the last write will tell after a crash which replica has everything, hosts whose clocks differ may have the wrong one believed.
fn warn_of_clocks(options: &VolumeOptions, counts_revisions: bool) {
    let hosts: HashSet<&str> = options.replicas.iter().map(ReplicaAddress::host).collect();
    if options.record.is_none() && !counts_revisions && hosts.len() > 1 {
        tracing::warn!(
            volume = %options.name,
            "its replicas do not count writes, and nothing records which of them have everything: should this host crash after one of them has \
             failed, the clocks of their hosts decide which is believed; name a record, or leave to whoever starts the VM which replicas it is given"
        );
    }
}

/// Opens a volume, on the control thread.
pub(super) async fn open(
    mut options: VolumeOptions,
    listener: Arc<dyn Listener>,
) -> Result<Arc<Control>, VolumeError> {
    let record = Record::of(&options)?;
    let recorded = match &record {
        Some(record) => record.choose(&options)?,
        None => None,
    };
    let is_recorded = recorded.is_some();
    options.replicas = recorded.unwrap_or(options.replicas);
    let opened = open::open(&options, is_recorded).await?;
    warn_of_clocks(&options, opened.counts_revisions);
    let (sender, events) = unbounded_channel();
    let shared = Shared::new(options.name.clone(), opened.size, record.is_some(), sender);
    let shared = Arc::new(shared);
    let mut admin = Admin {
        peers: HashMap::new(),
        next_id: 0,
        counts_revisions: opened.counts_revisions,
        rebuild: None,
        lost: None,
    };
    let closing = Closing::new();
    let mut members = Vec::new();
    for replica in opened.replicas {
        let id = admin.next_id;
        admin.next_id += 1;
        let address = replica.peer.address.to_string();
        let member = Arc::new(Member::new(id, address, Mode::ReadWrite));
        if replica.behind {
            member.fall_behind();
        }
        let peer = replica.peer.hurried_by(closing.hurry());
        admin.peers.insert(id, peer);
        members.push((member, replica.problem));
    }
    let handed_over = options.taking == Taking::HandedOver;
    let control = Control {
        shared,
        options,
        admin: Mutex::new(admin),
        adding: Mutex::new(()),
        listener,
        record,
        record_failure: SyncMutex::default(),
        progress: SyncMutex::default(),
        settings: SyncMutex::default(),
        opening: Mutex::new(0),
        purge_again: SyncMutex::default(),
        closing,
        closed: AtomicBool::new(false),
    };
    // All of them first: who is left depends on who else is there.
    for (member, _) in &members {
        control.shared.add_member(Arc::clone(member));
    }
    for (member, problem) in members {
        if let Some(problem) = problem {
            control.shared.fail_behind(&member, &problem);
        }
    }
    let unclean = opened.unclean && !handed_over && control.shared.readable().len() > 1;
    if unclean {
        let members = control.shared.members();
        let best = members.get(opened.best).map(|member| member.id);
        control.shared.set_primary(best);
    }
    if let Some(record) = &control.record {
        // What is written from now on, those miss that could not be opened.
        record.write(&control.complete_replicas())?;
    }
    let control = Arc::new(control);
    supervise::start(&control, events);
    if unclean {
        tokio::spawn(resync::run(Arc::clone(&control), 0));
    }
    Ok(control)
}
