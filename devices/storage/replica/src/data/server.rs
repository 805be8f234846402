//! Listens for data connections, and starts a thread for each.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::{Shutdown, sockopt};

use super::calls::Calls;
use super::connection::Connection;
use super::registry::{Guest, Limits, Registry};
use super::slice;
use super::uring::{self, Uring};
use crate::volume::replica::Replica;

/// When a peer that says nothing is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long to leave a host alone that has no descriptors for us.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the server listens.
#[derive(Debug, Clone)]
pub enum Address {
    /// By TCP.
    Tcp(SocketAddr),
    /// On a unix socket, in the place of one that nobody listens on.
    Unix(PathBuf),
}

/// How system calls are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// By io_uring where the host lets us.
    #[default]
    Auto,
    /// One after the other.
    Calls,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// A server that listens.
#[derive(Debug)]
pub struct DataServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    listener: Listener,
    replica: Arc<Replica>,
    use_rings: bool,
    stopping: AtomicBool,
    registry: Arc<Registry>,
}

impl DataServer {
    /// Listens, and serves on threads of its own.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(address: &Address, replica: Arc<Replica>, engine: Engine) -> io::Result<Self> {
        Self::start_limited(address, replica, engine, Limits::default())
    }

    /// The same, for so many.
    pub(crate) fn start_limited(
        address: &Address,
        replica: Arc<Replica>,
        engine: Engine,
        limits: Limits,
    ) -> io::Result<Self> {
        let listener = match address {
            Address::Tcp(address) => Listener::Tcp(TcpListener::bind(address)?),
            Address::Unix(path) => Listener::Unix(listen_unix(path)?, path.clone()),
        };
        let rings = uring::probe();
        if let (Err(error), Engine::Auto) = (&rings, engine) {
            tracing::info!(%error, "no io_uring: requests of a connection are served one after the other");
        }
        let shared = Arc::new(Shared {
            listener,
            replica,
            use_rings: engine == Engine::Auto && rings.is_ok(),
            stopping: AtomicBool::new(false),
            registry: Arc::new(Registry::new(limits)),
        });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("data".into())
            .spawn(move || of_thread.accept())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Where it listens by TCP.
    ///
    /// # Errors
    /// When it does not.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        match &self.shared.listener {
            Listener::Tcp(listener) => listener.local_addr(),
            Listener::Unix(..) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Takes no more requests, and waits until those it has are answered. Returns whether they were in time.
    pub fn stop(mut self, patience: Duration) -> bool {
        self.end();
        self.shared.registry.await_end(patience)
    }

    fn end(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        // Wakes who accepts.
        let _ = rustix::net::shutdown(self.shared.listener.descriptor(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.shared.registry.hush();
        if let Listener::Unix(_, path) = &self.shared.listener {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for DataServer {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

/// Listens on a path; what a killed process left there goes.
fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

impl Listener {
    fn descriptor(&self) -> impl AsFd + '_ {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }

    /// The next connection, and its host's address.
    fn accept(&self) -> io::Result<(OwnedFd, Option<IpAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (socket, peer) = listener.accept()?;
                tracing::info!(%peer, "data connection");
                socket.set_nodelay(true)?;
                sockopt::set_socket_keepalive(&socket, true)?;
                sockopt::set_tcp_keepidle(&socket, KEEP_ALIVE)?;
                sockopt::set_tcp_keepintvl(&socket, KEEP_ALIVE)?;
                Ok((socket.into(), Some(peer.ip())))
            }
            Self::Unix(listener, _) => {
                tracing::info!("data connection on the unix socket");
                Ok((listener.accept()?.0.into(), None))
            }
        }
    }
}

impl Shared {
    fn accept(self: Arc<Self>) {
        let mut number = 0;
        loop {
            let socket = self.listener.accept();
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            number += 1;
            let started =
                socket.and_then(|(socket, address)| Self::connect(&self, socket, address, number));
            if let Err(error) = started {
                tracing::warn!(%error, "a data connection cannot be served");
                thread::sleep(PAUSE);
            }
        }
    }

    fn connect(
        shared: &Arc<Self>,
        socket: OwnedFd,
        address: Option<IpAddr>,
        number: u64,
    ) -> io::Result<()> {
        let second = socket.try_clone()?;
        let guest = Registry::enter(&shared.registry, number, second, address)?;
        let of_thread = Arc::clone(shared);
        let work = move || {
            slice::shorten();
            of_thread.serve(socket, guest);
            of_thread.registry.leave(number);
        };
        let spawned = thread::Builder::new()
            .name(format!("data-{number}"))
            .spawn(work);
        spawned
            .map(drop)
            .inspect_err(|_| shared.registry.leave(number))
    }

    fn serve(&self, socket: OwnedFd, guest: Guest) {
        let replica = Arc::clone(&self.replica);
        let descriptor = socket.as_raw_fd();
        if self.use_rings {
            match Uring::new(descriptor) {
                Ok(ring) => return Connection::new(socket, ring, replica, guest).serve(),
                Err(error) => {
                    tracing::warn!(%error, "no ring for a data connection; is the limit on locked memory too low?");
                }
            }
        }
        Connection::new(socket, Calls::new(descriptor), replica, guest).serve();
    }
}
