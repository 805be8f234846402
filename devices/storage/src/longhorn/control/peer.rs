//! The control service of one replica, as an engine calls it: each call has a deadline, and says which volume is meant.
//!
//! What it answers is not trusted further than to be looked at: numbers are read with care, replies are of bounded size, and of texts for people only
//! the beginning is kept.

use std::collections::HashMap;
use std::error::Error as _;
use std::future::{Future, pending};
use std::time::Duration;

use paddock_longhorn::messages::{
    CountRequest, DiskMarkAsRemovedRequest, DiskRemoveRequest, FileSendRequest, FilesSyncRequest,
    PurgeStatus, RebuildStatus, RebuildingSetRequest, ReceiverLaunchRequest, Replica,
    ReplicaCreateRequest, ReplicaExpandRequest, ReplicaOpenRequest, ReplicaReply,
    ReplicaRevertRequest, ReplicaSnapshotRequest, RevisionCounterSetRequest, SizeRequest,
    SwitchRequest,
};
use paddock_longhorn::replica::replica_service_client::ReplicaServiceClient;
use paddock_longhorn::sync_agent::sync_agent_service_client::SyncAgentServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::closing::{self, Hurry};
use crate::longhorn::error::VolumeError;
use crate::longhorn::options::ReplicaAddress;
use crate::longhorn::text::shortened;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long most calls may take. Less in tests, whose replicas hang.
const CALL: Duration = Duration::from_secs(if cfg!(test) { 4 } else { 60 });

/// How long a call may take while all I/O waits for it, or somebody who wants to begin some.
pub(crate) const CALL_WHILE_FROZEN: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 8 });

/// How long one that failed to do what others have done may take to say whether it has: it is left anyway if it does not, and I/O may wait for it.
const CALL_AGAIN: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 2000 });

/// How long the transfer of a replica's files may take.
const TRANSFER: Duration = Duration::from_secs(24 * 3600);

/// In seconds: how long the replicas wait for each other while they transfer files.
const FILE_TIMEOUT: i32 = 30;

/// What a replica says of itself, as far as an engine needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Info {
    pub state: String,
    pub dirty: bool,
    pub rebuilding: bool,
    /// In bytes.
    pub size: u64,
    pub sector_size: i64,
    pub head: String,
    /// The files, from the head down.
    pub chain: Vec<String>,
    pub backing_file: String,
    pub disks: HashMap<String, Disk>,
    pub revision_counter: i64,
    pub counts_revisions: bool,
    /// Nanoseconds since 1970.
    pub modified: i64,
    /// Bytes that the head takes.
    pub head_bytes: i64,
    pub snapshots_left: i32,
    /// Snapshots that count, and the bytes that they take.
    pub snapshots_used: i32,
    pub snapshot_bytes: i64,
    pub unmap_marks_removed: bool,
}

/// A file of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub parent: String,
    pub removed: bool,
    pub user_created: bool,
    pub created: String,
    /// Bytes that it takes.
    pub size: i64,
    pub labels: HashMap<String, String>,
}

impl From<Replica> for Info {
    fn from(replica: Replica) -> Self {
        let disks = replica.disks.into_iter().map(|(name, disk)| {
            let disk = Disk {
                parent: disk.parent,
                removed: disk.removed,
                user_created: disk.user_created,
                created: disk.created,
                size: disk.size.parse().unwrap_or(0),
                labels: disk.labels,
            };
            (name, disk)
        });
        Self {
            state: shortened(replica.state),
            dirty: replica.dirty,
            rebuilding: replica.rebuilding,
            // Nothing has that size; it is found to be wrong where sizes are compared.
            size: replica.size.parse().unwrap_or(0),
            sector_size: replica.sector_size,
            head: replica.head,
            chain: replica.chain,
            backing_file: replica.backing_file,
            disks: disks.collect(),
            revision_counter: replica.revision_counter,
            counts_revisions: !replica.revision_counter_disabled,
            modified: replica.last_modify_time,
            head_bytes: replica.head_file_size,
            snapshots_left: replica.remain_snapshots,
            snapshots_used: replica.snapshot_count_usage,
            snapshot_bytes: replica.snapshot_size_usage,
            unmap_marks_removed: replica.unmap_mark_disk_chain_removed,
        }
    }
}

impl Info {
    /// Whether the file that is written was made on top of that one, then.
    pub(crate) fn is_on(&self, file: &str, created: &str) -> bool {
        let made = self.disks.get(&self.head);
        self.chain.get(1).is_some_and(|below| below == file)
            && made.is_some_and(|head| head.created == created)
    }

