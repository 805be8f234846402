//! The HTTP server: HTTP/1.1 and JSON on a unix socket, for the process's own user and root.
//!
//! ```text
//!  ApiSocket ──▶ accept loop ──▶ one task a connection ──▶ routes ──▶ VmService
//!                (peer, number)   (timeouts)               (body limit, problems)
//! ```
//!
//! All of it runs on the control plane's runtime. Clients choose when they connect, what they send and whether they read; each of
//! these has a limit in [`Limits`], so that none of them costs the others anything.

mod balloon;
mod body;
mod cdroms;
mod connections;
mod cpus;
mod devices;
mod disks;
mod events;
mod jobs;
mod memory;
mod metrics;
mod routes;
mod socket;
mod vm;
mod volumes;

/// The handlers, for the document that describes them.
pub(crate) mod handlers {
    pub(crate) use super::balloon::*;
    pub(crate) use super::cdroms::*;
    pub(crate) use super::cpus::*;
    pub(crate) use super::devices::*;
    pub(crate) use super::disks::*;
    pub(crate) use super::events::*;
    pub(crate) use super::jobs::*;
    pub(crate) use super::memory::*;
    pub(crate) use super::metrics::*;
    pub(crate) use super::routes::*;
    pub(crate) use super::vm::*;
    pub(crate) use super::volumes::*;
}

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use socket::{ApiSocket, SocketError};

use crate::service::VmService;

/// A request's body has at most this many bytes.
pub const MAX_BODY: usize = 1 << 20;

/// What clients may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once. The next one takes the place of the one that has been without a request for longest; where all are
    /// being served, it is refused.
    pub connections: usize,
    /// Of these, clients that follow the events: they stay, so others must have room beside them.
    pub followers: usize,
    /// How long a connection may be without a request, or take to send the head of one.
    pub idle: Duration,
    /// How long a request's body may take.
    pub body: Duration,
    /// How long a client may leave what it is sent unread.
    pub unread: Duration,
    /// How often a client that follows the events gets a sign of life.
    pub keep_alive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            followers: 32,
            idle: Duration::from_secs(10),
            body: Duration::from_secs(10),
            unread: Duration::from_secs(10),
            keep_alive: Duration::from_secs(10),
        }
    }
}

/// A running server. Dropped, it ends at once; the socket's file is removed either way.
#[derive(Debug)]
pub struct Server {
    service: Arc<dyn VmService>,
    ending: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Serves `service` on `socket`, as a task of the present runtime.
    ///
    /// # Errors
    /// When the runtime cannot wait for the socket.
    pub fn start(
        socket: ApiSocket,
        service: Arc<dyn VmService>,
        limits: Limits,
    ) -> io::Result<Self> {
        let (listener, file) = socket.into_listener()?;
        let ending = watch::Sender::new(false);
        let app = routes::router(Arc::clone(&service), limits);
        let told = ending.subscribe();
        let accepting = tokio::spawn(async move {
            connections::serve(&listener, &app, limits, told).await;
            drop(file);
        });
        Ok(Self {
            service,
            ending,
            accepting,
        })
    }

    /// Takes no more connections and requests, ends the events, and waits for what is being answered, but not past `deadline`.
    pub async fn shut_down(mut self, deadline: Duration) {
        self.service.journal().close();
        self.ending.send_replace(true);
        if tokio::time::timeout(deadline, &mut self.accepting)
            .await
            .is_err()
        {
            tracing::warn!("API clients were cut off in the middle of an answer");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
