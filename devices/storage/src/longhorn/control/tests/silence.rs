//! Replicas that are silent for a while, all at once.

use tokio::runtime::Builder;

use super::*;
use crate::longhorn::control;

use Mode::{Failed, ReadWrite};

/// Less than a volume's user may ask for, who is to have time to look after it.
const TIMEOUT: Duration = Duration::from_secs(1);

#[test]
fn of_replicas_that_hang_together_one_is_given_twice_the_time() {
    let set = Set::holding(2, 2);
    let options = VolumeOptions {
        timeout: TIMEOUT,
        ..set.options(Taking::Open)
    };
    let runtime = Builder::new_current_thread().enable_all().build();
    let modes = runtime.expect("a runtime").block_on(async {
        let control = control::open(options, Arc::new(Nobody)).await;
        let control = control.expect("a volume that can be opened");
        for replica in &set.replicas {
            replica.change(|state| state.silent = true);
        }
        // Longer than a ping may take, and not twice as long.
        let mut modes = Vec::new();
        for _ in 0..45 {
            tokio::time::sleep(TIMEOUT / 10).await;
            modes = control.replicas().iter().map(|r| r.mode).collect();
        }
        modes
    });
    assert_eq!(modes.len(), 2);
    assert!(
        modes.contains(&ReadWrite) && modes.contains(&Failed),
        "{modes:?}"
    );
}

#[test]
fn a_replica_that_is_pinged_while_it_is_closed_has_not_failed() {
    let set = Set::holding(2, 2);
    let volume = set.open();
    for replica in &set.replicas {
        replica.change(|state| state.silent = true);
    }
    wait_until("are pinged", || {
        set.replicas.iter().all(|replica| replica.state().asked > 0)
    });
    volume.close().expect("closed");
    for replica in &set.replicas {
        replica.change(|state| state.silent = false);
    }
    wait_until("answer", || {
        set.replicas
            .iter()
            .all(|replica| replica.state().asked == 0)
    });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(modes(&volume), [ReadWrite; 2]);
}
