//! A replica in memory, behind the ports of a real one, that does what a test has it do: refuses, hangs, or does what it was asked later than
//! anybody waits.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use paddock_longhorn::messages as m;
use paddock_longhorn::replica::replica_service_server::ReplicaServiceServer;
use paddock_longhorn::sync_agent::sync_agent_service_server::SyncAgentServiceServer;
use paddock_longhorn::wire::{HEADER, Header, Kind};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tonic::Status;
use tonic::transport::Server;

use super::super::ControlThread;
use super::services::Services;
use crate::longhorn::options::ReplicaAddress;

/// The port of its control service. Each has an address of its own.
const PORT: u16 = 9502;

/// Bytes of its volume.
pub(super) const SIZE: usize = 256 << 10;

/// A second, in nanoseconds.
pub(super) const SECOND: i64 = 1_000_000_000;

/// What it does about a call that it would otherwise do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Nothing, and says so.
    Refuse,
    /// Nothing, and says why at length.
    Rant,
    /// Nothing, and never says anything.
    Hang,
    /// It does not know of such a call.
    #[cfg(feature = "controller")]
    Unknown,
    /// It does it, and answers after that time.
    DoneLate(Duration),
    /// It does it after that time, whether or not somebody still waits.
    DoesLate(Duration),
}

/// What a replica has, and what it was asked.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub open: bool,
    pub dirty: bool,
    pub rebuilding: bool,
    /// Whether it counts writes, and how many it has seen.
    pub counter: Option<i64>,
    /// Nanoseconds.
    pub modified: i64,
    pub bytes: Vec<u8>,
    pub head: u32,
    /// When the head was made.
    pub head_created: String,
    /// The files below it, from the top, and when they were made.
    pub chain: Vec<(String, String)>,
    /// Those of them that no user made, those that are to go, and those that go with the present purge.
    pub automatic: Vec<String>,
    pub marked: Vec<String>,
    pub purging: Option<Vec<String>>,
    /// Files that are not in the chain.
    pub others: Vec<String>,
    pub unmap_marks: bool,
    /// What it says that it is, and why its last purge failed, if not what it should.
    pub says: Option<String>,
    pub max_snapshots: i32,
    /// What it was asked, the first first.
    pub calls: Vec<&'static str>,
    pub manners: HashMap<&'static str, Manner>,
    /// Its data port takes what comes and answers nothing.
    pub silent: bool,
    /// What is there cannot be read.
    pub bad: Option<usize>,
    /// There is no space for what is there or behind it: of a write that reaches it only the beginning is kept.
    pub full: Option<usize>,
    /// Whoever reads what is there gets no answer.
    pub hangs_at: Option<usize>,
    /// What its data port has not answered.
    pub asked: usize,
}

impl State {
    fn new() -> Self {
        Self {
            open: false,
            dirty: false,
            rebuilding: false,
            counter: None,
            modified: 0,
            bytes: vec![0; SIZE],
            head: 0,
            head_created: String::new(),
            chain: Vec::new(),
            automatic: Vec::new(),
            marked: Vec::new(),
            purging: None,
            others: Vec::new(),
            unmap_marks: false,
            says: None,
            max_snapshots: 250,
            calls: Vec::new(),
            manners: HashMap::new(),
            silent: false,
            bad: None,
            full: None,
            hangs_at: None,
            asked: 0,
        }
    }

    pub(super) fn head_file(&self) -> String {
        format!("volume-head-{:03}.img", self.head)
    }

