//! A file system that answers nothing, as a dead server's does: no call of ours may wait for it without a deadline.

use std::time::Instant;

use super::*;

/// A frozen file system; thawed and unmounted when dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn command(program: &str, arguments: &[&str], path: &Path) -> bool {
        let output = Command::new(program).args(arguments).arg(path).output();
        output.is_ok_and(|output| output.status.success())
    }

    fn mount(directory: &Path) -> Option<Self> {
        let backing = directory.join("backing");
        File::create(&backing).unwrap().set_len(64 << 20).unwrap();
        let point = directory.join("mount");
        std::fs::create_dir(&point).unwrap();
        let mounted = Self::command("mkfs.ext4", &["-q"], &backing)
            && Self::command("mount", &["-o", "loop", backing.to_str().unwrap()], &point);
        mounted.then_some(Self(point))
    }

    fn freeze(&self) {
        assert!(Self::command("fsfreeze", &["--freeze"], &self.0));
    }

    fn thaw(&self) -> bool {
        Self::command("fsfreeze", &["--unfreeze"], &self.0)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        for _ in 0..50 {
            if Self::command("umount", &["-q"], &self.0) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn a_host_that_does_not_answer_hangs_nothing_and_loses_nothing() {
    let directory = TempDir::new().unwrap();
    let Some(frozen) = Frozen::mount(directory.path()) else {
        return left_out(
            "mounting an ext4 of its own, which takes root, mkfs.ext4 and the module loop",
        );
    };
    for ((engine, waits), direct) in USES
        .into_iter()
        .flat_map(|way| [(way, Direct::On), (way, Direct::Off)])
    {
        let path = image(&frozen.0, 1 << 20);
        let disk = open_image(&path, engine, direct);
        let mut kept = open_queue(&disk, 8, waits);
        let mut dropped = open_queue(&disk, 8, waits);
        frozen.freeze();
        let start = Instant::now();
        for (queue, byte) in [(&mut kept, 1), (&mut dropped, 2)] {
            let offset = u64::from(byte) * 4096;
            let buffer = Buffer::from(vec![byte; 4096]);
            let operation = Operation::Write { offset, buffer };
            queue.submit(Request { tag: 1, operation });
            let mut done = Vec::new();
            let drained = queue.drain(Duration::from_millis(200), &mut done);
            assert_eq!(drained.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
            assert_eq!((done.len(), queue.in_flight()), (0, 1));
        }
        drop(dropped);
        assert!(start.elapsed() < Duration::from_secs(5), "{engine:?}");
        assert!(frozen.thaw());
        let mut done = Vec::new();
        kept.drain(DEADLINE, &mut done).unwrap();
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].result, Ok(()));
        assert_eq!(read(&mut *kept, 4096, &[4096], 0), vec![1; 4096]);
        drop((kept, disk));
        // What the dropped queue left behind has ended, too, and let go of the image.
        open_image(&path, engine, direct);
    }
}
