//! The table of attacks of `paddock_probe::hostile` on the devices themselves: registers, workers and chipset are the real ones, only
//! KVM and the guest are not there. What `tests/tests/hostile.rs` does in a VM takes seconds here, and a debugger sees it.
//!
//! Each group runs on a machine of its own, and beside the result of each case its log lines are counted.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]

mod machine;

use machine::{Lines, Pc};
use paddock_probe::hostile::{GROUPS, Kind, Outcome, Record, run};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Lines a device may log at once: of each kind one in five seconds passes its throttle.
const LINES: usize = 4;

/// Runs a group on every device.
fn attack(name: &str) {
    let lines = Lines::install();
    let group = GROUPS.iter().find(|group| group.name == name).unwrap();
    let mut failed: Vec<Record> = Vec::new();
    for kind in Kind::ALL {
        let pc = Pc::new(kind);
        let (start, before) = (Instant::now(), lines.load(Ordering::Relaxed));
        run(&pc, kind, group, |record| {
            println!("{record}");
            if record.outcome != Outcome::Passed {
                failed.push(record);
            }
        });
        assert_eq!(pc.power_requests(), 0, "a case resets or powers off");
        assert_eq!(pc.trespasses(), 0, "a device takes what it may not");
        // Other groups log at the same time, so each may.
        let intervals = usize::try_from(start.elapsed().as_secs() / 5).unwrap() + 1;
        let logged = lines.load(Ordering::Relaxed) - before;
        let most = GROUPS.len() * LINES * intervals;
        assert!(logged <= most, "{logged} lines, more than {most}");
    }
    let failed: Vec<_> = failed.iter().map(ToString::to_string).collect();
    assert!(failed.is_empty(), "{name}:\n{}", failed.join("\n"));
}

macro_rules! groups {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            attack(stringify!($name));
        })*

        #[test]
        fn every_group_is_tested() {
            let tested = [$(stringify!($name)),*];
            let all: Vec<_> = GROUPS.iter().map(|group| group.name).collect();
            assert_eq!(all, tested);
        }
    };
}

groups! { rings setup protocol registers msix bars storms sweeps floods blk net console rng balloon mem scsi chipset flash fw_cfg }
