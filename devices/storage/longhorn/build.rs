//! Makes clients and servers of Longhorn's three gRPC services from the lists below, by which no `protoc` is needed. The messages are in
//! `src/messages`.

use tonic_build::manual::{Builder, Method, Service};

/// Route, request, reply.
type Call = (&'static str, &'static str, &'static str);

const REPLICA: &[Call] = &[
    ("ReplicaCreate", "ReplicaCreateRequest", "ReplicaReply"),
    ("ReplicaDelete", "Empty", "Empty"),
    ("ReplicaGet", "Empty", "ReplicaReply"),
    ("ReplicaOpen", "ReplicaOpenRequest", "ReplicaReply"),
    ("ReplicaClose", "Empty", "ReplicaReply"),
    ("ReplicaReload", "Empty", "ReplicaReply"),
    ("ReplicaRevert", "ReplicaRevertRequest", "ReplicaReply"),
    ("ReplicaSnapshot", "ReplicaSnapshotRequest", "ReplicaReply"),
    ("ReplicaExpand", "ReplicaExpandRequest", "ReplicaReply"),
    ("DiskRemove", "DiskRemoveRequest", "ReplicaReply"),
    ("DiskReplace", "DiskReplaceRequest", "ReplicaReply"),
    (
        "DiskPrepareRemove",
        "DiskPrepareRemoveRequest",
        "DiskPrepareRemoveReply",
    ),
    (
        "DiskMarkAsRemoved",
        "DiskMarkAsRemovedRequest",
        "ReplicaReply",
    ),
    ("RebuildingSet", "RebuildingSetRequest", "ReplicaReply"),
    (
        "RevisionCounterSet",
        "RevisionCounterSetRequest",
        "ReplicaReply",
    ),
    (
        "UnmapMarkDiskChainRemovedSet",
        "SwitchRequest",
        "ReplicaReply",
    ),
    ("SnapshotMaxCountSet", "CountRequest", "ReplicaReply"),
    ("SnapshotMaxSizeSet", "SizeRequest", "ReplicaReply"),
];

const SYNC_AGENT: &[Call] = &[
    ("FileRemove", "FileRemoveRequest", "Empty"),
    ("FileRename", "FileRenameRequest", "Empty"),
    ("FileSend", "FileSendRequest", "Empty"),
    ("FilesSync", "FilesSyncRequest", "Empty"),
    (
        "ReceiverLaunch",
        "ReceiverLaunchRequest",
        "ReceiverLaunchReply",
    ),
    ("Reset", "Empty", "Empty"),
    ("SnapshotPurge", "Empty", "Empty"),
    ("SnapshotPurgeStatus", "Empty", "PurgeStatus"),
    ("ReplicaRebuildStatus", "Empty", "RebuildStatus"),
    ("SnapshotHashCancel", "NameMessage", "Empty"),
    ("SnapshotHashLockState", "Empty", "LockState"),
];

const CONTROLLER: &[Call] = &[
    ("VolumeGet", "Empty", "Volume"),
    ("VolumeStart", "VolumeStartRequest", "Volume"),
    ("VolumeShutdown", "Empty", "Volume"),
    ("VolumeSnapshot", "VolumeSnapshotRequest", "NameMessage"),
    ("VolumeRevert", "NameMessage", "Volume"),
    ("VolumeExpand", "SizeRequest", "Volume"),
    ("VolumeFrontendStart", "NameMessage", "Volume"),
    ("VolumeFrontendShutdown", "Empty", "Volume"),
    (
        "VolumeUnmapMarkSnapChainRemovedSet",
        "SwitchRequest",
        "Volume",
    ),
    ("VolumeSnapshotMaxCountSet", "CountRequest", "Volume"),
    ("VolumeSnapshotMaxSizeSet", "SizeRequest", "Volume"),
    ("ReplicaList", "Empty", "ReplicaListReply"),
    ("ReplicaGet", "ReplicaAddress", "ControllerReplica"),
    (
        "ControllerReplicaCreate",
        "ControllerReplicaCreateRequest",
        "ControllerReplica",
    ),
    ("ReplicaDelete", "ReplicaAddress", "Empty"),
    ("ReplicaUpdate", "ControllerReplica", "ControllerReplica"),
    (
        "ReplicaPrepareRebuild",
        "ReplicaAddress",
        "ReplicaPrepareRebuildReply",
    ),
    (
        "ReplicaVerifyRebuild",
        "ReplicaAddress",
        "ControllerReplica",
    ),
    (
        "ReplicaRebuildConcurrentSyncLimitSet",
        "CountRequest",
        "Empty",
    ),
    (
        "ReplicaRebuildConcurrentSyncLimitGet",
        "Empty",
        "CountRequest",
    ),
    ("JournalList", "JournalListRequest", "Empty"),
    ("VersionDetailGet", "Empty", "VersionDetailReply"),
    ("MetricsGet", "Empty", "MetricsReply"),
];

/// `ReplicaGet` becomes `replica_get`.
fn snake(route: &str) -> String {
    let mut name = String::new();
    for letter in route.chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

fn service(name: &str, calls: &[Call]) -> Service {
    let service = Service::builder().name(name).package("ptypes");
    let with_calls = calls
        .iter()
        .fold(service, |service, (route, request, reply)| {
            let method = Method::builder()
                .name(snake(route))
                .route_name(*route)
                .input_type(format!("crate::messages::{request}"))
                .output_type(format!("crate::messages::{reply}"))
                .codec_path("tonic_prost::ProstCodec");
            service.method(method.build())
        });
    with_calls.build()
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    Builder::new().build_transport(false).compile(&[
        service("ReplicaService", REPLICA),
        service("SyncAgentService", SYNC_AGENT),
        service("ControllerService", CONTROLLER),
    ]);
}
