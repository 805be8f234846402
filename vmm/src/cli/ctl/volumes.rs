//! Disks that are replicated volumes: their replicas and snapshots, listed, added, removed.

use hyper::Method;
use paddock_api::volume::{Replica, ReplicaRequest, Snapshot, SnapshotRequest, SnapshotTaken};
use serde_json::json;

use super::CtlError;
use super::args::{ReplicasCommand, SnapshotsCommand};
use super::client::Call;
use super::session::Session;
use super::{jobs, render};

/// `paddock ctl replicas`
pub async fn replicas(session: &Session, command: &ReplicasCommand) -> Result<(), CtlError> {
    let list = |page: &mut _, replicas: &Vec<Replica>| render::replicas(page, replicas);
    match command {
        ReplicasCommand::List(args) => {
            let call = Call::get(&["vm", "disks", &args.disk, "replicas"]);
            session.show(call, list).await
        }
        ReplicasCommand::Add(args) => {
            let request = ReplicaRequest {
                address: args.address.clone(),
            };
            let path = ["vm", "disks", &args.volume.disk, "replicas"];
            let call = Call::new(Method::POST, &path).body(json!(request).to_string());
            let answer = session.client.call(call).await?;
            jobs::finish(session, answer, args.wait.into()).await
        }
        ReplicasCommand::Remove(args) => {
            let path = ["vm", "disks", &args.volume.disk, "replicas", &args.address];
            session.show(Call::new(Method::DELETE, &path), list).await
        }
    }
}

/// `paddock ctl snapshots`
pub async fn snapshots(session: &Session, command: &SnapshotsCommand) -> Result<(), CtlError> {
    match command {
        SnapshotsCommand::List(args) => {
            let call = Call::get(&["vm", "disks", &args.disk, "snapshots"]);
            let list = |page: &mut _, snapshots: &Vec<Snapshot>| render::snapshots(page, snapshots);
            session.show(call, list).await
        }
        SnapshotsCommand::Create(args) => {
            let request = SnapshotRequest {
                name: args.name.clone(),
                labels: args.labels.iter().cloned().collect(),
            };
            let path = ["vm", "disks", &args.volume.disk, "snapshots"];
            let call = Call::new(Method::POST, &path).body(json!(request).to_string());
            let taken = |page: &mut _, taken: &SnapshotTaken| render::snapshot_taken(page, taken);
            session.show(call, taken).await
        }
        SnapshotsCommand::Remove(args) => {
            let path = ["vm", "disks", &args.volume.disk, "snapshots", &args.name];
            let answer = session
                .client
                .call(Call::new(Method::DELETE, &path))
                .await?;
            jobs::finish(session, answer, args.wait.into()).await
        }
    }
}
