//! The purge: snapshots that are to go are removed, as far as that is possible. It may be cut off at any moment, and be done again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::fold::{fold, prune};
use super::{Job, Progress, Shared};
use crate::error::{Error, Result};
use crate::volume::remove::Step;
use crate::volume::replica::Replica;

impl Shared {
    /// Purges on a thread of its own.
    pub(super) fn purge(self: &Arc<Self>) -> Result<()> {
        let progress = {
            let mut work = self.work.lock();
            if work.purge.running {
                return Err(Error::refused("replica is already purging snapshots"));
            }
            if work.rebuild.running {
                return Err(Error::refused(
                    "cannot purge snapshots while the replica is rebuilding",
                ));
            }
            work.purge = Job::begin(0);
            Arc::clone(&work.purge.progress)
        };
        let shared = Arc::clone(self);
        let purge = move || {
            let result = run(&shared.replica, &progress).map_err(|error| error.text());
            if let Err(error) = &result {
                tracing::warn!(%error, "the purge of snapshots ended");
            }
            shared.work.lock().purge.end(result);
        };
        let spawned = std::thread::Builder::new()
            .name("purge".into())
            .spawn(purge);
        if let Err(error) = spawned {
            self.work.lock().purge.end(Err(error.to_string()));
            return Err(Error::io("start", "a thread".as_ref(), error));
        }
        Ok(())
    }
}

/// The names of the snapshots that are to go, or all but the head that no user asked for.
fn snapshots(replica: &Replica, automatic: bool) -> Vec<String> {
    let status = replica.status();
    let Some(open) = status.open else {
        return Vec::new();
    };
    let wanted = open.disks.into_iter().filter(|(name, disk)| {
        let layer = *name != status.meta.head && *name != status.meta.backing_file_path;
        layer && (disk.meta.removed || automatic && !disk.meta.user_created)
    });
    wanted.map(|(name, _)| name).collect()
}

/// Removes what is to go.
fn run(replica: &Replica, progress: &Progress) -> Result<()> {
    for name in snapshots(replica, true) {
        replica.mark_as_removed(&name)?;
    }
    let mut looked_at = BTreeSet::new();
    loop {
        let marked = snapshots(replica, false);
        let left = marked
            .iter()
            .filter(|name| !looked_at.contains(*name))
            .count() as u64;
        let done = progress.done.load(Ordering::Relaxed);
        progress.total.store(done + 100 * left, Ordering::Relaxed);
        let mut next = None;
        for name in marked {
            let steps = replica.prepare_remove(&name)?;
            // What is directly below the head comes last, for something may be folded into it.
            let last = matches!(steps.first(), Some(Step::Prune { .. }));
            if !looked_at.contains(&name) && (next.is_none() || !last) {
                next = Some((name, steps));
            }
        }
        let Some((name, steps)) = next else {
            return Ok(());
        };
        if steps.is_empty() {
            tracing::info!(%name, "others are based on this snapshot; it stays");
        }
        for step in steps {
            take(replica, &step, progress)?;
        }
        looked_at.insert(name);
    }
}

