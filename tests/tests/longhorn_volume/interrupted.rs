//! Rebuilds that are interrupted, and begun anew.

use super::*;

/// Rebuilds replica 2 after it was killed, and does something to the set while that is under way.
fn interrupt_a_rebuild(name: &str, interrupt: impl FnOnce(&mut Set)) -> (Set, Volume) {
    let mut set = Set::start(name, false);
    let volume = set.open();
    let mut user = User::new(&volume);
    user.write(0, SIZE, 1).unwrap();
    set.replicas[2].kill();
    user.write(0, MIB, 2).unwrap();
    let address = set.address(2);
    volume.remove_replica(&address).unwrap();
    set.replicas[2].restart();
    let rebuilt = std::thread::scope(|scope| {
        let rebuild = scope.spawn(|| volume.add_replica(address.clone()));
        assert!(
            within(SOON, || volume.progress().is_some()),
            "it does not begin"
        );
        interrupt(&mut set);
        user.write(0, MIB, 3).unwrap();
        rebuild.join().unwrap()
    });
    assert!(rebuilt.is_err(), "{rebuilt:?}");
    assert_eq!(modes(&volume)[2], Mode::Failed);
    assert_eq!(volume.progress(), None);
    user.write(MIB, 2 * MIB, 3).unwrap();
    user.check(0, 2 * MIB, 3);
    (set, volume)
}

/// Longhorn's engine does it all, and Paddock is its client.

#[test]
fn a_rebuild_whose_replica_dies_is_begun_anew() {
    let (mut set, volume) = interrupt_a_rebuild("interrupted", |set| set.replicas[2].kill());
    let address = set.address(2);
    volume.remove_replica(&address).unwrap();
    set.replicas[2].restart();
    volume.add_replica(address).unwrap();
    assert_eq!(modes(&volume), [Mode::ReadWrite; 3]);
    set.assert_alike(&[0, 1, 2]);
    volume.close().unwrap();
}

#[test]
fn a_rebuild_whose_source_dies_goes_on_from_another_when_it_is_begun_anew() {
    let (mut set, volume) = interrupt_a_rebuild("source", |set| set.replicas[0].kill());
    assert_eq!(
        modes(&volume),
        [Mode::Failed, Mode::ReadWrite, Mode::Failed]
    );
    for index in [0, 2] {
        let address = set.address(index);
        volume.remove_replica(&address).unwrap();
        set.replicas[index].restart();
        volume.add_replica(address).unwrap();
    }
    assert_eq!(modes(&volume), [Mode::ReadWrite; 3]);
    set.assert_alike(&[0, 1, 2]);
    volume.close().unwrap();
}
