//! The calls.

use std::future::Future;
use std::sync::Arc;

use paddock_longhorn::controller::controller_service_server::ControllerService;
use paddock_longhorn::messages as m;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::describe::{self, address, status};
use super::meter::Meter;
use crate::longhorn::control::{Control, time};
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::Mode;
use crate::longhorn::options::ReplicaAddress;

type Reply<T> = Result<Response<T>, Status>;

/// What `frontend start` may name: the VM of this process is all that there is.
const FRONTEND: &str = "vm";

/// Changes under way at once, of all clients. They are made one after the other anyway.
const DETACHED: usize = 64;

/// How the last attempt to make the volume larger went.
#[derive(Debug, Default)]
struct Expansion {
    running: bool,
    /// Why it failed, and when.
    failure: Option<(String, String)>,
}

/// The controller service of a volume.
pub(super) struct Service {
    control: Arc<Control>,
    meter: Arc<Meter>,
    expansion: Arc<Mutex<Expansion>>,
    /// For calls that go on without their client.
    places: Arc<Semaphore>,
}

impl Service {
    pub(super) fn new(control: Arc<Control>, meter: Arc<Meter>) -> Self {
        Self {
            control,
            meter,
            expansion: Arc::default(),
            places: Arc::new(Semaphore::new(DETACHED)),
        }
    }

    /// Does something to its end, also where the client goes away meanwhile.
    async fn detached<T, F>(&self, call: impl FnOnce(Arc<Control>) -> F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, VolumeError>> + Send + 'static,
    {
        // A client that goes away makes room on its connection, and none here.
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| {
            let text =
                format!("{DETACHED} changes of this volume are under way; wait for one to end");
            Status::resource_exhausted(text)
        })?;
        let call = call(Arc::clone(&self.control));
        let done = tokio::spawn(async move {
            let done = call.await;
            drop(place);
            done
        });
        let done = done.await;
        done.map_err(|error| Status::internal(error.to_string()))?
            .map_err(status)
    }

    fn volume(&self) -> m::Volume {
        let control = &self.control;
        let settings = control.settings();
        let expansion = self.expansion.lock();
        let (error, failed_at) = expansion.failure.clone().unwrap_or_default();
        let down = settings.withheld || control.is_closed();
        m::Volume {
            name: control.options.name.clone(),
            size: i64::try_from(control.shared.size()).unwrap_or(i64::MAX),
            replica_count: i32::try_from(self.replicas().len()).unwrap_or(i32::MAX),
            endpoint: String::new(),
            frontend: String::new(),
            frontend_state: if down { "down" } else { "up" }.to_owned(),
            is_expanding: expansion.running,
            last_expansion_error: error,
            last_expansion_failed_at: failed_at,
            unmap_mark_snap_chain_removed: settings.unmap_marks_removed,
            snapshot_max_count: settings.max_snapshots,
            snapshot_max_size: settings.max_snapshot_bytes,
        }
    }

    /// The replicas, of which a volume that was closed has none.
    fn replicas(&self) -> Vec<m::ControllerReplica> {
        if self.control.is_closed() {
            return Vec::new();
        }
        let replicas = self.control.replicas();
        replicas.iter().map(describe::replica).collect()
    }

    fn replica(&self, address: &ReplicaAddress) -> Reply<m::ControllerReplica> {
        let replicas = self.control.replicas();
        let found = replicas.iter().find(|replica| replica.address == *address);
        let found = found.ok_or_else(|| {
            Status::not_found(format!(
                "volume {} has no replica {address}",
                self.control.options.name
            ))
        })?;
        Ok(Response::new(describe::replica(found)))
    }

    /// What a call that changed the volume answers.
    fn changed(&self) -> Reply<m::Volume> {
        Ok(Response::new(self.volume()))
    }
}

/// Makes the volume larger, and remembers how that went.
async fn expand(
    control: Arc<Control>,
    expansion: Arc<Mutex<Expansion>>,
    size: i64,
) -> Result<(), VolumeError> {
    {
        let mut expansion = expansion.lock();
        if expansion.running {
            return Err(VolumeError::State {
                volume: control.options.name.clone(),
                problem: "it is being made larger already; wait for that".to_owned(),
            });
        }
        *expansion = Expansion {
            running: true,
            failure: None,
        };
    }
    let expanded = match u64::try_from(size) {
        Ok(size) => control.expand(size).await,
        Err(_) => Err(VolumeError::Options {
            problem: format!("{size} bytes: a size is a multiple of 4096"),
        }),
    };
    let failure = expanded
        .as_ref()
        .err()
        .map(|error| (error.to_string(), time::now()));
    *expansion.lock() = Expansion {
        running: false,
        failure,
    };
    expanded
}

