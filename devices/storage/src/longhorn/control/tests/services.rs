//! The services of a replica in memory.

use std::sync::Arc;

use paddock_longhorn::messages as m;
use paddock_longhorn::replica::replica_service_server::ReplicaService;
use paddock_longhorn::sync_agent::sync_agent_service_server::SyncAgentService;
use parking_lot::Mutex;
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use super::fake::{Manner, State, now};

/// Letters of a replica that says more than anybody reads, and not more than gRPC has headers for.
const RANT: usize = 1000;

type Reply<T> = Result<Response<T>, Status>;

#[derive(Clone)]
pub(super) struct Services(pub(super) Arc<Mutex<State>>);

impl Services {
    /// Does what is asked for, in the manner that the test wants, and then tells how things are.
    async fn act<T: Send + 'static>(
        &self,
        call: &'static str,
        act: impl FnOnce(&mut State) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let manner = {
            let mut state = self.0.lock();
            state.calls.push(call);
            state.manners.get(call).copied()
        };
        let state = Arc::clone(&self.0);
        match manner {
            None => act(&mut state.lock()),
            Some(Manner::Refuse) => Err(Status::unknown("it will not")),
            #[cfg(feature = "controller")]
            Some(Manner::Unknown) => Err(Status::unimplemented("unknown method")),
            Some(Manner::Rant) => Err(Status::unknown("ü".repeat(RANT))),
            Some(Manner::Hang) => std::future::pending().await,
            Some(Manner::DoneLate(late)) => {
                let done = act(&mut state.lock());
                sleep(late).await;
                done
            }
            Some(Manner::DoesLate(late)) => {
                let doing = tokio::spawn(async move {
                    sleep(late).await;
                    act(&mut state.lock())
                });
                doing.await.unwrap_or_else(|_| Err(Status::aborted("")))
            }
        }
    }

    async fn change(
        &self,
        call: &'static str,
        change: impl FnOnce(&mut State) -> Result<(), Status> + Send + 'static,
    ) -> Reply<m::ReplicaReply> {
        let told = self.act(call, |state| {
            change(state)?;
            Ok(state.describe())
        });
        let replica = Some(told.await?);
        Ok(Response::new(m::ReplicaReply { replica }))
    }
}

fn unused<T>() -> Reply<T> {
    Err(Status::unimplemented("the engine does not ask for that"))
}

#[tonic::async_trait]
impl ReplicaService for Services {
    async fn replica_create(&self, _: Request<m::ReplicaCreateRequest>) -> Reply<m::ReplicaReply> {
        self.change("create", |_| Ok(())).await
    }

    async fn replica_delete(&self, _: Request<()>) -> Reply<()> {
        unused()
    }

    async fn replica_get(&self, _: Request<()>) -> Reply<m::ReplicaReply> {
        self.change("get", |_| Ok(())).await
    }

    async fn replica_open(&self, _: Request<m::ReplicaOpenRequest>) -> Reply<m::ReplicaReply> {
        let open = |state: &mut State| match std::mem::replace(&mut state.open, true) {
            true => Err(Status::unknown("it is open")),
            false => Ok(()),
        };
        self.change("open", open).await
    }

    async fn replica_close(&self, _: Request<()>) -> Reply<m::ReplicaReply> {
        let close = |state: &mut State| {
            state.open = false;
            state.dirty = false;
            Ok(())
        };
        self.change("close", close).await
    }

    async fn replica_reload(&self, _: Request<()>) -> Reply<m::ReplicaReply> {
        self.change("reload", |_| Ok(())).await
    }

    async fn replica_revert(
        &self,
        request: Request<m::ReplicaRevertRequest>,
    ) -> Reply<m::ReplicaReply> {
        let request = request.into_inner();
        let revert = move |state: &mut State| {
            let files = &mut state.chain;
            let place = files.iter().position(|(file, _)| *file == request.name);
            let place = place.ok_or_else(|| Status::not_found(request.name))?;
            files.drain(..place);
            state.push_head(&request.created);
            state.modified = now();
            // The only thing that the snapshots of these tests hold.
            state.bytes.fill(0);
            Ok(())
        };
        self.change("revert", revert).await
    }

    async fn replica_snapshot(
        &self,
        request: Request<m::ReplicaSnapshotRequest>,
    ) -> Reply<m::ReplicaReply> {
        let request = request.into_inner();
        let take = move |state: &mut State| {
            state.take_snapshot(&request.name, &request.created)?;
            if !request.user_created {
                state.automatic.push(state.chain[0].0.clone());
            }
            Ok(())
        };
        self.change("snapshot", take).await
    }

    async fn replica_expand(
        &self,
        request: Request<m::ReplicaExpandRequest>,
    ) -> Reply<m::ReplicaReply> {
        let size = request.into_inner().size;
        let grow = move |state: &mut State| {
            let size = usize::try_from(size).map_err(|e| Status::unknown(e.to_string()))?;
            state.take_snapshot(&format!("expand-{size}"), "")?;
            state.automatic.push(state.chain[0].0.clone());
            state.bytes.resize(size, 0);
            Ok(())
        };
        self.change("expand", grow).await
    }

    async fn disk_remove(&self, request: Request<m::DiskRemoveRequest>) -> Reply<m::ReplicaReply> {
        let name = request.into_inner().name;
        let remove = move |state: &mut State| {
            state.chain.retain(|(file, _)| *file != name);
            state.others.retain(|file| *file != name);
            Ok(())
        };
        self.change("remove", remove).await
    }