    fn state(&self) -> &'static str {
        match (self.open, self.rebuilding, self.dirty) {
            (false, _, _) => "closed",
            (true, true, _) => "rebuilding",
            (true, false, true) => "dirty",
            (true, false, false) => "open",
        }
    }

    /// Puts a new head on the chain.
    pub(super) fn push_head(&mut self, created: &str) {
        self.head += 1;
        created.clone_into(&mut self.head_created);
    }

    pub(super) fn take_snapshot(&mut self, name: &str, created: &str) -> Result<(), Status> {
        let file = format!("volume-snap-{name}.img");
        if self.chain.iter().any(|(other, _)| *other == file) {
            return Err(Status::unknown("it is already existing"));
        }
        self.chain.insert(0, (file, created.to_owned()));
        self.push_head(created);
        Ok(())
    }

    /// Begins to give up what is to go by now, and what no user made, unless it is directly below the head.
    pub(super) fn begin_purge(&mut self) -> Result<(), Status> {
        if self.purging.is_some() {
            return Err(Status::unknown("it is purging already"));
        }
        let below = self.chain.iter().skip(1).map(|(file, _)| file);
        let goes = below.filter(|file| self.automatic.contains(file) || self.marked.contains(file));
        self.purging = Some(goes.cloned().collect());
        Ok(())
    }

    /// As `ReplicaGet` tells it.
    pub(super) fn describe(&self) -> m::Replica {
        let mut told = m::Replica {
            dirty: self.dirty,
            rebuilding: self.rebuilding,
            head: self.head_file(),
            size: self.bytes.len().to_string(),
            sector_size: 512,
            state: self.says.clone().unwrap_or(self.state().to_owned()),
            revision_counter_disabled: self.counter.is_none(),
            ..m::Replica::default()
        };
        if !self.open {
            return told;
        }
        let disk = |name: &str, created: &str| m::DiskInfo {
            name: name.to_owned(),
            created: created.to_owned(),
            size: "4096".to_owned(),
            user_created: !self.automatic.iter().any(|file| file == name),
            removed: self.marked.iter().any(|file| file == name),
            ..m::DiskInfo::default()
        };
        let head = (self.head_file(), self.head_created.clone());
        let others = self.others.iter().map(|name| (name.clone(), String::new()));
        let chain = std::iter::once(head).chain(self.chain.clone());
        told.chain = chain.clone().map(|(name, _)| name).collect();
        told.disks = chain
            .chain(others)
            .map(|(name, created)| (name.clone(), disk(&name, &created)))
            .collect();
        told.remain_snapshots = self.max_snapshots;
        told.revision_counter = self.counter.unwrap_or(0);
        told.last_modify_time = self.modified;
        let empty = self.bytes.iter().all(|byte| *byte == 0);
        told.head_file_size = if empty { 0 } else { 4096 };
        told.unmap_mark_disk_chain_removed = self.unmap_marks;
        told
    }

    /// Whether a frame asks for what is there.
    fn reads(header: &Header, place: Option<usize>) -> bool {
        let start = usize::try_from(header.offset).unwrap_or(usize::MAX);
        let read = start..start.saturating_add(header.size as usize);
        header.kind == Kind::Read && place.is_some_and(|place| read.contains(&place))
    }

    /// Whether a frame is not answered, for now.
    fn hangs(&self, header: &Header) -> bool {
        self.silent || Self::reads(header, self.hangs_at)
    }

    /// Does what a frame asks. What the answer is, and its data.
    fn serve(&mut self, header: &Header, data: &[u8]) -> Option<Vec<u8>> {
        let start = usize::try_from(header.offset).ok()?;
        let end = start + usize::try_from(header.size).ok()?;
        if !self.open {
            return None;
        }
        match header.kind {
            Kind::Ping => Some(Vec::new()),
            Kind::Read if Self::reads(header, self.bad) => None,
            Kind::Read => Some(self.bytes.get(start..end)?.to_vec()),
            Kind::Write if self.full.is_some_and(|full| end > full) => {
                let kept = self.full?.clamp(start, end);
                let (bytes, data) = (self.bytes.get_mut(start..kept)?, data.get(..kept - start)?);
                bytes.copy_from_slice(data);
                None
            }
            Kind::Write => {
                self.bytes.get_mut(start..end)?.copy_from_slice(data);
                self.dirty = true;
                self.modified = now();
                self.counter = self.counter.map(|counter| counter + 1);
                Some(Vec::new())
            }
            _ => None,
        }
    }
}

/// Nanoseconds since 1970.
pub(super) fn now() -> i64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
    i64::try_from(now.as_nanos()).expect("not for 200 years")
}

/// A replica that is served as long as its thread runs.
pub(super) struct Fake {
    pub address: ReplicaAddress,
    state: Arc<Mutex<State>>,
}