#[tonic::async_trait]
impl ControllerService for Service {
    async fn volume_get(&self, _: Request<()>) -> Reply<m::Volume> {
        self.changed()
    }

    /// Longhorn's engine may run without a volume. This one is there because its volume is.
    async fn volume_start(&self, _: Request<m::VolumeStartRequest>) -> Reply<m::Volume> {
        if self.control.is_closed() {
            return Err(Status::failed_precondition(format!(
                "volume {} was closed; it is opened by attaching it to a VM again",
                self.control.options.name
            )));
        }
        self.changed()
    }

    async fn volume_shutdown(&self, _: Request<()>) -> Reply<m::Volume> {
        self.detached(|control| async move {
            match control.is_closed() {
                true => Ok(()),
                false => control.shut_down().await,
            }
        })
        .await?;
        self.changed()
    }

    /// As with Longhorn's engine, a file system is frozen only if this host has mounted it from the volume; a VM's it never has.
    async fn volume_snapshot(
        &self,
        request: Request<m::VolumeSnapshotRequest>,
    ) -> Reply<m::NameMessage> {
        let request = request.into_inner();
        let name = Some(request.name).filter(|name| !name.is_empty());
        let taken = self
            .detached(|control| async move { control.snapshot(name, request.labels).await })
            .await?;
        Ok(Response::new(m::NameMessage { name: taken.name }))
    }

    async fn volume_revert(&self, request: Request<m::NameMessage>) -> Reply<m::Volume> {
        let name = request.into_inner().name;
        self.detached(|control| async move { control.revert(&name).await })
            .await?;
        self.changed()
    }

    async fn volume_expand(&self, request: Request<m::SizeRequest>) -> Reply<m::Volume> {
        let size = request.into_inner().size;
        let expansion = Arc::clone(&self.expansion);
        self.detached(|control| expand(control, expansion, size))
            .await?;
        self.changed()
    }

    async fn volume_frontend_start(&self, request: Request<m::NameMessage>) -> Reply<m::Volume> {
        let name = request.into_inner().name;
        if name != FRONTEND {
            return Err(Status::invalid_argument(format!(
                "there is no frontend {name:?}: the volume is used by a VM and offered to nobody else; start \"{FRONTEND}\""
            )));
        }
        self.detached(|control| async move { control.withhold(false).await })
            .await?;
        self.changed()
    }

    async fn volume_frontend_shutdown(&self, _: Request<()>) -> Reply<m::Volume> {
        self.detached(|control| async move { control.withhold(true).await })
            .await?;
        self.changed()
    }

    async fn volume_unmap_mark_snap_chain_removed_set(
        &self,
        request: Request<m::SwitchRequest>,
    ) -> Reply<m::Volume> {
        let enabled = request.into_inner().enabled;
        self.detached(|control| async move { control.set_unmap_marks_removed(enabled).await })
            .await?;
        self.changed()
    }

    async fn volume_snapshot_max_count_set(
        &self,
        request: Request<m::CountRequest>,
    ) -> Reply<m::Volume> {
        let count = request.into_inner().count;
        self.detached(|control| async move { control.set_max_snapshots(count).await })
            .await?;
        self.changed()
    }

    async fn volume_snapshot_max_size_set(
        &self,
        request: Request<m::SizeRequest>,
    ) -> Reply<m::Volume> {
        let size = request.into_inner().size;
        self.detached(|control| async move { control.set_max_snapshot_bytes(size).await })
            .await?;
        self.changed()
    }

    async fn replica_list(&self, _: Request<()>) -> Reply<m::ReplicaListReply> {
        Ok(Response::new(m::ReplicaListReply {
            replicas: self.replicas(),
        }))
    }

    async fn replica_get(
        &self,
        request: Request<m::ReplicaAddress>,
    ) -> Reply<m::ControllerReplica> {
        self.replica(&address(&request.into_inner().address)?)
    }