    /// Whether it has never held anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.head_bytes == 0 && self.backing_file.is_empty() && self.snapshots().next().is_none()
    }

    /// The files below the head that are the replica's own.
    pub(crate) fn snapshots(&self) -> impl Iterator<Item = (&String, &Disk)> {
        let own = |name: &String| *name != self.head && *name != self.backing_file;
        self.disks.iter().filter(move |(name, _)| own(name))
    }
}

/// A snapshot to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewSnapshot {
    pub name: String,
    pub user_created: bool,
    /// RFC 3339.
    pub created: String,
    pub labels: HashMap<String, String>,
}

/// A replica's control service and its sync agent.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub address: ReplicaAddress,
    volume: String,
    replica: ReplicaServiceClient<Channel>,
    sync_agent: SyncAgentServiceClient<Channel>,
    /// Shortens its deadlines once the volume is to be closed.
    hurry: Option<Hurry>,
}

fn channel(address: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(endpoint.connect_timeout(CONNECT).connect_lazy())
}

impl Peer {
    /// Connects when it is first asked something.
    ///
    /// # Errors
    /// When its address is none.
    pub(crate) fn new(address: &ReplicaAddress, volume: &str) -> Result<Self, VolumeError> {
        let channel = |text: String| {
            channel(&text).map_err(|error| VolumeError::Address {
                address: address.to_string(),
                problem: error.to_string(),
            })
        };
        Ok(Self {
            address: address.clone(),
            volume: volume.to_owned(),
            replica: ReplicaServiceClient::new(channel(address.to_string())?),
            sync_agent: SyncAgentServiceClient::new(channel(address.sync_agent())?),
            hurry: None,
        })
    }

