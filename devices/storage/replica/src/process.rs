//! The process: listens on all its ports, serves, and ends when it is told to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use paddock_longhorn::Identity;
use paddock_longhorn::replica::replica_service_server::ReplicaServiceServer;
use paddock_longhorn::sync_agent::sync_agent_service_server::SyncAgentServiceServer;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::agent::Agent;
use crate::control::ReplicaControl;
use crate::data::{Address, DataServer, Engine};
use crate::error::{Error, Result};
use crate::volume::replica::{Options, Replica};

/// How long requests that are in flight may take when the process is to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the sockets of volumes are, as Longhorn's engines look for them: in its pods, and on the host.
const UNIX_SOCKETS: [&str; 2] = [
    "/host/var/lib/longhorn/unix-domain-socket",
    "/var/lib/longhorn/unix-domain-socket",
];

/// How a process is run.
#[derive(Debug)]
pub struct Settings {
    /// The volume's name, or none.
    pub volume: String,
    /// The process's name, or none.
    pub instance: String,
    /// Where control calls come.
    pub listen: SocketAddr,
    /// Where data comes.
    pub data: Address,
    /// Bytes of the volume that is made where there is none.
    pub size: Option<i64>,
    /// How many files may be received at once; `None` for no sync agent.
    pub agent_ports: Option<u16>,
    /// The replica.
    pub options: Options,
}

/// The unix socket of a volume.
///
/// # Errors
/// When the name cannot be a file's.
pub fn unix_socket(volume: &str) -> std::result::Result<PathBuf, String> {
    if !crate::files::names::is_plain(volume) {
        return Err(format!("the volume {volume:?} cannot name a socket"));
    }
    let mut places = UNIX_SOCKETS.into_iter().map(Path::new);
    let place = places.find(|place| place.is_dir());
    let place = place.ok_or_else(|| {
        format!(
            "there is no directory {} for the volume's socket; make it",
            UNIX_SOCKETS[1]
        )
    })?;
    Ok(place.join(format!("{volume}.sock")))
}

/// Runs the process to its end.
///
/// # Errors
/// When it cannot serve.
pub fn run(settings: Settings) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Error::io("start", Path::new("the runtime"), error))?;
    runtime.block_on(serve(settings))
}

fn describe(address: &Address) -> PathBuf {
    match address {
        Address::Tcp(address) => address.to_string().into(),
        Address::Unix(path) => path.clone(),
    }
}

/// Listens on a port for gRPC.
async fn listen(address: SocketAddr) -> Result<TcpIncoming> {
    let fail = |error| Error::io("listen on", Path::new(&address.to_string()), error);
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    Ok(TcpIncoming::from(listener).with_nodelay(Some(true)))
}

/// Listens for calls of the sync agent; the future serves them.
async fn serve_agent(
    replica: &Arc<Replica>,
    identity: &Identity,
    control: SocketAddr,
    count: u16,
) -> Result<impl Future<Output = std::result::Result<(), tonic::transport::Error>>> {
    let none = || Error::refused("--listen: there are not enough ports after this one");
    let port = control.port().checked_add(2).ok_or_else(none)?;
    let first = port
        .checked_add(1)
        .filter(|first| first.checked_add(count).is_some())
        .ok_or_else(none)?;
    let listener = listen(SocketAddr::new(control.ip(), port)).await?;
    let agent = Agent::new(
        Arc::clone(replica),
        identity.clone(),
        control.ip(),
        first,
        count,
    );
    agent.clean()?;
    let service = SyncAgentServiceServer::with_interceptor(agent, identity.clone());
    Ok(Server::builder()
        .add_service(service)
        .serve_with_incoming(listener))
}

async fn serve(settings: Settings) -> Result<()> {
    let replica = Replica::new(settings.options);
    if let Some(size) = settings.size {
        let replica = Arc::clone(&replica);
        tokio::task::spawn_blocking(move || replica.create(size))
            .await
            .map_err(|error| Error::refused(format!("making the replica broke off: {error}")))??;
    }
    let fail = |error| Error::io("wait for", Path::new("signals"), error);
    let mut terminated = signal(SignalKind::terminate()).map_err(fail)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(fail)?;
    let control = listen(settings.listen).await?;
    let data = DataServer::start(&settings.data, Arc::clone(&replica), Engine::Auto)
        .map_err(|error| Error::io("listen on", &describe(&settings.data), error))?;
    let identity = Identity {
        volume: settings.volume,
        instance: settings.instance,
        role: "replica",
    };
    let agent = match settings.agent_ports {
        Some(count) => Some(serve_agent(&replica, &identity, settings.listen, count).await?),
        None => None,
    };
    let agent = async move {
        match agent {
            Some(agent) => agent.await,
            None => std::future::pending().await,
        }
    };
    let service = ReplicaServiceServer::with_interceptor(
        ReplicaControl::new(Arc::clone(&replica)),
        identity.clone(),
    );
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<ReplicaServiceServer<ReplicaControl>>()
        .await;
    let control = Server::builder()
        .add_service(service)
        .add_service(health_service)
        .serve_with_incoming(control);
    tracing::info!(control = %settings.listen, data = %describe(&settings.data).display(), "listening");
    let told = |what: &str, result: std::result::Result<(), tonic::transport::Error>| {
        let error = result
            .err()
            .map_or_else(String::new, |error| error.to_string());
        Err(format!("{what} are no longer served: {error}"))
    };
    let ended = tokio::select! {
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
        result = control => told("control calls", result),
        result = agent => told("calls of the sync agent", result),
    };
    tracing::info!("ending");
    let finish = move || {
        let in_time = data.stop(PATIENCE);
        if !in_time {
            tracing::warn!("some requests are still at the disk");
        }
        replica.sync()
    };
    tokio::task::spawn_blocking(finish)
        .await
        .map_err(|error| Error::refused(format!("ending broke off: {error}")))??;
    ended.map_err(Error::refused)
}