fn take(replica: &Replica, step: &Step, progress: &Progress) -> Result<()> {
    tracing::info!(?step, "purging");
    match step {
        Step::Coalesce { source, target } => fold(replica, target, source, progress),
        Step::Replace { source, target } => replica.replace_disk(target, source),
        Step::Remove { source } => replica.remove_disk(source, false),
        Step::Prune { source, target } => prune(replica, target, source, progress),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::names::snapshot_file;
    use crate::testing::{MIB, place, serve};
    use crate::volume::change::Snapshot;
    use crate::volume::replica::{Options, now};

    fn purge(replica: &Replica) {
        let progress = Progress::start(0);
        run(replica, &progress).unwrap();
        assert_eq!(progress.done.load(Ordering::Relaxed) % 100, 0);
    }

    #[test]
    fn what_is_to_go_goes_and_nothing_else_changes() {
        let place = place();
        let served = serve(Options::new(place.path()), MIB, crate::data::Engine::Auto);
        let replica = &served.replica;
        let mut client = served.client();
        // Each layer has a sector of its own, and the first two are written in all of them.
        for layer in 0..5_u8 {
            client.write(0, &[10 + layer; 4096]).unwrap();
            client.write(4096, &[20 + layer; 100]).unwrap();
            client
                .write(8192 + i64::from(layer) * 4096, &[layer; 4096])
                .unwrap();
            if layer < 4 {
                let snapshot = Snapshot {
                    name: format!("s{layer}"),
                    user_created: layer != 1,
                    created: now(),
                    labels: None,
                };
                replica.snapshot(&snapshot).unwrap();
            }
            if layer == 2 {
                let size = replica.status().meta.size;
                replica.expand(size + MIB).unwrap();
            }
        }
        let before = client.read(0, 1 << 21).unwrap();
        let of_s2 = |client: &mut crate::testing::Client| {
            replica.revert(&snapshot_file("s2"), &now()).unwrap();
            client.read(0, 1 << 20).unwrap()
        };
        replica.mark_as_removed("s0").unwrap();
        replica.mark_as_removed("s3").unwrap();
        purge(replica);
        assert!(client.read(0, 1 << 21).unwrap() == before);
        // s1 and the one of the expansion went as well, for no user asked for them; what is below the head stays.
        let disks = replica.status().open.unwrap().disks;
        let names: Vec<_> = disks.keys().filter(|name| name.contains("snap")).collect();
        assert_eq!(names, [&snapshot_file("s2"), &snapshot_file("s3")]);
        // Of s3, which the head covers but for one sector.
        assert_eq!(disks[&snapshot_file("s3")].space, 4096);
        replica.reload().unwrap();
        assert!(client.read(0, 1 << 21).unwrap() == before);
        purge(replica);
        assert!(client.read(0, 1 << 21).unwrap() == before);
        let found = of_s2(&mut client);
        assert_eq!((found[0], found[4096], found[8192 + 4096]), (12, 22, 1));
        assert_eq!(found[8192 + 3 * 4096], 0);
        // A branch that nobody is on goes at once.
        purge(replica);
        let disks = replica.status().open.unwrap().disks;
        assert!(!disks.contains_key(&snapshot_file("s3")));
    }

    /// Cut off between folding and replacing, and after replacing and before removing.
    #[test]
    fn a_purge_that_was_cut_off_is_done_again() {
        for cut in 0..3 {
            let place = place();
            let served = serve(Options::new(place.path()), MIB, crate::data::Engine::Auto);
            let replica = &served.replica;
            let mut client = served.client();
            for layer in 0..3_u8 {
                client
                    .write(i64::from(layer) * 4096, &[layer + 1; 8192])
                    .unwrap();
                let snapshot = Snapshot {
                    name: format!("s{layer}"),
                    user_created: true,
                    created: now(),
                    labels: None,
                };
                if layer < 2 {
                    replica.snapshot(&snapshot).unwrap();
                }
            }
            let before = client.read(0, 1 << 20).unwrap();
            replica.mark_as_removed("s0").unwrap();
            let (lower, upper) = (snapshot_file("s0"), snapshot_file("s1"));
            if cut > 0 {
                fold(replica, &upper, &lower, &Progress::default()).unwrap();
                assert!(client.read(0, 1 << 20).unwrap() == before);
            }
            if cut > 1 {
                replica.close().unwrap();
                std::fs::rename(place.path().join(&lower), place.path().join("kept")).unwrap();
                std::fs::hard_link(place.path().join("kept"), place.path().join(&lower)).unwrap();
                std::fs::rename(place.path().join("kept"), place.path().join(&upper)).unwrap();
                replica.open().unwrap();
            }
            assert!(client.read(0, 1 << 20).unwrap() == before);
            purge(replica);
            assert!(client.read(0, 1 << 20).unwrap() == before);
            let disks = replica.status().open.unwrap().disks;
            assert!(!disks.contains_key(&lower) && disks.contains_key(&upper));
            replica.revert(&upper, &now()).unwrap();
            let found = client.read(0, 12288).unwrap();
            assert_eq!((found[0], found[4096], found[8192]), (1, 2, 2));
        }
    }
}
