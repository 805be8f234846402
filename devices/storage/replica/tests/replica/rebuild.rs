//! A replica is rebuilt from another, in the steps of an engine; and transfers that do not go well.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use crate::common::{Process, snapshot};
use paddock_longhorn::messages as m;
use paddock_longhorn::replica::replica_service_client::ReplicaServiceClient;
use tonic::transport::Channel;

const SIZE: u32 = 8 << 20;

/// The replica's state.
async fn get(control: &mut ReplicaServiceClient<Channel>) -> m::Replica {
    control
        .replica_get(())
        .await
        .unwrap()
        .into_inner()
        .replica
        .unwrap()
}

/// A volume with three layers and something in each.
async fn make(directory: &Path) -> Process {
    let process = Process::start(directory, &["--size", "8m"]);
    let mut control = process.control().await;
    control
        .replica_open(m::ReplicaOpenRequest::default())
        .await
        .unwrap();
    let mut data = process.data();
    for layer in 0..3_u8 {
        for place in 0..100 {
            data.write(
                i64::from(place) * 65536 + i64::from(layer) * 4096,
                &[layer + 1; 5000],
            );
        }
        data.write(3 << 20, &[0xee; 1 << 20]);
        if layer < 2 {
            control
                .replica_snapshot(snapshot(&format!("s{layer}")))
                .await
                .unwrap();
        }
    }
    process
}

/// Copies a head's metadata, as an engine does while nothing is written.
async fn copy_head(from: &Process, to: &Process, from_head: &str, to_head: &str) {
    let request = m::ReceiverLaunchRequest {
        to_file_name: format!("{to_head}.meta"),
    };
    let port = to
        .agent()
        .await
        .receiver_launch(request)
        .await
        .unwrap()
        .into_inner()
        .port;
    let request = m::FileSendRequest {
        from_file_name: format!("{from_head}.meta"),
        host: "127.0.0.1".to_owned(),
        port,
        fast_sync: false,
        file_sync_http_client_timeout: 5,
    };
    from.agent().await.file_send(request).await.unwrap();
}

/// Rebuilds `target`, which is not open, from `source`. Both are left open.
async fn rebuild(source: &Process, target: &Process, name: &str) {
    let (mut from, mut to) = (source.control().await, target.control().await);
    to.replica_open(m::ReplicaOpenRequest::default())
        .await
        .unwrap();
    from.replica_snapshot(snapshot(name)).await.unwrap();
    to.replica_snapshot(snapshot(name)).await.unwrap();
    to.rebuilding_set(m::RebuildingSetRequest { rebuilding: true })
        .await
        .unwrap();
    let (source_state, target_state) = (get(&mut from).await, get(&mut to).await);
    for extra in target_state.disks.keys() {
        if !source_state.disks.contains_key(extra) && *extra != target_state.head {
            let name = extra.clone();
            to.disk_remove(m::DiskRemoveRequest { name, force: true })
                .await
                .unwrap();
        }
    }
    copy_head(source, target, &source_state.head, &target_state.head).await;
    let layers = source_state
        .disks
        .values()
        .filter(|disk| disk.name != source_state.head);
    let files = layers.flat_map(|disk| {
        let file = |suffix: &str, actual_size| m::SyncFileInfo {
            from_file_name: format!("{}{suffix}", disk.name),
            to_file_name: format!("{}{suffix}", disk.name),
            actual_size,
        };
        [file("", disk.size.parse().unwrap()), file(".meta", 0)]
    });
    let request = m::FilesSyncRequest {
        to_host: "127.0.0.1".to_owned(),
        sync_file_info_list: files.collect(),
        file_sync_http_client_timeout: 5,
        from_address_map: [(source.address(), true)].into(),
        ..m::FilesSyncRequest::default()
    };
    let mut agent = target.agent().await;
    agent.files_sync(request).await.unwrap();
    let status = agent.replica_rebuild_status(()).await.unwrap().into_inner();
    assert_eq!(
        (status.is_rebuilding, status.progress, status.state.as_str()),
        (false, 100, "complete")
    );
    to.replica_reload(()).await.unwrap();
    to.rebuilding_set(m::RebuildingSetRequest { rebuilding: false })
        .await
        .unwrap();
    let (source_state, target_state) = (get(&mut from).await, get(&mut to).await);
    assert_eq!(source_state.chain[1..], target_state.chain[1..]);
    assert!(!target_state.rebuilding);
}

