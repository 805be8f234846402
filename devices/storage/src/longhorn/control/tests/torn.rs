//! Replicas that a write without space left with different parts of it.

use std::collections::HashMap;

use super::*;

use Mode::ReadWrite;

const ENOSPC: IoError = IoError::Os(libc::ENOSPC);

/// Two replicas that hold ones; of the write to the second block, for which there is no space, the second keeps the beginning.
fn torn() -> (Set, Volume) {
    let set = Set::holding(2, 1);
    set.replicas[0].change(|state| state.full = Some(4096));
    set.replicas[1].change(|state| state.full = Some(4096 + 512));
    let volume = set.open();
    assert_eq!(write_at(&volume, 4096, 2), Err(ENOSPC));
    (set, volume)
}

#[test]
fn what_had_no_space_is_read_from_one_of_them() {
    let (set, volume) = torn();
    assert_eq!(modes(&volume), [ReadWrite, ReadWrite]);
    assert_ne!(set.replicas[0].state().bytes, set.replicas[1].state().bytes);
    assert_eq!(read_at(&volume, 4096).map(|values| values.len()), Ok(1));
    assert!(!volume.is_compared());
    // Nobody can make them the same, and so nobody says that they are.
    volume.close().expect("closed");
    assert!(set.replicas.iter().all(|replica| replica.state().open));
}

#[test]
fn it_is_made_the_same_once_there_is_space() {
    let (set, volume) = torn();
    let before = read_at(&volume, 4096);
    for replica in &set.replicas {
        replica.mend();
    }
    wait_until("makes them the same", || volume.is_compared());
    assert_eq!(set.replicas[0].state().bytes, set.replicas[1].state().bytes);
    assert_eq!(read_at(&volume, 4096), before, "and not something else");
    assert_eq!(modes(&volume), [ReadWrite, ReadWrite]);
    volume.close().expect("closed");
    assert!(set.replicas.iter().all(|replica| !replica.state().open));
}

#[test]
fn the_writer_makes_it_the_same_as_well() {
    let (set, volume) = torn();
    for replica in &set.replicas {
        replica.mend();
    }
    assert_eq!(write_at(&volume, 4096, 3), Ok(()));
    assert_eq!(read_at(&volume, 4096), Ok(vec![3]));
    wait_until("finds them the same", || volume.is_compared());
    assert_eq!(read_at(&volume, 4096), Ok(vec![3]));
    volume.close().expect("closed");
}

#[test]
fn the_last_one_has_nothing_to_be_like() {
    let (_set, volume) = torn();
    fail(&volume, 0);
    wait_until("reads the one that is left", || volume.is_compared());
    assert_eq!(read_at(&volume, 4096), Ok(vec![2]));
    volume.close().expect("closed");
}

/// A write is on its way when replicas are to be handed over, or to take a snapshot, and tears them.
#[test]
fn the_last_write_before_the_gate_shuts_counts() {
    type Change = fn(&Volume) -> Result<(), VolumeError>;
    let changes: [Change; 2] = [
        |volume| volume.hand_over().map(drop),
        |volume| volume.snapshot(None, HashMap::new()).map(drop),
    ];
    for change in changes {
        let set = Set::holding(2, 1);
        let volume = set.open();
        for (replica, full) in set.replicas.iter().zip([4096, 4096 + 512]) {
            replica.change(|state| {
                state.full = Some(full);
                state.silent = true;
            });
        }
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| write_at(&volume, 4096, 2));
            let asked = |replica: &Fake| replica.state().asked > 0;
            wait_until("is written", || set.replicas.iter().all(asked));
            let changing = scope.spawn(|| change(&volume));
            std::thread::sleep(Duration::from_millis(100));
            for replica in &set.replicas {
                replica.change(|state| state.silent = false);
            }
            assert_eq!(writing.join().expect("no panic"), Err(ENOSPC));
            let changed = changing.join().expect("no panic");
            assert!(
                matches!(changed, Err(VolumeError::State { .. })),
                "{changed:?}"
            );
        });
        assert!(
            set.replicas
                .iter()
                .all(|replica| replica.state().chain.is_empty())
        );
        // It can be used as before.
        set.replicas.iter().for_each(Fake::mend);
        assert_eq!(write_at(&volume, 4096, 3), Ok(()));
    }
}
