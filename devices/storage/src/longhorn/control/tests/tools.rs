//! What is asked through the controller service, and by its callers only.

use std::net::TcpListener;

use paddock_longhorn::controller::controller_service_client::ControllerServiceClient;
use paddock_longhorn::messages as m;
use tokio::runtime::Builder;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::fake::Manner::{DoneLate, Refuse, Unknown};
use super::*;
use crate::longhorn::{Controller, ControllerOptions};

use Mode::ReadWrite;

type Client = ControllerServiceClient<Channel>;

fn serve(volume: &Volume) -> (Controller, Endpoint) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let served = volume.serve_controller(listener, ControllerOptions::default());
    let served = served.expect("served");
    let endpoint = format!("http://{}", served.address()).parse();
    (served, endpoint.expect("an endpoint"))
}

#[test]
fn calls_whose_clients_went_away_do_not_pile_up() {
    let set = Set::holding(1, 2);
    let volume = set.open();
    let (_served, endpoint) = serve(&volume);
    set.replicas[0].set("snapshot", DoneLate(Duration::from_millis(1500)));
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let client = Client::new(endpoint.connect().await.expect("a connection"));
        let since = Instant::now();
        loop {
            assert!(since.elapsed() < SOON, "there is room for any number");
            let mut client = client.clone();
            let call = client.volume_snapshot(m::VolumeSnapshotRequest::default());
            // Going away is what a client does that is dropped.
            let answer = tokio::time::timeout(Duration::from_millis(20), call).await;
            if let Ok(Err(refused)) = answer {
                assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
                break;
            }
        }
        // What only looks is not refused.
        let got = client.clone().volume_get(()).await;
        assert_eq!(got.expect("an answer").into_inner().replica_count, 1);
        set.replicas[0].mend();
        loop {
            assert!(
                since.elapsed() < 2 * SOON,
                "there is room for nobody any more"
            );
            let mut client = client.clone();
            let taken = client.volume_snapshot(m::VolumeSnapshotRequest::default());
            if taken.await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_limit_is_everybodys_or_nobodys() {
    let set = Set::holding(3, 2);
    let volume = set.open();
    let (_served, endpoint) = serve(&volume);
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut client = Client::new(endpoint.connect().await.expect("a connection"));
        let limits = || -> Vec<i32> {
            let limit = |replica: &Fake| replica.state().max_snapshots;
            set.replicas.iter().map(limit).collect()
        };
        set.replicas[2].set("set max snapshots", Refuse);
        let count = m::CountRequest { count: 100 };
        assert!(client.volume_snapshot_max_count_set(count).await.is_err());
        assert_eq!(limits(), [250; 3]);
        // One that is too old to know limits is not in the way: the engine keeps them.
        set.replicas[2].set("set max snapshots", Unknown);
        let set = client.volume_snapshot_max_count_set(count).await;
        assert_eq!(set.expect("set").into_inner().snapshot_max_count, 100);
        assert_eq!(limits(), [100, 100, 250]);
    });
    assert_eq!(modes(&volume), [ReadWrite; 3]);
}