/// The layers that are in a directory, without heads.
fn layers(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let snapshots = entries.filter(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("volume-snap-")
    });
    let read = |entry: fs::DirEntry| {
        (
            entry.file_name().into_string().unwrap(),
            fs::read(entry.path()).unwrap(),
        )
    };
    snapshots.map(read).collect()
}

#[tokio::test]
async fn a_new_replica_and_one_that_was_away_become_as_the_source() {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let [from, to] = ["a", "b"].map(|name| place.path().join(name));
    let source = make(&from).await;
    let target = Process::start(&to, &["--size", "8m"]);
    rebuild(&source, &target, "first").await;
    assert!(layers(&from) == layers(&to));
    assert!(source.data().read(0, SIZE) == target.data().read(0, SIZE));

    // The target goes away, the source goes on, and the files that the target has are completed.
    target.control().await.replica_close(()).await.unwrap();
    source.data().write(0, &[7; 100_000]);
    source
        .control()
        .await
        .replica_snapshot(snapshot("later"))
        .await
        .unwrap();
    fs::write(to.join("volume-snap-s0.img"), vec![0xaa; SIZE as usize]).unwrap();
    rebuild(&source, &target, "second").await;
    assert!(layers(&from) == layers(&to));
    assert!(source.data().read(0, SIZE) == target.data().read(0, SIZE));
    let sparse = |directory: &Path| {
        let metadata = fs::metadata(directory.join("volume-snap-s0.img")).unwrap();
        std::os::unix::fs::MetadataExt::blocks(&metadata)
    };
    assert_eq!(sparse(&from), sparse(&to));
}

