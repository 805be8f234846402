//! The transfer of a rebuild: has other replicas send their files, one at a time each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use paddock_longhorn::VOLUME_NAME;
use paddock_longhorn::messages as m;
use paddock_longhorn::sync_agent::sync_agent_service_client::SyncAgentServiceClient;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::receive::{Failure, Outcome, Reception, receive};
use super::{Job, Progress, Shared, check_transferable, http_deadline};
use crate::control::blocking;
use crate::error::{Error, Result};

/// How often a file is tried.
const TRIES: u32 = 3;

/// How long to wait before the next time.
const PAUSE: Duration = Duration::from_secs(2);

/// How long a file may take where the engine does not say.
const FILE_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// How long connecting may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// How long the receiver may take to end when the sender has, and the sender to say so when the receiver has the file.
const END_DEADLINE: Duration = Duration::from_secs(30);

/// How long a sender may take to say why a file did not come.
const REASON_DEADLINE: Duration = Duration::from_secs(5);

/// When a source that says nothing is asked whether its host is there, and how often before it is given up. Not by pings of HTTP/2: Longhorn's own
/// replicas end a connection on which they come more often than every five minutes.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TRIES: u32 = 4;

/// The most files of a replica, each with its metadata.
const MOST_FILES: usize = 1024;

/// A file that is to come, and how often it was tried.
type Waiting = (m::SyncFileInfo, u32);

/// A transfer.
struct Transfer {
    shared: Arc<Shared>,
    request: m::FilesSyncRequest,
    progress: Arc<Progress>,
    waiting: Mutex<VecDeque<Waiting>>,
}

impl Shared {
    /// Fetches files from other replicas.
    pub(super) async fn sync_files(self: &Arc<Self>, request: m::FilesSyncRequest) -> Result<()> {
        if request.sync_file_info_list.len() > MOST_FILES {
            return Err(Error::refused("a replica has not that many files"));
        }
        for file in &request.sync_file_info_list {
            check_transferable(&file.from_file_name)?;
            check_transferable(&file.to_file_name)?;
        }
        let mut sources: Vec<_> = request.from_address_map.keys().cloned().collect();
        if sources.is_empty() && !request.from_address.is_empty() {
            sources.push(request.from_address.clone());
        }
        sources.sort();
        if sources.is_empty() || request.sync_file_info_list.is_empty() {
            return Err(Error::refused("no files or remote replicas for sync"));
        }
        let sizes = request
            .sync_file_info_list
            .iter()
            .map(|file| file.actual_size.max(0).unsigned_abs());
        let total = sizes.fold(0_u64, u64::saturating_add);
        let progress = {
            let mut work = self.work.lock();
            if work.purge.running {
                return Err(Error::refused("replica is purging snapshots"));
            }
            if work.rebuild.running {
                return Err(Error::refused("replica is already rebuilding"));
            }
            work.rebuild = Job::begin(total);
            work.sources.clone_from(&sources);
            Arc::clone(&work.rebuild.progress)
        };
        let files = request
            .sync_file_info_list
            .iter()
            .map(|file| (file.clone(), 0));
        let transfer = Arc::new(Transfer {
            waiting: Mutex::new(files.collect()),
            shared: Arc::clone(self),
            request,
            progress,
        });
        // A client that goes away leaves no transfer that looks as if it went on.
        let work = tokio::spawn(async move {
            let shared = Arc::clone(&transfer.shared);
            let result = transfer.run(sources).await;
            shared.work.lock().rebuild.end(result.clone());
            result
        });
        match work.await {
            Ok(result) => result.map_err(Error::refused),
            Err(error) => Err(Error::refused(format!("the transfer broke off: {error}"))),
        }
    }
}

/// The sync agent of the replica at an address such as `tcp://10.0.0.1:9502`.
async fn connect(
    address: &str,
    deadline: Duration,
) -> std::result::Result<SyncAgentServiceClient<Channel>, String> {
    let fail = |error: &dyn std::fmt::Display| {
        format!("cannot connect to the sync agent of {address}: {error}")
    };
    let bare = address.strip_prefix("tcp://").unwrap_or(address);
    let (host, port) = bare
        .rsplit_once(':')
        .ok_or_else(|| fail(&"there is no port"))?;
    let port: u16 = port.parse().map_err(|error| fail(&error))?;
    let port = port
        .checked_add(2)
        .ok_or_else(|| fail(&"there is no such port"))?;
    let endpoint =
        Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|error| fail(&error))?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_DEADLINE)
        .timeout(deadline)
        .tcp_keepalive(Some(KEEP_ALIVE))
        .tcp_keepalive_interval(Some(KEEP_ALIVE))
        .tcp_keepalive_retries(Some(KEEP_ALIVE_TRIES));
    let channel = endpoint.connect().await.map_err(|error| fail(&error))?;
    Ok(SyncAgentServiceClient::new(channel))
}

