//! Replicas that are added, and do not do their part, or more than that.

use super::super::Control;
use super::fake::Manner::{DoneLate, Hang, Refuse};
use super::*;
use crate::ResizeError;

use Mode::{Failed, ReadWrite, WriteOnly};

/// What nobody waits longer for who wants to begin or to end: less than any call may take.
const SHORT: Duration = Duration::from_millis(1500);

#[test]
fn a_size_that_is_refused_meanwhile_says_why() {
    let mut set = Set::holding(1, 2);
    let volume = set.open();
    let new = set.add();
    new.set("fetch", Hang);
    let address = new.address.clone();
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| volume.add_replica(address.clone()));
        wait_until("is rebuilt", || modes(&volume) == [ReadWrite, WriteOnly]);
        let resized = volume.resize(Some(2 * SIZE as u64));
        let Err(ResizeError::Io(error)) = resized else {
            panic!("{resized:?}");
        };
        let error = error.get_ref().and_then(|source| source.downcast_ref());
        assert!(
            matches!(error, Some(VolumeError::State { problem, .. }) if problem.contains("rebuilt")),
            "{error:?}"
        );
        volume.close().expect("closed");
        assert!(adding.join().expect("an end").is_err());
    });
}

#[test]
fn files_are_not_passed_on_that_no_replica_has() {
    for name in ["../x", "volume-snap-/../../x.img", "volume.meta"] {
        let mut set = Set::holding(1, 2);
        let volume = set.open();
        set.replicas[0].change(|state| state.others.push(name.to_owned()));
        let new = set.add();
        let added = volume.add_replica(new.address.clone());
        let problem = added.expect_err("refused").to_string();
        assert!(problem.contains("which no replica has"), "{problem}");
        assert_eq!(modes(&volume), [ReadWrite, Failed]);
        for call in ["fetch", "receive"] {
            assert!(!new.state().calls.contains(&call), "{call}");
        }
    }
}

#[test]
fn a_new_replica_with_many_files_does_not_stop_the_guest() {
    let mut set = Set::holding(1, 2);
    let volume = set.open();
    let new = set.add();
    new.change(|state| {
        // These replicas transfer no more than names.
        state.bytes.fill(2);
        state.others = (0..20).map(|n| format!("volume-snap-{n}.img")).collect();
    });
    new.set("remove", DoneLate(Duration::from_millis(100)));
    let slowest = std::thread::scope(|scope| {
        let adding = scope.spawn(|| volume.add_replica(new.address.clone()));
        let mut slowest = Duration::ZERO;
        while !adding.is_finished() {
            let since = Instant::now();
            assert_eq!(read(&volume), [2]);
            slowest = slowest.max(since.elapsed());
        }
        adding.join().expect("no panic").expect("rebuilt");
        slowest
    });
    assert!(slowest < SHORT, "{slowest:?}");
    assert_eq!(modes(&volume), [ReadWrite; 2]);
    assert!(new.state().others.is_empty());
}

#[test]
fn the_guest_waits_once_for_a_new_replica_and_not_for_each_call() {
    let mut set = Set::holding(1, 2);
    let volume = set.open();
    let new = set.add();
    // Each is in time.
    for call in ["get", "receive"] {
        new.set(call, DoneLate(Duration::from_millis(1600)));
    }
    let added = volume.add_replica(new.address.clone());
    let problem = added.expect_err("given up").to_string();
    assert!(problem.contains("all I/O stood still"), "{problem}");
    assert_eq!(modes(&volume), [ReadWrite, Failed]);
}

#[test]
fn nobody_waits_for_a_replica_that_is_none_of_the_volumes() {
    for call in ["open", "set unmap marks", "set rebuilding", "snapshot"] {
        let mut set = Set::holding(1, 2);
        let volume = set.open();
        let new = set.add();
        new.set(call, Hang);
        std::thread::scope(|scope| {
            let adding = scope.spawn(|| volume.add_replica(new.address.clone()));
            wait_until("is asked", || new.state().calls.contains(&call));
            let since = Instant::now();
            assert_eq!(read(&volume), [2]);
            volume.close().expect("closed");
            assert!(since.elapsed() < SHORT, "{call}");
            let added = adding.join().expect("no panic");
            assert!(added.is_err(), "{call}: {added:?}");
        });
    }
}