    /// The same, whose calls but the last have shorter deadlines once the volume is to be closed.
    pub(crate) fn hurried_by(self, hurry: Hurry) -> Self {
        Self {
            hurry: Some(hurry),
            ..self
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // A name that is no metadata is no name that a replica could have.
        if let Ok(name) = self.volume.parse() {
            request
                .metadata_mut()
                .insert(paddock_longhorn::VOLUME_NAME, name);
        }
        request
    }

    async fn call<T>(
        &self,
        action: &'static str,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, VolumeError> {
        let hurry = self.hurry.clone();
        let hurried = async {
            match hurry {
                Some(hurry) => hurry.over().await,
                None => pending().await,
            }
        };
        let answer = tokio::select! {
            answer = tokio::time::timeout(deadline, call) => answer.map_err(|_| deadline),
            () = hurried => Err(closing::PATIENCE),
        };
        let status = match answer {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => status,
            Err(waited) => Status::unavailable(format!("no answer within {} s", waited.as_secs())),
        };
        let replica = self.address.clone();
        // What a replica says has no source here; what became of the connection has.
        let unheard = status.code() == Code::Unavailable || status.source().is_some();
        Err(match unheard {
            true => VolumeError::Unreachable {
                replica,
                action,
                problem: shortened(innermost(&status)),
            },
            false => VolumeError::Refused {
                replica,
                action,
                problem: shortened(status.message().to_owned()),
            },
        })
    }

    async fn replica(
        &self,
        action: &'static str,
        deadline: Duration,
        call: impl Future<Output = Result<Response<ReplicaReply>, Status>>,
    ) -> Result<Info, VolumeError> {
        let reply = self.call(action, deadline, call).await?;
        let replica = reply.replica.ok_or_else(|| VolumeError::Refused {
            replica: self.address.clone(),
            action,
            problem: "it answered nothing".to_owned(),
        })?;
        Ok(replica.into())
    }

    pub(crate) async fn get(&self) -> Result<Info, VolumeError> {
        self.get_within(CALL_WHILE_FROZEN).await
    }

    /// The same of one that others can do without.
    pub(super) async fn get_soon(&self) -> Result<Info, VolumeError> {
        self.get_within(CALL_AGAIN).await
    }

    async fn get_within(&self, deadline: Duration) -> Result<Info, VolumeError> {
        let mut client = self.replica.clone();
        let call = client.replica_get(self.request(()));
        self.replica("asking for its state", deadline, call).await
    }

    /// Makes the files of one that has none.
    pub(crate) async fn create(&self, size: u64) -> Result<Info, VolumeError> {
        let request = self.request(ReplicaCreateRequest {
            size: size.to_string(),
        });
        let mut client = self.replica.clone();
        let call = client.replica_create(request);
        self.replica("making its files", CALL, call).await
    }

    pub(crate) async fn open(&self, size: u64) -> Result<Info, VolumeError> {
        let request = self.request(ReplicaOpenRequest {
            is_upgrade: false,
            expected_backend_size: i64::try_from(size).unwrap_or(i64::MAX),
        });
        let mut client = self.replica.clone();
        let call = client.replica_open(request);
        self.replica("opening it", CALL, call).await
    }

    /// Not hurried: whoever closes a volume waits for this.
    pub(crate) async fn close(&self) -> Result<Info, VolumeError> {
        let patient = Self {
            hurry: None,
            ..self.clone()
        };
        let mut client = self.replica.clone();
        let call = client.replica_close(self.request(()));
        patient.replica("closing it", CALL_WHILE_FROZEN, call).await
    }

    pub(crate) async fn reload(&self) -> Result<Info, VolumeError> {
        let mut client = self.replica.clone();
        let call = client.replica_reload(self.request(()));
        self.replica("having it look at its files again", CALL, call)
            .await
    }

    pub(crate) async fn snapshot(&self, snapshot: &NewSnapshot) -> Result<Info, VolumeError> {
        let snapshot = snapshot.clone();
        let request = self.request(ReplicaSnapshotRequest {
            name: snapshot.name,
            user_created: snapshot.user_created,
            created: snapshot.created,
            labels: snapshot.labels,
        });
        let mut client = self.replica.clone();
        let call = client.replica_snapshot(request);
        self.replica("taking a snapshot", CALL_WHILE_FROZEN, call)
            .await
    }

    pub(crate) async fn revert(&self, file: &str, created: &str) -> Result<Info, VolumeError> {
        let request = self.request(ReplicaRevertRequest {
            name: file.to_owned(),
            created: created.to_owned(),
        });
        let mut client = self.replica.clone();
        let call = client.replica_revert(request);
        self.replica("going back to a snapshot", CALL, call).await
    }

    pub(crate) async fn expand(&self, size: u64) -> Result<Info, VolumeError> {
        let request = self.request(ReplicaExpandRequest {
            size: i64::try_from(size).unwrap_or(i64::MAX),
        });
        let mut client = self.replica.clone();
        let call = client.replica_expand(request);
        self.replica("growing it", CALL_WHILE_FROZEN, call).await
    }

    pub(crate) async fn set_rebuilding(&self, rebuilding: bool) -> Result<Info, VolumeError> {
        let request = self.request(RebuildingSetRequest { rebuilding });
        let mut client = self.replica.clone();
        let call = client.rebuilding_set(request);
        self.replica("marking it as complete or not", CALL_WHILE_FROZEN, call)
            .await
    }

    pub(crate) async fn set_revision_counter(&self, counter: i64) -> Result<Info, VolumeError> {
        let request = self.request(RevisionCounterSetRequest { counter });
        let mut client = self.replica.clone();
        let call = client.revision_counter_set(request);
        self.replica("setting its revision counter", CALL_WHILE_FROZEN, call)
            .await
    }

    pub(crate) async fn set_unmap_marks_removed(&self, enabled: bool) -> Result<Info, VolumeError> {
        let request = self.request(SwitchRequest { enabled });
        let mut client = self.replica.clone();
        let call = client.unmap_mark_disk_chain_removed_set(request);
        self.replica("telling it what an unmap does", CALL_WHILE_FROZEN, call)
            .await
    }

    pub(crate) async fn set_max_snapshots(&self, count: i32) -> Result<(), VolumeError> {
        let request = self.request(CountRequest { count });
        let mut client = self.replica.clone();
        let call = client.snapshot_max_count_set(request);
        self.tell("limiting its snapshots", call).await
    }

    pub(crate) async fn set_max_snapshot_bytes(&self, size: i64) -> Result<(), VolumeError> {
        let request = self.request(SizeRequest { size });
        let mut client = self.replica.clone();
        let call = client.snapshot_max_size_set(request);
        self.tell("limiting what its snapshots take", call).await
    }

    /// Tells it something that only newer replicas know of. The engine sees to it as well: the others do not miss it.
    async fn tell(
        &self,
        action: &'static str,
        call: impl Future<Output = Result<Response<ReplicaReply>, Status>>,
    ) -> Result<(), VolumeError> {
        let told = async {
            match call.await {
                Err(status) if status.code() == Code::Unimplemented => Ok(Response::new(())),
                answer => answer.map(|answer| answer.map(drop)),
            }
        };
        self.call(action, CALL_WHILE_FROZEN, told).await
    }

    pub(crate) async fn remove_disk(&self, file: &str) -> Result<Info, VolumeError> {
        let request = self.request(DiskRemoveRequest {
            name: file.to_owned(),
            force: true,
        });
        let mut client = self.replica.clone();
        let call = client.disk_remove(request);
        self.replica("removing a file", CALL_WHILE_FROZEN, call)
            .await
    }

    /// Has it remember that a snapshot is to go.
    pub(crate) async fn mark_as_removed(&self, file: &str) -> Result<Info, VolumeError> {
        let request = self.request(DiskMarkAsRemovedRequest {
            name: file.to_owned(),
        });
        let mut client = self.replica.clone();
        let call = client.disk_mark_as_removed(request);
        self.replica("marking a snapshot as removed", CALL_WHILE_FROZEN, call)
            .await
    }

    /// Has it begin to give back what snapshots have that are to go.
    pub(crate) async fn start_purge(&self) -> Result<(), VolumeError> {
        let mut client = self.sync_agent.clone();
        let call = client.snapshot_purge(self.request(()));
        self.call("purging its snapshots", CALL_WHILE_FROZEN, call)
            .await
    }

    pub(crate) async fn purge_status(&self) -> Result<PurgeStatus, VolumeError> {
        let mut client = self.sync_agent.clone();
        let call = client.snapshot_purge_status(self.request(()));
        let status = self
            .call("asking how far its purge is", CALL_WHILE_FROZEN, call)
            .await?;
        Ok(PurgeStatus {
            error: shortened(status.error),
            state: shortened(status.state),
            ..status
        })
    }

    /// Has this replica receive a file that another sends.
    pub(crate) async fn receive_from(
        &self,
        source: &Self,
        file: &str,
        name: &str,
    ) -> Result<(), VolumeError> {
        let request = self.request(ReceiverLaunchRequest {
            to_file_name: name.to_owned(),
        });
        let mut client = self.sync_agent.clone();
        let call = client.receiver_launch(request);
        let receiver = self
            .call("having it receive a file", CALL_WHILE_FROZEN, call)
            .await?;
        let request = source.request(FileSendRequest {
            from_file_name: file.to_owned(),
            host: self.address.bare_host().to_owned(),
            port: receiver.port,
            fast_sync: false,
            file_sync_http_client_timeout: FILE_TIMEOUT,
        });
        let mut client = source.sync_agent.clone();
        let call = client.file_send(request);
        source
            .call("having it send a file", CALL_WHILE_FROZEN, call)
            .await
    }

    /// Has this replica's sync agent forget what it did.
    pub(crate) async fn reset_sync_agent(&self) -> Result<(), VolumeError> {
        let mut client = self.sync_agent.clone();
        let call = client.reset(self.request(()));
        self.call("having its sync agent begin anew", CALL_WHILE_FROZEN, call)
            .await
    }

    /// Has this replica fetch files from others, each from any of them.
    pub(crate) async fn fetch(
        &self,
        mut files: FilesSyncRequest,
        sources: &[Self],
    ) -> Result<(), VolumeError> {
        files.to_host = self.address.bare_host().to_owned();
        files.file_sync_http_client_timeout = FILE_TIMEOUT;
        files.grpc_timeout_seconds = i64::try_from(TRANSFER.as_secs()).unwrap_or(i64::MAX);
        let urls = sources.iter().map(|source| source.address.url());
        files.from_address = urls.clone().next().unwrap_or_default();
        files.from_address_map = urls.map(|url| (url, true)).collect();
        let mut client = self.sync_agent.clone();
        let call = client.files_sync(self.request(files));
        self.call("transferring its files", TRANSFER, call).await
    }

    pub(crate) async fn rebuild_status(&self) -> Result<RebuildStatus, VolumeError> {
        let mut client = self.sync_agent.clone();
        let call = client.replica_rebuild_status(self.request(()));
        let status = self
            .call("asking for its progress", CALL_WHILE_FROZEN, call)
            .await?;
        Ok(RebuildStatus {
            error: shortened(status.error),
            state: shortened(status.state),
            ..status
        })
    }
}

/// What went wrong in the end: gRPC's own words for it are that something went wrong.
fn innermost(status: &Status) -> String {
    let mut error: &dyn std::error::Error = status;
    while let Some(source) = error.source() {
        error = source;
    }
    match error.is::<Status>() {
        true => status.message().to_owned(),
        false => error.to_string(),
    }
}