    async fn disk_replace(&self, _: Request<m::DiskReplaceRequest>) -> Reply<m::ReplicaReply> {
        unused()
    }

    async fn disk_prepare_remove(
        &self,
        _: Request<m::DiskPrepareRemoveRequest>,
    ) -> Reply<m::DiskPrepareRemoveReply> {
        unused()
    }

    async fn disk_mark_as_removed(
        &self,
        request: Request<m::DiskMarkAsRemovedRequest>,
    ) -> Reply<m::ReplicaReply> {
        let name = request.into_inner().name;
        let mark = move |state: &mut State| {
            state.marked.push(name);
            Ok(())
        };
        self.change("mark", mark).await
    }

    async fn rebuilding_set(
        &self,
        request: Request<m::RebuildingSetRequest>,
    ) -> Reply<m::ReplicaReply> {
        let rebuilding = request.into_inner().rebuilding;
        let set = move |state: &mut State| {
            if !state.open || state.rebuilding == rebuilding {
                return Err(Status::unknown("not in this state"));
            }
            state.rebuilding = rebuilding;
            Ok(())
        };
        self.change("set rebuilding", set).await
    }

    async fn revision_counter_set(
        &self,
        request: Request<m::RevisionCounterSetRequest>,
    ) -> Reply<m::ReplicaReply> {
        let counter = request.into_inner().counter;
        let set = move |state: &mut State| {
            state.counter = Some(counter);
            Ok(())
        };
        self.change("set counter", set).await
    }

    async fn unmap_mark_disk_chain_removed_set(
        &self,
        request: Request<m::SwitchRequest>,
    ) -> Reply<m::ReplicaReply> {
        let enabled = request.into_inner().enabled;
        let set = move |state: &mut State| {
            state.unmap_marks = enabled;
            Ok(())
        };
        self.change("set unmap marks", set).await
    }

    async fn snapshot_max_count_set(
        &self,
        request: Request<m::CountRequest>,
    ) -> Reply<m::ReplicaReply> {
        let count = request.into_inner().count;
        let set = move |state: &mut State| {
            state.max_snapshots = count;
            Ok(())
        };
        self.change("set max snapshots", set).await
    }

    async fn snapshot_max_size_set(&self, _: Request<m::SizeRequest>) -> Reply<m::ReplicaReply> {
        self.change("set max bytes", |_| Ok(())).await
    }
}

#[tonic::async_trait]
impl SyncAgentService for Services {
    async fn file_remove(&self, _: Request<m::FileRemoveRequest>) -> Reply<()> {
        unused()
    }

    async fn file_rename(&self, _: Request<m::FileRenameRequest>) -> Reply<()> {
        unused()
    }

    async fn file_send(&self, _: Request<m::FileSendRequest>) -> Reply<()> {
        self.act("send", |_| Ok(())).await.map(Response::new)
    }

    /// It gets the names of the files, as far as these tests care.
    async fn files_sync(&self, request: Request<m::FilesSyncRequest>) -> Reply<()> {
        let files = request.into_inner().sync_file_info_list;
        let fetch = move |state: &mut State| {
            for file in files {
                let name = file.to_file_name;
                let known = state.chain.iter().any(|(have, _)| *have == name);
                if !known && !name.ends_with(".meta") {
                    state.chain.push((name, String::new()));
                }
            }
            Ok(())
        };
        self.act("fetch", fetch).await.map(Response::new)
    }

    async fn receiver_launch(
        &self,
        _: Request<m::ReceiverLaunchRequest>,
    ) -> Reply<m::ReceiverLaunchReply> {
        let launch = |_: &mut State| Ok(m::ReceiverLaunchReply { port: 1 });
        self.act("receive", launch).await.map(Response::new)
    }

    async fn reset(&self, _: Request<()>) -> Reply<()> {
        self.act("reset", |_| Ok(())).await.map(Response::new)
    }

    /// It removes what is to go now, and not what is marked later.
    async fn snapshot_purge(&self, _: Request<()>) -> Reply<()> {
        let purge = self.act("purge", State::begin_purge);
        purge.await.map(Response::new)
    }

    async fn snapshot_purge_status(&self, _: Request<()>) -> Reply<m::PurgeStatus> {
        let told = |state: &mut State| {
            Ok(m::PurgeStatus {
                is_purging: state.purging.is_some(),
                error: state.says.clone().unwrap_or_default(),
                progress: 50,
                ..m::PurgeStatus::default()
            })
        };
        self.act("purge status", told).await.map(Response::new)
    }

    async fn replica_rebuild_status(&self, _: Request<()>) -> Reply<m::RebuildStatus> {
        let told = |state: &mut State| {
            let fetched = state.calls.contains(&"fetch");
            Ok(m::RebuildStatus {
                state: if fetched { "complete" } else { "initial" }.to_owned(),
                ..m::RebuildStatus::default()
            })
        };
        self.act("rebuild status", told).await.map(Response::new)
    }

    async fn snapshot_hash_cancel(&self, _: Request<m::NameMessage>) -> Reply<()> {
        unused()
    }

    async fn snapshot_hash_lock_state(&self, _: Request<()>) -> Reply<m::LockState> {
        unused()
    }
}
