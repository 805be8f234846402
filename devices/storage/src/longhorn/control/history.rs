//! What was done with a volume beside writing it, as its replicas tell it: snapshots taken, and gone back to. One that was away meanwhile may hold something else,
//! and look the same otherwise.
//!
//! The files below the head tell only a part of it: those that no user made go with a purge, which each replica does by itself and in its own time, and going
//! back makes none. The head tells the rest: each of these makes a new one, of which an engine says to all replicas alike when it was made.
//!
//! Heads of the same history may still have been made at different times: the first of a replica, and that of one that has just grown, is made by its own clock, and
//! so is that of one of Longhorn's that was restored from a backup. So a head counts as another only where one of the two replicas was not written after
//! both had been made.

use std::time::{Duration, UNIX_EPOCH};

use super::judge::NEWEST;
use super::peer::{Disk, Info};
use super::snapshot::name_of;
use super::time::since_epoch;

/// What the names of snapshots begin with that replicas take when they grow.
const GROWN: &str = "expand-";

/// Whether something else was done with the one than with the other.
pub(super) fn differ(one: &Info, other: &Info) -> bool {
    kept(one, other) != kept(other, one) || heads_differ(one, other)
}

/// The snapshots of one that a user made and that neither is to give up, from the top.
fn kept<'a>(one: &'a Info, other: &Info) -> Vec<&'a String> {
    let stays = |info: &Info, name: &String| {
        let disk = info.disks.get(name);
        disk.is_none_or(|disk| disk.user_created && !disk.removed)
    };
    let below = one.chain.iter().skip(1);
    let kept =
        below.filter(|&name| *name != one.backing_file && stays(one, name) && stays(other, name));
    kept.collect()
}

/// The head, and what it was made on.
fn top(info: &Info) -> (&str, Option<(&str, &Disk)>) {
    let head = info.disks.get(&info.head);
    let below = info.chain.get(1).filter(|name| **name != info.backing_file);
    let below = below.and_then(|name| Some((name.as_str(), info.disks.get(name)?)));
    (head.map_or("", |head| head.created.as_str()), below)
}

/// Whether a replica made its head by its own clock, of itself or when it grew.
fn is_own(info: &Info) -> bool {
    match top(info) {
        (_, None) => true,
        (created, Some((file, disk))) => {
            !disk.user_created && name_of(file).starts_with(GROWN) && disk.created == created
        }
    }
}

fn heads_differ(one: &Info, other: &Info) -> bool {
    let ((made, below), (theirs, below_theirs)) = (top(one), top(other));
    let same_place = below.map(|(file, _)| file) == below_theirs.map(|(file, _)| file);
    let both_empty = one.head_bytes == 0 && other.head_bytes == 0;
    let alike = made == theirs || same_place && (both_empty || is_own(one) && is_own(other));
    let both_used = written_after(one, theirs) && written_after(other, made);
    !alike && !both_used
}

/// Whether a replica was written after that, whatever its clock.
fn written_after(info: &Info, created: &str) -> bool {
    let created = humantime::parse_rfc3339(created).ok();
    let created = created.and_then(|created| created.duration_since(UNIX_EPOCH).ok());
    // What is no time may be any.
    created.is_some_and(|created: Duration| since_epoch(info.modified) > created + NEWEST)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn at(second: u32) -> String {
        format!("1970-01-01T00:00:{second:02}Z")
    }

    /// A replica whose head was made then and written last then, and which has these snapshots, from the top: one that is called `-` was made by no user, and
    /// one that is called `!` is to go.
    fn replica(made: u32, written: u32, snapshots: &[(&str, u32)]) -> Info {
        let head = "volume-head-001.img".to_owned();
        let disk = |created: u32| Disk {
            parent: String::new(),
            removed: false,
            user_created: true,
            created: at(created),
            size: 4096,
            labels: HashMap::new(),
        };
        let mut disks = HashMap::from([(head.clone(), disk(made))]);
        let mut chain = vec![head.clone()];
        for (name, created) in snapshots {
            let bare = name.trim_start_matches(['-', '!']);
            let file = format!("volume-snap-{bare}.img");
            let disk = Disk {
                removed: name.starts_with('!'),
                user_created: !name.starts_with('-'),
                ..disk(*created)
            };
            disks.insert(file.clone(), disk);
            chain.push(file);
        }
        Info {
            state: "open".to_owned(),
            dirty: false,
            rebuilding: false,
            size: 4096,
            sector_size: 512,
            head,
            chain,
            backing_file: String::new(),
            disks,
            revision_counter: 0,
            counts_revisions: false,
            modified: i64::from(written) * SECOND,
            head_bytes: 4096,
            snapshots_left: 0,
            snapshots_used: 0,
            snapshot_bytes: 0,
            unmap_marks_removed: false,
        }
    }

    fn check(one: &Info, other: &Info, expected: bool) {
        assert_eq!(differ(one, other), expected, "{one:?}\n{other:?}");
        assert_eq!(differ(other, one), expected, "{other:?}\n{one:?}");
    }

    #[test]
    fn what_a_purge_left_on_one_and_not_on_the_other_is_no_difference() {
        let one = replica(9, 20, &[("c", 9), ("-b", 8), ("a", 7)]);
        check(&one, &replica(9, 20, &[("c", 9), ("a", 7)]), false);
        check(&one, &replica(9, 20, &[("c", 9), ("!a", 7)]), false);
        check(&one, &replica(9, 20, &[("!c", 9), ("!a", 7)]), false);
        // Nobody knows whether that was to go.
        check(&one, &replica(9, 20, &[("c", 9)]), true);
        check(&one, &replica(9, 20, &[("a", 7), ("c", 9)]), true);
    }

    #[test]
    fn one_that_did_not_go_back_or_missed_a_snapshot_is_another() {
        let mut before = replica(10, 12, &[("a", 10)]);
        let mut after = replica(13, 13, &[("a", 10)]);
        check(&before, &after, true);
        after.modified = 50 * SECOND;
        check(&before, &after, true);
        // Nothing was written since the snapshot: going back to it changes nothing.
        (before.head_bytes, after.head_bytes) = (0, 0);
        check(&before, &after, false);
        let one = replica(30, 40, &[("-x", 30), ("a", 10)]);
        let mut missed = replica(10, 29, &[("a", 10)]);
        check(&one, &missed, true);
        missed.disks.get_mut(&missed.head).expect("a head").created = "then".to_owned();
        check(&one, &missed, true);
    }

    #[test]
    fn heads_that_replicas_made_by_their_own_clocks_are_not_different() {
        check(&replica(1, 2, &[]), &replica(50, 51, &[]), false);
        let grown = |second| replica(second, 51, &[("-expand-8192", second), ("a", 2)]);
        check(&grown(49), &grown(50), false);
        // One went back to that.
        let mut back = grown(50);
        back.disks.get_mut(&back.head).expect("a head").created = at(55);
        check(&grown(49), &back, true);
        // Restored from a backup, each by itself, and used since.
        check(
            &replica(10, 31, &[("a", 9)]),
            &replica(25, 31, &[("a", 8)]),
            false,
        );
        check(
            &replica(10, 30, &[("a", 9)]),
            &replica(25, 31, &[("a", 8)]),
            true,
        );
    }

    #[test]
    fn a_backing_file_is_below_all_of_them() {
        let with = |made| {
            let mut info = replica(made, made, &[]);
            info.backing_file = "/images/base".to_owned();
            info.chain.push(info.backing_file.clone());
            info
        };
        check(&with(1), &with(20), false);
    }
}
