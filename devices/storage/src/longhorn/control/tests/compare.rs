//! Replicas that are compared, of which some may have missed more than the last writes, and which fail meanwhile.

use super::*;

use Mode::{Failed, ReadWrite};

const EIO: IoError = IoError::Os(libc::EIO);

/// Two replicas that nobody has closed: the first holds twos, the second ones, written so many seconds before; or it never held anything.
fn crashed(older: Option<i64>) -> Set {
    let set = Set::holding(2, 2);
    for replica in &set.replicas {
        replica.change(|state| state.dirty = true);
    }
    set.replicas[1].change(|state| match older {
        Some(seconds) => {
            state.bytes.fill(1);
            state.modified -= seconds * SECOND;
        }
        None => {
            state.bytes.fill(0);
            state.modified += 60 * SECOND;
        }
    });
    set
}

fn holds(replica: &Fake, value: u8) -> bool {
    replica.state().bytes.iter().all(|byte| *byte == value)
}

#[test]
fn what_only_one_has_and_cannot_read_is_not_read_from_who_missed_it() {
    for older in [Some(10), None] {
        let set = crashed(older);
        set.replicas[0].change(|state| state.bad = Some(SECOND_PIECE + 4096));
        let volume = set.open();
        let bad = SECOND_PIECE + 4096;
        assert_eq!(read_at(&volume, bad), Err(EIO));
        wait_until("ends", || volume.is_compared());
        assert_eq!(modes(&volume), [ReadWrite, Failed]);
        assert!(reason(&volume, 1).contains("cannot be read from"));
        assert_eq!(read_at(&volume, bad), Err(EIO));
        assert_eq!(read(&volume), [2]);
        assert_eq!(read_at(&volume, 2 * SECOND_PIECE), Ok(vec![2]));
        assert!(holds(&set.replicas[0], 2));
        assert_eq!(write_at(&volume, 0, 3), Ok(()));
        volume.close().expect("closed");
        // It looks like what it is.
        let second = set.replicas[1].state();
        assert!(second.rebuilding && second.open, "{second:?}");
    }
}

#[test]
fn nobody_goes_on_with_one_that_missed_something() {
    for older in [Some(10), None] {
        let set = crashed(older);
        set.replicas[0].change(|state| state.hangs_at = Some(SECOND_PIECE));
        let volume = set.open();
        wait_until("makes the first piece the same", || {
            set.replicas[1].state().bytes[0] == 2
        });
        assert_eq!(write_at(&volume, 0, 3), Ok(()));
        fail(&volume, 0);
        assert_eq!(modes(&volume), [Failed, Failed]);
        assert_eq!(read_at(&volume, 0), Err(EIO));
        assert_eq!(write_at(&volume, 0, 4), Err(EIO));
        assert_eq!(set.replicas[1].state().bytes[0], 3);
        assert!(!volume.is_compared());
    }
}

#[test]
fn one_that_was_written_with_the_best_takes_its_place() {
    let set = crashed(Some(1));
    set.replicas[0].change(|state| state.bad = Some(SECOND_PIECE));
    let volume = set.open();
    assert!(!set.replicas[1].state().rebuilding);
    wait_until("ends", || volume.is_compared());
    assert_eq!(modes(&volume), [Failed, ReadWrite]);
    assert_eq!(read(&volume), [2], "as it was made");
    assert_eq!(read_at(&volume, SECOND_PIECE), Ok(vec![1]));
}

#[test]
fn one_that_cannot_be_marked_is_left() {
    let set = crashed(Some(10));
    set.replicas[1].set("set rebuilding", fake::Manner::Refuse);
    let volume = set.open();
    assert_eq!(modes(&volume), [ReadWrite, Failed]);
    assert!(reason(&volume, 1).contains("may miss what others have"));
    assert!(holds(&set.replicas[1], 1));
}

#[test]
fn one_that_was_filled_in_part_is_not_believed_after_another_crash() {
    for older in [Some(10), None] {
        let set = crashed(older);
        set.replicas[0].change(|state| state.hangs_at = Some(SECOND_PIECE));
        let volume = set.open();
        wait_until("makes the first piece the same", || {
            set.replicas[1].state().bytes[0] == 2
        });
        drop(volume);
        set.replicas.iter().for_each(Fake::mend);
        set.replicas.iter().for_each(Fake::restart);
        let volume = set.open();
        assert_eq!(modes(&volume), [ReadWrite, Failed]);
        assert!(reason(&volume, 1).contains("rebuilt to the end"));
        assert_eq!(read_at(&volume, SECOND_PIECE), Ok(vec![2]));
        assert!(volume.is_compared());
        assert!(holds(&set.replicas[0], 2));
    }
}

#[test]
fn the_one_that_is_believed_is_written_last() {
    let set = crashed(Some(1));
    let volume = set.open();
    wait_until("is compared", || volume.is_compared());
    let [first, second] = [0, 1].map(|index: usize| set.replicas[index].state().modified);
    assert!(first >= second, "{first} {second}");
    assert!(holds(&set.replicas[0], 2) && holds(&set.replicas[1], 2));
}

#[test]
fn one_that_was_made_the_same_is_as_good_as_any() {
    for older in [Some(10), None] {
        let set = crashed(older);
        let (volume, heard) = set.open_heard();
        wait_until("is compared", || volume.is_compared());
        assert_eq!(heard.compared(), 1);
        assert!(!set.replicas[1].state().rebuilding);
        fail(&volume, 0);
        assert_eq!(modes(&volume), [Failed, ReadWrite]);
        assert_eq!(read_at(&volume, SECOND_PIECE), Ok(vec![2]));
        assert_eq!(write_at(&volume, 0, 3), Ok(()));
    }
}
