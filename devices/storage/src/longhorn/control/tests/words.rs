//! Replicas that say more than anybody reads.

use std::collections::HashMap;

use super::fake::Manner::Rant;
use super::*;

use Mode::{Failed, ReadWrite};

/// The most bytes of what a replica said that are kept, with what is said about it.
const MOST: usize = 1200;

#[test]
fn why_a_replica_fails_is_told_shortly() {
    let set = Set::holding(3, 2);
    set.replicas[2].change(|state| state.says = Some("ü".repeat(1 << 20)));
    let volume = set.open();
    set.replicas[1].set("snapshot", Rant);
    volume.snapshot(None, HashMap::new()).expect("taken");
    assert_eq!(modes(&volume), [ReadWrite, Failed, Failed]);
    for replica in [1, 2] {
        let reason = reason(&volume, replica);
        assert!(reason.contains("üüü"), "{reason}");
        assert!(reason.len() < MOST, "{} bytes", reason.len());
    }
    set.replicas[0].set("snapshot", Rant);
    let refused = volume.snapshot(None, HashMap::new()).expect_err("refused");
    let told = refused.to_string();
    assert!(told.contains("üü…") && told.len() < MOST, "{told}");
}