/// Makes a request of a transfer and returns the whole answer.
fn http(port: i32, request: &str, body: &[u8]) -> String {
    let port = u16::try_from(port).unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = body.len();
    let (method, path) = request.split_once(' ').unwrap();
    let head = format!(
        "{method} /v1-ssync/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test]
async fn what_does_not_come_whole_is_not_there() {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let process = Process::start(place.path(), &["--size", "8m"]);
    let mut agent = process.agent().await;
    let name = "volume-snap-x.img";
    let launch = m::ReceiverLaunchRequest {
        to_file_name: name.to_owned(),
    };
    let port = agent
        .receiver_launch(launch.clone())
        .await
        .unwrap()
        .into_inner()
        .port;
    assert!(http(port, "GET open?begin=0&end=8192&directIO=true", b"").ends_with("false"));
    for (request, body) in [
        ("POST writeData?begin=0&end=4096", &[1; 4095][..]),
        ("POST writeData?begin=0&end=4096", &[1; 4097]),
        ("POST writeData?begin=4096&end=12288", &[1; 8192]),
        ("POST writeData?begin=-4096&end=4096", &[1; 8192]),
        ("POST writeData?begin=4096&end=0", &[]),
        ("POST sendHole?begin=0", &[]),
        ("GET getChecksum?begin=0&end=12288", &[]),
        ("GET getRecordedMetadata?", &[]),
        ("GET elsewhere?", &[]),
    ] {
        let answer = http(port, request, body);
        assert!(answer.starts_with("HTTP/1.1 4"), "{request}: {answer}");
    }
    assert!(http(port, "POST writeData?begin=0&end=4096", &[1; 4096]).starts_with("HTTP/1.1 200"));
    assert!(http(port, "POST close?checksumMethod=&checksum=", b"").contains("did not come whole"));
    let names = || {
        let names = fs::read_dir(place.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names
            .filter(|file| file.to_string_lossy().contains("snap"))
            .count()
    };
    for _ in 0..100 {
        if names() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(names(), 0);

    // And once more, to the end.
    let port = agent
        .receiver_launch(launch)
        .await
        .unwrap()
        .into_inner()
        .port;
    http(port, "GET open?begin=0&end=8192&directIO=true", b"");
    http(port, "POST sendHole?begin=4096&end=8192", b"");
    http(port, "POST writeData?begin=0&end=4096", &[1; 4096]);
    assert!(http(port, "POST close?", b"").starts_with("HTTP/1.1 200"));
    assert_eq!(
        fs::read(place.path().join(name)).unwrap(),
        [[1; 4096], [0; 4096]].concat()
    );
}

#[tokio::test]
async fn a_source_that_hangs_is_given_up_and_can_be_asked_again() {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let [from, to] = ["a", "b"].map(|name| place.path().join(name));
    let source = make(&from).await;
    let target = Process::start(&to, &["--size", "8m"]);
    let name = "volume-snap-s0.img";
    let request = m::FilesSyncRequest {
        to_host: "127.0.0.1".to_owned(),
        sync_file_info_list: vec![m::SyncFileInfo {
            from_file_name: name.to_owned(),
            to_file_name: name.to_owned(),
            actual_size: i64::from(SIZE),
        }],
        from_address: source.address(),
        file_sync_http_client_timeout: 1,
        ..m::FilesSyncRequest::default()
    };
    let mut agent = target.agent().await;
    source.freeze(true);
    let transfer = agent.files_sync(request.clone());
    let transfer = tokio::time::timeout(Duration::from_secs(30), transfer).await;
    let error = transfer.expect("the source is given up").unwrap_err();
    assert!(error.message().contains("nothing came"), "{error}");
    let status = agent.replica_rebuild_status(()).await.unwrap().into_inner();
    assert_eq!(
        (status.is_rebuilding, status.state.as_str()),
        (false, "error")
    );
    assert!(status.error.contains("nothing came"), "{}", status.error);
    source.freeze(false);
    agent.files_sync(request).await.unwrap();
    assert!(fs::read(from.join(name)).unwrap() == fs::read(to.join(name)).unwrap());
}

#[tokio::test]
async fn calls_of_the_agent_that_cannot_be() {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let process = Process::start(
        place.path(),
        &["--size", "8m", "--sync-agent-port-count", "2"],
    );
    let mut control = process.control().await;
    control
        .replica_open(m::ReplicaOpenRequest::default())
        .await
        .unwrap();
    let mut agent = process.agent().await;
    for name in ["../x", "/etc/passwd", "volume.meta", "revision.counter", ""] {
        let to_file_name = name.to_owned();
        agent
            .receiver_launch(m::ReceiverLaunchRequest { to_file_name })
            .await
            .unwrap_err();
        let file_name = name.to_owned();
        agent
            .file_remove(m::FileRemoveRequest { file_name })
            .await
            .unwrap_err();
        let request = m::FileSendRequest {
            from_file_name: name.to_owned(),
            host: "127.0.0.1".to_owned(),
            port: 1,
            fast_sync: false,
            file_sync_http_client_timeout: 1,
        };
        agent.file_send(request).await.unwrap_err();
    }
    let head = "volume-head-000.img".to_owned();
    let error = agent
        .file_remove(m::FileRemoveRequest { file_name: head })
        .await
        .unwrap_err();
    assert!(error.message().contains("in use"), "{error}");
    agent
        .files_sync(m::FilesSyncRequest::default())
        .await
        .unwrap_err();
    // All ports are in use.
    for expected in [true, true, false] {
        let to_file_name = "volume-snap-x.img".to_owned();
        let result = agent
            .receiver_launch(m::ReceiverLaunchRequest { to_file_name })
            .await;
        assert_eq!(result.is_ok(), expected);
    }
    // A source that is not there.
    let nobody = m::FilesSyncRequest {
        to_host: "127.0.0.1".to_owned(),
        sync_file_info_list: vec![m::SyncFileInfo {
            from_file_name: "volume-snap-x.img".to_owned(),
            to_file_name: "volume-snap-x.img".to_owned(),
            actual_size: 1,
        }],
        from_address: "tcp://127.0.0.1:1".to_owned(),
        ..m::FilesSyncRequest::default()
    };
    agent.files_sync(nobody).await.unwrap_err();
    let status = agent.replica_rebuild_status(()).await.unwrap().into_inner();
    assert_eq!(
        (status.is_rebuilding, status.state.as_str()),
        (false, "error")
    );
    assert!(status.error.contains("cannot connect"), "{}", status.error);
    agent.reset(()).await.unwrap();
    assert_eq!(
        agent
            .replica_rebuild_status(())
            .await
            .unwrap()
            .into_inner()
            .state,
        ""
    );
}

#[tokio::test]
async fn a_purge_is_told_of() {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let process = make(place.path()).await;
    let before = process.data().read(0, SIZE);
    let mut control = process.control().await;
    let name = "s0".to_owned();
    control
        .disk_mark_as_removed(m::DiskMarkAsRemovedRequest { name })
        .await
        .unwrap();
    let mut agent = process.agent().await;
    agent.snapshot_purge(()).await.unwrap();
    let status = loop {
        let status = agent.snapshot_purge_status(()).await.unwrap().into_inner();
        if !status.is_purging {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(
        (
            status.state.as_str(),
            status.error.as_str(),
            status.progress
        ),
        ("complete", "", 100)
    );
    let replica = get(&mut control).await;
    assert_eq!(replica.chain, ["volume-head-002.img", "volume-snap-s1.img"]);
    assert!(process.data().read(0, SIZE) == before);
}
