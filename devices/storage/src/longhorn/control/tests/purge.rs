//! Snapshots that are to go, on replicas that look at which only when they begin, as Longhorn's do.

use tokio::runtime::Builder;

use super::fake::Manner::Refuse;
use super::*;
use crate::longhorn::VolumeHandle;

async fn remove(handle: &VolumeHandle, snapshot: &str) {
    let removed = handle.remove_snapshot(snapshot.to_owned()).await;
    removed.expect("marked");
    handle.start_purge().await.expect("begun");
}

async fn is_running(handle: &VolumeHandle) -> bool {
    handle.purge().await.expect("a state").running
}

#[test]
fn what_is_removed_during_a_purge_is_given_back_by_another() {
    let set = Set::holding(2, 2);
    for replica in &set.replicas {
        replica.change(|state| {
            state.take_snapshot("a", "then").expect("taken");
            state.take_snapshot("b", "later").expect("taken");
            state.take_snapshot("kept", "at last").expect("taken");
        });
    }
    let volume = set.open();
    let handle = volume.handle();
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        remove(&handle, "a").await;
        assert!(is_running(&handle).await);
        // One is done, and the other is not.
        set.replicas[0].end_purge();
        remove(&handle, "b").await;
        set.replicas[0].end_purge();
        set.replicas[1].end_purge();
        let left = |replica: usize| set.replicas[replica].state().chain.len();
        assert_eq!([left(0), left(1)], [1, 2]);
        set.replicas[1].set("purge", Refuse);
        handle.purge().await.expect_err("it does not begin again");
        set.replicas[1].mend();
        assert!(is_running(&handle).await, "one begins again");
        assert!(is_running(&handle).await);
        set.replicas[1].end_purge();
        assert_eq!([left(0), left(1)], [1, 1]);
        assert!(!is_running(&handle).await);
        for (replica, begun) in set.replicas.iter().zip([2, 3]) {
            let calls = replica.state().calls.into_iter();
            assert_eq!(calls.filter(|call| *call == "purge").count(), begun);
        }
        set.replicas[0].change(|state| state.says = Some("x".repeat(1 << 20)));
        let failed = handle.purge().await.expect_err("its error");
        assert!(failed.to_string().len() < 1200, "{failed}");
    });
}
