//! `ReplicaService`.

use std::sync::Arc;

use paddock_longhorn::messages as m;
use paddock_longhorn::replica::replica_service_server::ReplicaService;
use tonic::{Request, Response, Status};

use super::blocking;
use crate::error::{Error, Result};
use crate::volume::change::Snapshot;
use crate::volume::remove::Step;
use crate::volume::replica::Replica;
use crate::volume::state::Disk;

/// The service of a replica.
#[derive(Debug, Clone)]
pub struct ReplicaControl {
    replica: Arc<Replica>,
}

type Reply = std::result::Result<Response<m::ReplicaReply>, Status>;

/// A layer as it is told.
fn describe_disk(disk: &Disk) -> m::DiskInfo {
    m::DiskInfo {
        name: disk.meta.name.clone(),
        parent: disk.meta.parent.clone(),
        children: disk
            .children
            .iter()
            .map(|child| (child.clone(), true))
            .collect(),
        removed: disk.meta.removed,
        user_created: disk.meta.user_created,
        created: disk.meta.created.clone(),
        size: disk.space.to_string(),
        labels: disk
            .meta
            .labels
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
    }
}

/// A replica as it is told.
fn describe(replica: &Replica) -> m::Replica {
    let status = replica.status();
    let mut told = m::Replica {
        dirty: status.meta.dirty,
        rebuilding: status.meta.rebuilding,
        head: status.meta.head,
        parent: status.meta.parent,
        size: status.meta.size.to_string(),
        sector_size: status.meta.sector_size,
        backing_file: status.meta.backing_file_path,
        state: status.state.name().to_owned(),
        ..m::Replica::default()
    };
    let Some(open) = status.open else {
        return told;
    };
    told.chain = open.chain;
    told.snapshot_count_total = i32::try_from(open.disks.len()).unwrap_or(i32::MAX);
    told.disks = open
        .disks
        .iter()
        .map(|(name, disk)| (name.clone(), describe_disk(disk)))
        .collect();
    told.remain_snapshots = open.remaining;
    told.snapshot_count_usage = open.snapshots;
    told.snapshot_size_usage = open.snapshot_bytes;
    told.revision_counter_disabled = open.revision.is_none();
    told.revision_counter = open.revision.unwrap_or(0);
    told.last_modify_time = open.modified;
    told.head_file_size = open.head_bytes;
    told.unmap_mark_disk_chain_removed = open.unmap_marks;
    told
}

impl ReplicaControl {
    /// Serves a replica.
    #[must_use]
    pub fn new(replica: Arc<Replica>) -> Self {
        Self { replica }
    }

    /// Does something, and tells the replica as it is then.
    async fn change(
        &self,
        what: &'static str,
        change: impl FnOnce(&Replica) -> Result<()> + Send + 'static,
    ) -> Reply {
        let replica = Arc::clone(&self.replica);
        let result = blocking(move || {
            change(&replica)?;
            Ok(describe(&replica))
        });
        match result.await {
            Ok(replica) => {
                tracing::info!(call = what, state = replica.state, "done");
                let replica = Some(replica);
                Ok(Response::new(m::ReplicaReply { replica }))
            }
            Err(status) => {
                tracing::warn!(call = what, error = status.message(), "refused");
                Err(status)
            }
        }
    }
}

/// The error of an expansion has a form that engines parse.
fn expansion_error(status: &Status) -> Status {
    let text = serde_json::json!({
        "code": "FunctionFailedRollbackSucceeded",
        "message": status.message(),
        "rollbackMessage": "",
    });
    Status::internal(text.to_string())
}

fn check_named(name: &str, created: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::refused("cannot accept empty snapshot name"));
    }
    if created.is_empty() {
        return Err(Error::refused("need to specific created time"));
    }
    Ok(())
}

fn action(step: Step) -> m::PrepareRemoveAction {
    let (action, source, target) = match step {
        Step::Coalesce { source, target } => ("coalesce", source, target),
        Step::Replace { source, target } => ("replace", source, target),
        Step::Remove { source } => ("remove", source, String::new()),
        Step::Prune { source, target } => ("prune", source, target),
    };
    m::PrepareRemoveAction {
        action: action.to_owned(),
        source,
        target,
    }
}

#[tonic::async_trait]
impl ReplicaService for ReplicaControl {
    async fn replica_create(&self, request: Request<m::ReplicaCreateRequest>) -> Reply {
        let size = request.into_inner().size;
        self.change("create", move |replica| {
            let size = match size.as_str() {
                "" => 0,
                size => size
                    .parse()
                    .map_err(|_| Error::refused(format!("{size:?} is not a size in bytes")))?,
            };
            replica.create(size)
        })
        .await
    }