#[test]
fn one_that_did_not_get_everything_says_so_after_a_crash() {
    let mut set = Set::holding(1, 2);
    let volume = set.open();
    let new = set.add();
    new.set("reset", Hang);
    assert!(volume.add_replica(new.address.clone()).is_err());
    drop(volume);
    set.start_anew();
    let volume = set.open();
    assert_eq!(modes(&volume), [ReadWrite, Failed]);
    assert!(reason(&volume, 1).contains("not rebuilt to the end"));
    assert_eq!(read(&volume), [2]);
}

#[test]
fn one_that_was_removed_does_not_pass_for_complete() {
    let set = Set::holding(2, 2);
    let volume = set.open();
    let removed = &set.replicas[1];
    volume.remove_replica(&removed.address).expect("removed");
    assert!(!removed.state().open);
    volume.close().expect("closed");
    // Whoever does not know of that names it the next time.
    let volume = set.open();
    assert_eq!(modes(&volume), [ReadWrite, Failed]);
    assert!(reason(&volume, 1).contains("not rebuilt to the end"));
    volume.remove_replica(&removed.address).expect("removed");
    volume
        .add_replica(removed.address.clone())
        .expect("rebuilt");
    assert_eq!(modes(&volume), [ReadWrite; 2]);
    volume.close().expect("closed");
    assert_eq!(modes(&set.open()), [ReadWrite; 2]);
}

#[test]
fn one_that_was_not_complete_is_not_after_it_could_not_be_added_either() {
    for (rebuilding, dirty) in [(true, false), (false, true)] {
        for call in ["set unmap marks", "get", "snapshot", "set rebuilding"] {
            let mut set = Set::holding(2, 2);
            let new = set.add();
            new.change(|state| {
                state.bytes.fill(1);
                state.modified = 1000 * SECOND;
                (state.rebuilding, state.dirty) = (rebuilding, dirty);
            });
            let options = VolumeOptions {
                replicas: vec![
                    set.replicas[0].address.clone(),
                    set.replicas[1].address.clone(),
                ],
                ..set.options(Taking::Open)
            };
            let volume = Volume::open(options, Arc::new(Nobody)).expect("opened");
            let new = &set.replicas[2];
            new.set(call, Refuse);
            let added = volume.add_replica(new.address.clone());
            assert!(added.is_err(), "{call}: it is added");
            volume.close().expect("closed");
            let state = new.state();
            assert!(state.rebuilding || state.dirty, "{call}: {state:?}");
            // Whoever does not know of that names it the next time.
            new.mend();
            new.restart();
            let volume = set.open();
            assert_eq!(modes(&volume), [ReadWrite, ReadWrite, Failed], "{call}");
            assert_eq!(read(&volume), [2]);
        }
    }
}

#[test]
fn one_that_tools_were_about_to_rebuild_is_not_complete_once_the_volume_is_closed() {
    let mut set = Set::holding(1, 2);
    let volume = set.open();
    let new = set.add();
    let address = new.address.clone();
    let create =
        |control: Arc<Control>| async move { control.create_replica(&address, false).await };
    volume.call(create).map(drop).expect("created");
    assert_eq!(modes(&volume), [ReadWrite, WriteOnly]);
    volume.close().expect("closed");
    assert!(!new.state().open && new.state().rebuilding);
    // Longhorn's tools are told nothing of the mark when they try again, and set it themselves.
    let volume = set.open();
    assert_eq!(modes(&volume), [ReadWrite, Failed]);
    volume
        .remove_replica(&set.replicas[1].address)
        .expect("removed");
    let address = set.replicas[1].address.clone();
    let create =
        |control: Arc<Control>| async move { control.create_replica(&address, false).await };
    volume.call(create).map(drop).expect("created");
    assert!(!set.replicas[1].state().rebuilding);
}

/// Nothing is below the head of one whose rebuild was interrupted: a guest would read zeros.
#[test]
fn one_that_did_not_get_everything_is_no_volume_by_itself() {
    let set = Set::holding(1, 2);
    set.replicas[0].change(|state| state.rebuilding = true);
    let open = |taking| Volume::open(set.options(taking), Arc::new(Nobody));
    let error = open(Taking::Open).expect_err("it is not complete");
    assert!(error.to_string().contains("salvage this one"), "{error}");
    assert!(set.replicas[0].state().rebuilding);
    let volume = open(Taking::Salvage).expect("it is all there is");
    assert_eq!(modes(&volume), [ReadWrite]);
    assert_eq!(read(&volume), [2]);
    assert!(!set.replicas[0].state().rebuilding);
}
