//! Volumes that go from one engine to another while their replicas stay open.

use super::fake::Manner::DoneLate;
use super::*;

use Mode::{Failed, ReadWrite};

#[test]
fn only_those_that_have_everything_are_handed_over() {
    let set = Set::holding(3, 2);
    let volume = set.open();
    set.replicas[1].change(|state| state.silent = true);
    write_at(&volume, 0, 3).expect("a write");
    assert_eq!(modes(&volume), [ReadWrite, Failed, ReadWrite]);
    // It is there again, open, and looks as the others do.
    set.replicas[1].mend();
    let complete = volume.hand_over().expect("handed over");
    let good = |index: usize| set.replicas[index].address.clone();
    assert_eq!(complete, [good(0), good(2)]);
    assert!(volume.open_queue(4).is_err());
    let options = VolumeOptions {
        replicas: complete,
        ..set.options(Taking::HandedOver)
    };
    let target = Volume::open(options, Arc::new(Nobody)).expect("taken");
    assert_eq!(read(&target), [3]);
    assert!(volume.hand_over().is_err(), "it is handed over twice");
}

#[test]
fn nothing_is_handed_over_while_replicas_are_compared() {
    let set = Set::holding(2, 2);
    set.replicas[0].change(|state| state.bytes.fill(1));
    for replica in &set.replicas {
        replica.change(|state| {
            state.dirty = true;
            state.silent = true;
        });
    }
    let volume = set.open();
    let refused = volume.hand_over();
    assert!(matches!(refused, Err(VolumeError::State { .. })));
    set.replicas.iter().for_each(Fake::mend);
    wait_until("is compared", || volume.hand_over().is_ok());
}

#[test]
fn nothing_is_handed_over_while_a_replica_is_rebuilt() {
    let mut set = Set::holding(2, 2);
    let volume = set.open();
    let new = set.add();
    new.set("fetch", DoneLate(Duration::from_secs(2)));
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| volume.add_replica(new.address.clone()));
        wait_until("gets its files", || new.state().calls.contains(&"fetch"));
        let refused = volume.hand_over();
        assert!(matches!(refused, Err(VolumeError::State { .. })));
        adding.join().expect("no panic").expect("rebuilt");
    });
    assert_eq!(volume.hand_over().expect("handed over").len(), 3);
}
