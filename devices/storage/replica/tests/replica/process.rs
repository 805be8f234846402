//! The process: its ports, its calls, and its end.

use std::process::Command;

use crate::common::{Process, snapshot};
use paddock_longhorn::messages as m;
use tonic::{Code, Request};

const MIB: i64 = 1 << 20;

#[tokio::test]
async fn an_engines_life_with_a_replica() {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let process = Process::start(
        place.path(),
        &["--size", "1m", "--replica-instance-name", "r-1"],
    );
    let mut control = process.control().await;
    let replica = control
        .replica_get(())
        .await
        .unwrap()
        .into_inner()
        .replica
        .unwrap();
    assert_eq!(
        (
            replica.state.as_str(),
            replica.size.as_str(),
            replica.sector_size
        ),
        ("closed", "1048576", 512)
    );
    assert!(replica.disks.is_empty() && replica.chain.is_empty());
    let open = m::ReplicaOpenRequest::default();
    let replica = control
        .replica_open(open)
        .await
        .unwrap()
        .into_inner()
        .replica
        .unwrap();
    assert_eq!(
        (replica.state.as_str(), replica.head.as_str()),
        ("open", "volume-head-000.img")
    );
    let error = control.replica_open(open).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unknown, "replica is already open")
    );

    process.data().write(8192, &[9; 4096]);
    let replica = control
        .replica_snapshot(snapshot("s"))
        .await
        .unwrap()
        .into_inner()
        .replica
        .unwrap();
    assert_eq!(replica.state, "dirty");
    assert_eq!(replica.chain, ["volume-head-001.img", "volume-snap-s.img"]);
    assert_eq!(
        replica.disks["volume-snap-s.img"]
            .children
            .keys()
            .collect::<Vec<_>>(),
        ["volume-head-001.img"]
    );
    assert_eq!(replica.disks["volume-snap-s.img"].labels["a"], "b");
    assert_eq!(replica.disks["volume-snap-s.img"].size, "4096");
    assert_eq!(
        (
            replica.revision_counter,
            replica.snapshot_count_usage,
            replica.snapshot_count_total
        ),
        (1, 1, 2)
    );
    let error = control.replica_snapshot(snapshot("s")).await.unwrap_err();
    assert!(error.message().contains("already existing"), "{error}");
    let nameless = m::ReplicaSnapshotRequest {
        created: String::new(),
        ..snapshot("t")
    };
    control.replica_snapshot(nameless).await.unwrap_err();

    // An expansion's error is JSON.
    let error = control
        .replica_expand(m::ReplicaExpandRequest { size: 5000 })
        .await
        .unwrap_err();
    let parsed: serde_json::Value = serde_json::from_str(error.message()).unwrap();
    assert_eq!(
        (error.code(), parsed["rollbackMessage"].as_str()),
        (Code::Internal, Some(""))
    );
    let size = 2 * MIB;
    let replica = control
        .replica_expand(m::ReplicaExpandRequest { size })
        .await
        .unwrap()
        .into_inner()
        .replica
        .unwrap();
    assert_eq!(replica.size, "2097152");
    assert!(replica.disks.contains_key("volume-snap-expand-2097152.img"));

    // The process ends well, and stays open as far as the next one can see: it was not closed.
    assert!(process.terminate());
    let process = Process::start(place.path(), &[]);
    let mut control = process.control().await;
    let replica = control
        .replica_get(())
        .await
        .unwrap()
        .into_inner()
        .replica
        .unwrap();
    assert_eq!((replica.state.as_str(), replica.dirty), ("closed", true));
    control.replica_open(open).await.unwrap();
    assert_eq!(process.data().read(8192, 4096), [9; 4096]);
    let replica = control
        .replica_close(())
        .await
        .unwrap()
        .into_inner()
        .replica
        .unwrap();
    assert_eq!((replica.state.as_str(), replica.dirty), ("closed", false));
}

#[tokio::test]
async fn who_means_another_is_refused() {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let process = Process::start(place.path(), &["--replica-instance-name", "r-1"]);
    let mut control = process.control().await;
    for (key, value, fits) in [
        ("volume-name", "v", true),
        ("volume-name", "w", false),
        ("instance-name", "r-1", true),
        ("instance-name", "r-2", false),
        ("instance-name", "", true),
    ] {
        let mut request = Request::new(());
        request.metadata_mut().insert(key, value.parse().unwrap());
        let result = control.replica_get(request).await;
        let code = result.err().map(|error| error.code());
        assert_eq!(
            code,
            (!fits).then_some(Code::FailedPrecondition),
            "{key}: {value}"
        );
    }
}

#[test]
fn a_command_line_that_cannot_be_is_told() {
    for (arguments, expected) in [
        (
            &["replica", "--listen", "nowhere", "/x"][..],
            "--listen nowhere",
        ),
        (&["replica", "--size", "many", "/x"], "not a size"),
        (&["replica"], "<DIR>"),
        (
            &[
                "replica",
                "--listen",
                "127.0.0.1:0",
                "--size",
                "1m",
                "/proc/no/where",
            ],
            "cannot make the directory /proc/no/where",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_paddock-replica"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(expected), "{text}");
    }
}