impl Transfer {
    async fn run(self: Arc<Self>, sources: Vec<String>) -> std::result::Result<(), String> {
        let mut workers = JoinSet::new();
        for source in sources {
            workers.spawn(Arc::clone(&self).fetch_from(source));
        }
        let mut last = None;
        while let Some(result) = workers.join_next().await {
            let result = result.map_err(|error| error.to_string());
            if let Err(error) = result.and_then(|result| result) {
                tracing::warn!(%error, "a source of files is given up");
                last = Some(error);
            }
        }
        match (self.waiting.lock().len(), last) {
            (0, _) => Ok(()),
            (left, None) => Err(format!("{left} files did not come")),
            (left, Some(error)) => Err(format!("{left} files did not come: {error}")),
        }
    }

    fn deadline(&self) -> Duration {
        match u64::try_from(self.request.grpc_timeout_seconds) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => FILE_DEADLINE,
        }
    }

    /// Fetches one file after the other, until none is left.
    async fn fetch_from(self: Arc<Self>, source: String) -> std::result::Result<(), String> {
        let mut client = connect(&source, self.deadline()).await?;
        loop {
            let Some((file, tries)) = self.waiting.lock().pop_front() else {
                return Ok(());
            };
            let Err(error) = self.fetch(&mut client, &file).await else {
                continue;
            };
            let silent = error.silent;
            let error = format!("{} from {source}: {}", file.to_file_name, error.text);
            self.waiting.lock().push_back((file, tries + 1));
            if silent || tries + 1 >= TRIES {
                return Err(error);
            }
            tracing::warn!(%error, "a file did not come, and is tried again");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn fetch(
        &self,
        client: &mut SyncAgentServiceClient<Channel>,
        file: &m::SyncFileInfo,
    ) -> Outcome {
        let replica = Arc::clone(&self.shared.replica);
        let directory = blocking(move || replica.directory())
            .await
            .map_err(|status| status.message().to_owned())?;
        let port = self.shared.port().map_err(|error| error.text())?;
        let number = port.number;
        // Metadata and empty files do not count.
        let progress = (file.actual_size > 0).then(|| Arc::clone(&self.progress));
        let patience = http_deadline(self.request.file_sync_http_client_timeout);
        let reception = receive(
            directory,
            file.to_file_name.clone(),
            port,
            progress,
            patience,
        )
        .await
        .map_err(|error| error.text())?;
        let mut request = Request::new(m::FileSendRequest {
            from_file_name: file.from_file_name.clone(),
            host: self.request.to_host.clone(),
            port: number.into(),
            fast_sync: self.request.fast_sync,
            file_sync_http_client_timeout: self.request.file_sync_http_client_timeout,
        });
        if let Ok(volume) = self.shared.identity.volume.parse() {
            request.metadata_mut().insert(VOLUME_NAME, volume);
        }
        let sending = client.file_send(request);
        let sending = async { sending.await.map_err(|status| status.message().to_owned()) };
        await_both(sending, reception).await
    }
}

/// Waits for both ends of a transfer, of which either may be silent for ever.
async fn await_both<T>(
    sending: impl Future<Output = std::result::Result<T, String>>,
    mut reception: Reception,
) -> Outcome {
    tokio::pin!(sending);
    tokio::select! {
        sent = &mut sending => {
            if let Err(text) = sent {
                reception.abandon();
                return Err(text.into());
            }
            match timeout(END_DEADLINE, reception.outcome()).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    reception.abandon();
                    let text = "the sender says that it is done, and did not close the file";
                    Err(text.to_owned().into())
                }
            }
        }
        outcome = reception.outcome() => {
            let patience = match &outcome {
                Err(Failure { silent: true, .. }) => return outcome,
                Err(_) => REASON_DEADLINE,
                Ok(()) => END_DEADLINE,
            };
            // A sender that failed knows best why. All of a file that the receiver has is there, whatever becomes of the sender.
            match timeout(patience, sending).await {
                Ok(Err(text)) if outcome.is_err() => Err(text.into()),
                _ => outcome,
            }
        }
    }
}