    async fn controller_replica_create(
        &self,
        request: Request<m::ControllerReplicaCreateRequest>,
    ) -> Reply<m::ControllerReplica> {
        let request = request.into_inner();
        let address = address(&request.address)?;
        if request.mode != i32::from(m::ReplicaMode::Wo) || !request.snapshot_required {
            return Err(Status::invalid_argument(format!(
                "replica {address}: one that is added is in mode WO and has a snapshot in common with the others, until it is rebuilt"
            )));
        }
        if self.replica(&address).is_ok() {
            let text = format!("replica {address} is one of the volume's; remove it first");
            return Err(Status::already_exists(text));
        }
        let new = address.clone();
        self.detached(|control| async move { control.create_replica(&new, false).await })
            .await?;
        self.replica(&address)
    }

    /// Of a replica that is none of the volume's nothing is left to be removed.
    async fn replica_delete(&self, request: Request<m::ReplicaAddress>) -> Reply<()> {
        let address = address(&request.into_inner().address)?;
        self.detached(|control| async move {
            match control.remove_replica(&address).await {
                Err(VolumeError::NotFound { .. }) => Ok(()),
                removed => removed,
            }
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn replica_update(
        &self,
        request: Request<m::ControllerReplica>,
    ) -> Reply<m::ControllerReplica> {
        let request = request.into_inner();
        let named = request.address.unwrap_or_default();
        let address = address(&named.address)?;
        let present = self.replica(&address)?;
        let failed = i32::from(describe::mode(Mode::Failed));
        if request.mode == failed {
            let failing = address.clone();
            self.detached(|control| async move { control.fail_replica(&failing).await })
                .await?;
        } else if request.mode != present.get_ref().mode {
            return Err(Status::failed_precondition(format!(
                "replica {address} can be set to ERR only; a rebuild, once it is verified, makes it RW"
            )));
        }
        self.replica(&address)
    }

    async fn replica_prepare_rebuild(
        &self,
        request: Request<m::ReplicaAddress>,
    ) -> Reply<m::ReplicaPrepareRebuildReply> {
        let address = address(&request.into_inner().address)?;
        let rebuilt = address.clone();
        let prepared = self
            .detached(|control| async move { control.prepare_rebuild(&rebuilt).await })
            .await?;
        Ok(Response::new(m::ReplicaPrepareRebuildReply {
            replica: Some(self.replica(&address)?.into_inner()),
            sync_file_info_list: prepared.files,
        }))
    }

    async fn replica_verify_rebuild(
        &self,
        request: Request<m::ReplicaAddress>,
    ) -> Reply<m::ControllerReplica> {
        let address = address(&request.into_inner().address)?;
        let complete = i32::from(describe::mode(Mode::ReadWrite));
        if self.replica(&address)?.get_ref().mode != complete {
            let rebuilt = address.clone();
            self.detached(|control| async move { control.verify_rebuild(&rebuilt).await })
                .await?;
        }
        self.replica(&address)
    }

    async fn replica_rebuild_concurrent_sync_limit_set(
        &self,
        request: Request<m::CountRequest>,
    ) -> Reply<()> {
        let count = request.into_inner().count;
        self.control.set_sync_sources(count).map_err(status)?;
        Ok(Response::new(()))
    }

    async fn replica_rebuild_concurrent_sync_limit_get(
        &self,
        _: Request<()>,
    ) -> Reply<m::CountRequest> {
        let count = self.control.settings().sync_sources;
        Ok(Response::new(m::CountRequest {
            count: i32::try_from(count).unwrap_or(i32::MAX),
        }))
    }

    /// There is no list of single requests; what is logged is what they add up to, and what became of each replica.
    async fn journal_list(&self, _: Request<m::JournalListRequest>) -> Reply<()> {
        let volume = &self.control.options.name;
        let totals = self.control.shared.totals();
        tracing::info!(volume, reads = ?totals.reads, writes = ?totals.writes, "what was done so far");
        for replica in self.control.replicas() {
            let failure = replica.failure.map(|failure| failure.reason);
            tracing::info!(volume, replica = %replica.address, mode = ?replica.mode, failure, "a replica");
        }
        Ok(Response::new(()))
    }

    async fn version_detail_get(&self, _: Request<()>) -> Reply<m::VersionDetailReply> {
        Ok(Response::new(m::VersionDetailReply {
            version: Some(describe::version()),
        }))
    }

    async fn metrics_get(&self, _: Request<()>) -> Reply<m::MetricsReply> {
        Ok(Response::new(m::MetricsReply {
            metrics: Some(self.meter.last()),
        }))
    }
}
