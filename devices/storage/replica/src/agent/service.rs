//! `SyncAgentService`: what a rebuild and a purge need. Calls for backups, clones and checksums are not implemented,
//! which clients are told.

use std::net::SocketAddr;
use std::sync::Arc;

use paddock_longhorn::messages as m;
use paddock_longhorn::sync_agent::sync_agent_service_server::SyncAgentService;
use tonic::{Request, Response, Status};

use super::receive::receive;
use super::send::send;
use super::{Agent, HTTP_DEADLINE, Job, http_deadline};
use crate::control::{blocking, status};
use crate::error::{Error, Result};
use crate::files::names;
use crate::volume::replica::Replica;

type Reply<T> = std::result::Result<Response<T>, Status>;

/// Refuses what is in use, and what is none of a replica's files.
fn check_free(replica: &Replica, name: &str) -> Result<()> {
    let bare = [names::META, names::CHECKSUM]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(name);
    if !names::is_plain(bare) || !bare.starts_with("volume-") {
        return Err(Error::refused(format!("{name:?} is not a file of a layer")));
    }
    let used = replica
        .chain()
        .is_some_and(|chain| chain.layers.iter().any(|layer| layer.name() == bare));
    match used {
        true => Err(Error::refused(format!("{bare} is a layer that is in use"))),
        false => Ok(()),
    }
}

async fn resolve(host: &str, port: i32) -> std::result::Result<SocketAddr, Status> {
    let port =
        u16::try_from(port).map_err(|_| Status::invalid_argument("there is no such port"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::net::lookup_host((host, port)).await;
    let mut found =
        found.map_err(|error| Status::unknown(format!("cannot find {host}: {error}")))?;
    found
        .next()
        .ok_or_else(|| Status::unknown(format!("{host} has no address")))
}

#[tonic::async_trait]
impl SyncAgentService for Agent {
    async fn file_remove(&self, request: Request<m::FileRemoveRequest>) -> Reply<()> {
        let replica = Arc::clone(&self.shared.replica);
        let removed = blocking(move || {
            let name = request.into_inner().file_name;
            check_free(&replica, &name)?;
            let directory = replica.directory()?;
            directory.stat(&name)?;
            directory.remove(&name)?;
            directory.sync()
        });
        removed.await.map(Response::new)
    }

    async fn file_rename(&self, request: Request<m::FileRenameRequest>) -> Reply<()> {
        let replica = Arc::clone(&self.shared.replica);
        let renamed = blocking(move || {
            let request = request.into_inner();
            check_free(&replica, &request.old_file_name)?;
            check_free(&replica, &request.new_file_name)?;
            let directory = replica.directory()?;
            directory.rename(&request.old_file_name, &request.new_file_name)?;
            directory.sync()
        });
        renamed.await.map(Response::new)
    }

    async fn file_send(&self, request: Request<m::FileSendRequest>) -> Reply<()> {
        let request = request.into_inner();
        let address = resolve(&request.host, request.port).await?;
        let patience = http_deadline(request.file_sync_http_client_timeout);
        let name = request.from_file_name;
        tracing::info!(file = %name, to = %address, "sending");
        let sent = send(
            Arc::clone(&self.shared.replica),
            name.clone(),
            address,
            patience,
        )
        .await;
        match sent {
            Ok(()) => Ok(Response::new(())),
            Err(error) => {
                tracing::warn!(file = %name, to = %address, %error, "a file was not sent");
                Err(Status::unknown(format!(
                    "failed to sync content for source file {name}: {error}"
                )))
            }
        }
    }

    async fn files_sync(&self, request: Request<m::FilesSyncRequest>) -> Reply<()> {
        let result = self.shared.sync_files(request.into_inner()).await;
        if let Err(error) = &result {
            tracing::warn!(error = error.text(), "the transfer of a rebuild failed");
        }
        result.map(Response::new).map_err(|error| status(&error))
    }

    async fn receiver_launch(
        &self,
        request: Request<m::ReceiverLaunchRequest>,
    ) -> Reply<m::ReceiverLaunchReply> {
        let replica = Arc::clone(&self.shared.replica);
        let directory = blocking(move || replica.directory()).await?;
        let name = request.into_inner().to_file_name;
        let port = self.shared.port().map_err(|error| status(&error))?;
        let number = port.number;
        tracing::info!(file = %name, port = number, "receiving");
        receive(directory, name, port, None, HTTP_DEADLINE)
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(m::ReceiverLaunchReply {
            port: number.into(),
        }))
    }

    async fn reset(&self, _: Request<()>) -> Reply<()> {
        let mut work = self.shared.work.lock();
        if work.rebuild.running || work.purge.running {
            return Err(Status::unknown(
                "replica is rebuilding or purging snapshots, cannot reset",
            ));
        }
        work.rebuild = Job::default();
        work.purge = Job::default();
        work.sources.clear();
        Ok(Response::new(()))
    }

    async fn snapshot_purge(&self, _: Request<()>) -> Reply<()> {
        self.shared
            .purge()
            .map(Response::new)
            .map_err(|error| status(&error))
    }

    async fn snapshot_purge_status(&self, _: Request<()>) -> Reply<m::PurgeStatus> {
        let purge = self.shared.work.lock().purge.clone();
        Ok(Response::new(m::PurgeStatus {
            is_purging: purge.running,
            progress: purge.per_cent(),
            state: purge.state.to_owned(),
            error: purge.error,
        }))
    }

    async fn replica_rebuild_status(&self, _: Request<()>) -> Reply<m::RebuildStatus> {
        let work = self.shared.work.lock();
        let rebuild = work.rebuild.clone();
        Ok(Response::new(m::RebuildStatus {
            is_rebuilding: rebuild.running,
            progress: rebuild.per_cent(),
            state: rebuild.state.to_owned(),
            error: rebuild.error,
            from_replica_address: work.sources.first().cloned().unwrap_or_default(),
            from_replica_address_list: work.sources.clone(),
        }))
    }

    /// Longhorn's tools cancel the making of a snapshot's checksum before they remove it. Here none is ever made.
    async fn snapshot_hash_cancel(&self, _: Request<m::NameMessage>) -> Reply<()> {
        Ok(Response::new(()))
    }

    async fn snapshot_hash_lock_state(&self, _: Request<()>) -> Reply<m::LockState> {
        Ok(Response::new(m::LockState { is_locked: false }))
    }
}