    async fn replica_delete(&self, _: Request<()>) -> std::result::Result<Response<()>, Status> {
        self.change("delete", Replica::delete)
            .await
            .map(|_| Response::new(()))
    }

    async fn replica_get(&self, _: Request<()>) -> Reply {
        let replica = Arc::clone(&self.replica);
        let replica = blocking(move || Ok(Some(describe(&replica)))).await?;
        Ok(Response::new(m::ReplicaReply { replica }))
    }

    async fn replica_open(&self, _: Request<m::ReplicaOpenRequest>) -> Reply {
        self.change("open", Replica::open).await
    }

    async fn replica_close(&self, _: Request<()>) -> Reply {
        self.change("close", Replica::close).await
    }

    async fn replica_reload(&self, _: Request<()>) -> Reply {
        self.change("reload", Replica::reload).await
    }

    async fn replica_revert(&self, request: Request<m::ReplicaRevertRequest>) -> Reply {
        let request = request.into_inner();
        self.change("revert", move |replica| {
            check_named(&request.name, &request.created)?;
            replica.revert(&request.name, &request.created)
        })
        .await
    }

    async fn replica_snapshot(&self, request: Request<m::ReplicaSnapshotRequest>) -> Reply {
        let request = request.into_inner();
        self.change("snapshot", move |replica| {
            check_named(&request.name, &request.created)?;
            let labels = (!request.labels.is_empty()).then(|| request.labels.into_iter().collect());
            replica.snapshot(&Snapshot {
                name: request.name,
                user_created: request.user_created,
                created: request.created,
                labels,
            })
        })
        .await
    }

    async fn replica_expand(&self, request: Request<m::ReplicaExpandRequest>) -> Reply {
        let size = request.into_inner().size;
        let reply = self
            .change("expand", move |replica| replica.expand(size))
            .await;
        reply.map_err(|status| expansion_error(&status))
    }

    async fn disk_remove(&self, request: Request<m::DiskRemoveRequest>) -> Reply {
        let request = request.into_inner();
        self.change("remove disk", move |replica| {
            replica.remove_disk(&request.name, request.force)
        })
        .await
    }

    async fn disk_replace(&self, request: Request<m::DiskReplaceRequest>) -> Reply {
        let request = request.into_inner();
        self.change("replace disk", move |replica| {
            replica.replace_disk(&request.target, &request.source)
        })
        .await
    }

    async fn disk_prepare_remove(
        &self,
        request: Request<m::DiskPrepareRemoveRequest>,
    ) -> std::result::Result<Response<m::DiskPrepareRemoveReply>, Status> {
        let replica = Arc::clone(&self.replica);
        let steps = blocking(move || replica.prepare_remove(&request.into_inner().name)).await?;
        let operations = steps.into_iter().map(action).collect();
        Ok(Response::new(m::DiskPrepareRemoveReply { operations }))
    }

    async fn disk_mark_as_removed(&self, request: Request<m::DiskMarkAsRemovedRequest>) -> Reply {
        let name = request.into_inner().name;
        self.change("mark disk as removed", move |replica| {
            replica.mark_as_removed(&name)
        })
        .await
    }

    async fn rebuilding_set(&self, request: Request<m::RebuildingSetRequest>) -> Reply {
        let rebuilding = request.into_inner().rebuilding;
        self.change("set rebuilding", move |replica| {
            replica.set_rebuilding(rebuilding)
        })
        .await
    }

    async fn revision_counter_set(&self, request: Request<m::RevisionCounterSetRequest>) -> Reply {
        let counter = request.into_inner().counter;
        self.change("set revision counter", move |replica| {
            replica.set_revision(counter)
        })
        .await
    }

    async fn unmap_mark_disk_chain_removed_set(&self, request: Request<m::SwitchRequest>) -> Reply {
        let enabled = request.into_inner().enabled;
        self.change("set unmap-mark-disk-chain-removed", move |replica| {
            replica.set_unmap_marks(enabled)
        })
        .await
    }

    async fn snapshot_max_count_set(&self, request: Request<m::CountRequest>) -> Reply {
        let count = request.into_inner().count;
        self.change("set snapshot-max-count", move |replica| {
            replica.set_most_snapshots(count);
            Ok(())
        })
        .await
    }

    async fn snapshot_max_size_set(&self, request: Request<m::SizeRequest>) -> Reply {
        let size = request.into_inner().size;
        self.change("set snapshot-max-size", move |replica| {
            replica.set_most_snapshot_bytes(size);
            Ok(())
        })
        .await
    }
}
