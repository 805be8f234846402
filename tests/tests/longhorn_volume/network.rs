//! A replica on another host, whose network loses connections or answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use paddock_storage::longhorn::Mode;
use paddock_tests::longhorn::{Host, Network, Set, User};

use super::{MIB, modes};

/// Three replicas, of which the last is on another host.
fn far(name: &str) -> (Set, Arc<Network>) {
    let mut set = Set::start(name, false);
    let network = Arc::new(Network::new());
    set.options.host = Host::Far(Arc::clone(&network));
    set.replicas.pop();
    set.add();
    (set, network)
}

#[test]
fn a_replica_whose_connections_are_reset_is_left_at_once() {
    let (set, network) = far("reset");
    let volume = set.open();
    let mut user = User::new(&volume);
    user.write(0, MIB, 1).unwrap();
    let mut generation = 1;
    let since = Instant::now();
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            network.reset();
        });
        while !reset.is_finished() || modes(&volume)[2] == Mode::ReadWrite {
            generation += 1;
            user.write(0, MIB, generation).unwrap();
            let took = since.elapsed();
            assert!(took < Duration::from_secs(7), "it is waited for: {took:?}");
        }
    });
    assert!(generation > 2, "nothing was written meanwhile");
    assert_eq!(
        modes(&volume),
        [Mode::ReadWrite, Mode::ReadWrite, Mode::Failed]
    );
    // The host was there all the time: it is not for its silence.
    let reason = volume.replicas()[2].failure.clone().unwrap().reason;
    assert!(reason.contains("onnection"), "{reason}");
    for _ in 0..3 {
        user.check(0, MIB, generation);
    }
    assert_eq!(modes(&volume)[2], Mode::Failed);
    drop(user);
    volume.close().unwrap();
}

#[test]
fn a_replica_whose_answers_are_lost_is_left_after_the_timeout() {
    let (set, network) = far("cable");
    let volume = set.open();
    let mut user = User::new(&volume);
    user.write(0, MIB, 1).unwrap();
    network.cut();
    let before = Instant::now();
    user.write(0, MIB, 2).unwrap();
    let took = before.elapsed();
    assert!(
        took > Duration::from_secs(7) && took < Duration::from_secs(14),
        "{took:?}"
    );
    assert_eq!(
        modes(&volume),
        [Mode::ReadWrite, Mode::ReadWrite, Mode::Failed]
    );
    let before = Instant::now();
    user.write(0, MIB, 3).unwrap();
    assert!(
        before.elapsed() < Duration::from_secs(7),
        "it is still waited for"
    );
    // It is back, and behind: nobody reads it.
    network.mend();
    for _ in 0..3 {
        user.check(0, MIB, 3);
    }
    assert_eq!(modes(&volume)[2], Mode::Failed);
    drop(user);
    volume.close().unwrap();
}