impl Fake {
    /// Serves a new one.
    pub(super) fn start(thread: &ControlThread) -> Self {
        let state = Arc::new(Mutex::new(State::new()));
        let serving = Arc::clone(&state);
        let host = thread.run(async move { serve(&serving).await }).wait();
        let host = host.expect("a thread that runs").expect("ports");
        let address = format!("{host}:{PORT}").parse().expect("an address");
        Self { address, state }
    }

    /// What it has.
    pub(super) fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// Changes something about it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock())
    }

    /// Has it do all such calls that way.
    pub(super) fn set(&self, call: &'static str, manner: Manner) {
        self.change(|state| state.manners.insert(call, manner));
    }

    /// Has it do everything well.
    pub(super) fn mend(&self) {
        self.change(|state| {
            state.manners.clear();
            state.silent = false;
            state.full = None;
            state.hangs_at = None;
        });
    }

    /// As if it had been made anew.
    pub(super) fn empty(&self) {
        self.change(|state| *state = State::new());
    }

    /// Ends its purge: what was to go when that began is gone.
    pub(super) fn end_purge(&self) {
        self.change(|state| {
            let gone = state.purging.take().expect("a purge");
            state.chain.retain(|(file, _)| !gone.contains(file));
        });
    }

    /// As if its process had been killed and started anew: nobody has closed it.
    pub(super) fn restart(&self) {
        self.change(|state| state.open = false);
    }
}

/// An address of this machine where nobody is.
async fn bind() -> io::Result<(IpAddr, [TcpListener; 3])> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Other processes do the same.
    let process = std::process::id().wrapping_mul(251);
    loop {
        let number = process.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let [_, high, middle, low] = number.to_be_bytes();
        let host = IpAddr::V4(Ipv4Addr::new(127, high | 1, middle, low));
        let at = |more: u16| TcpListener::bind(SocketAddr::new(host, PORT + more));
        match (at(0).await, at(1).await, at(2).await) {
            (Ok(control), Ok(data), Ok(agent)) => return Ok((host, [control, data, agent])),
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => match error.kind() {
                io::ErrorKind::AddrInUse => {}
                _ => return Err(error),
            },
        }
    }
}

async fn serve(state: &Arc<Mutex<State>>) -> io::Result<IpAddr> {
    let (host, [control, data, agent]) = bind().await?;
    let services = Services(Arc::clone(state));
    let server = Server::builder().add_service(ReplicaServiceServer::new(services.clone()));
    tokio::spawn(server.serve_with_incoming(tonic::transport::server::TcpIncoming::from(control)));
    let server = Server::builder().add_service(SyncAgentServiceServer::new(services));
    tokio::spawn(server.serve_with_incoming(tonic::transport::server::TcpIncoming::from(agent)));
    let state = Arc::clone(state);
    tokio::spawn(async move {
        while let Ok((stream, _)) = data.accept().await {
            tokio::spawn(serve_data(stream, Arc::clone(&state)));
        }
    });
    Ok(host)
}

async fn serve_data(mut stream: TcpStream, state: Arc<Mutex<State>>) -> io::Result<()> {
    loop {
        let mut bytes = [0; HEADER];
        stream.read_exact(&mut bytes).await?;
        let header = Header::decode(&bytes).map_err(io::Error::other)?;
        let mut data = vec![0; header.payload as usize];
        stream.read_exact(&mut data).await?;
        state.lock().asked += 1;
        while state.lock().hangs(&header) {
            sleep(Duration::from_millis(10)).await;
        }
        let answer = state.lock().serve(&header, &data);
        let (kind, data) = match answer {
            Some(data) => (Kind::Response, data),
            None if header.kind == Kind::Write && state.lock().full.is_some() => (
                Kind::Error,
                b"write volume-head-000.img: no space left on device".to_vec(),
            ),
            None => (Kind::Error, Vec::new()),
        };
        let payload = u32::try_from(data.len()).map_err(io::Error::other)?;
        let header = Header {
            kind,
            payload,
            ..header
        };
        stream.write_all(&header.encode()).await?;
        stream.write_all(&data).await?;
        state.lock().asked -= 1;
    }
}
