//! Both engines, with and without the page cache, on two file systems and a block device, against a model in memory.
#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers of these tests are small"
)]

mod forbidden;
mod frozen;
mod model;
mod open;
mod passed;
mod reopen;
mod resize;
mod waits;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Direct, Engine, RawDisk, RawOptions};
use crate::testing::{alias, read, run, scattered};
use crate::{Buffer, Completion, Disk, DiskQueue, IoError, Operation, Request};

const DEADLINE: Duration = Duration::from_secs(20);

/// A directory on a disk file system, and one on tmpfs, which has no O_DIRECT before Linux 6.6 and no zero-range.
fn directories() -> [TempDir; 2] {
    ["/var/tmp", "/dev/shm"].map(|parent| TempDir::new_in(parent).unwrap())
}

fn image(directory: &Path, size: u64) -> PathBuf {
    let path = directory.join("image");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn open_image(path: &Path, engine: Engine, direct: Direct) -> RawDisk {
    RawDisk::open(&RawOptions {
        engine,
        direct,
        ..RawOptions::new(path)
    })
    .unwrap()
}

const ENGINES: [Engine; 2] = [Engine::IoUring, Engine::Threads];

/// How queues are used: by which engine, and whether their user waits in them.
const USES: [(Engine, bool); 3] = [
    (Engine::IoUring, false),
    (Engine::IoUring, true),
    (Engine::Threads, false),
];

/// Opens a queue, and has it watch something of ours if its user is to wait in it.
fn open_queue(disk: &RawDisk, depth: u16, waits: bool) -> Box<dyn DiskQueue> {
    let mut queue = disk.open_queue(depth).unwrap();
    if waits {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let can = queue.watch(crate::fd::borrow(&event)).unwrap();
        assert!(can, "the tests' host has Linux 6.1 or newer");
    }
    queue
}

const BLOCKS_PER_REGION: u64 = 48;
const REGIONS: u64 = 12;
const SIZE: u64 = REGIONS * BLOCKS_PER_REGION * 512;

/// Cuts a length into `count` parts, most of them no multiple of anything.
fn cut(length: usize, count: usize) -> Vec<usize> {
    let part = length / count;
    let mut lengths = vec![part; count - 1];
    lengths.push(length - part * (count - 1));
    lengths
}

#[test]
fn long_requests_are_carried_out_in_steps() {
    for directory in directories() {
        for ((engine, waits), gap) in USES.into_iter().flat_map(|way| [(way, 0), (way, 1)]) {
            let length = 9 << 20;
            let path = image(directory.path(), 2 * length as u64);
            let disk = open_image(&path, engine, Direct::Auto);
            let mut queue = open_queue(&disk, 4, waits);
            let data: Vec<u8> = (0..length).map(|i| (i * 7 / 512) as u8).collect();
            // 2000 segments are more than one system call takes.
            let lengths = cut(length, 2000);
            let buffer = scattered(&lengths, gap);
            buffer.copy_from(&data);
            let offset = 4096;
            run(&mut *queue, Operation::Write { offset, buffer }).unwrap();
            assert!(read(&mut *queue, offset, &lengths, gap) == data);
            run(
                &mut *queue,
                Operation::WriteZeroes {
                    offset,
                    length: length as u64,
                    may_unmap: false,
                },
            )
            .unwrap();
            assert!(
                read(&mut *queue, offset, &lengths, gap)
                    .iter()
                    .all(|&byte| byte == 0)
            );
        }
    }
}

#[test]
fn more_requests_than_the_queue_is_deep_all_complete() {
    let [directory, _] = directories();
    for (engine, waits) in USES {
        let disk = open_image(&image(directory.path(), 1 << 20), engine, Direct::Auto);
        let mut queue = open_queue(&disk, 2, waits);
        for tag in 0..500 {
            // Every other one needs a bounce buffer, of which there are fewer.
            let buffer = scattered(&[4096], tag as usize % 2);
            let offset = tag % 256 * 4096;
            queue.submit(Request {
                tag,
                operation: Operation::Read { offset, buffer },
            });
        }
        assert_eq!(queue.in_flight(), 500);
        let mut done = Vec::new();
        queue.drain(DEADLINE, &mut done).unwrap();
        let mut tags: Vec<_> = done.iter().map(|completion| completion.tag).collect();
        tags.sort_unstable();
        assert!(tags.into_iter().eq(0..500));
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        assert_eq!(queue.in_flight(), 0);
    }
}

#[test]
fn the_event_is_readable_exactly_while_there_is_something_to_reap() {
    let [directory, _] = directories();
    for engine in ENGINES {
        let disk = open_image(&image(directory.path(), 1 << 20), engine, Direct::Auto);
        let mut queue = disk.open_queue(2).unwrap();
        let readable = |queue: &dyn DiskQueue, wait: Duration| {
            crate::fd::wait_readable(queue.completion_event(), std::time::Instant::now() + wait)
                .is_ok()
                && crate::fd::is_readable(queue.completion_event())
        };
        // The last one is refused without a system call.
        for offset in [0, 4096, 1 << 30] {
            assert!(!readable(&*queue, Duration::from_millis(5)));
            let buffer = Buffer::zeroed(512);
            queue.submit(Request {
                tag: offset,
                operation: Operation::Read { offset, buffer },
            });
            queue.kick();
            assert!(readable(&*queue, DEADLINE), "{engine:?} {offset}");
            let mut done = Vec::new();
            queue.reap(&mut done);
            assert_eq!(done.len(), 1);
        }
        assert!(!readable(&*queue, Duration::from_millis(5)));
    }
}

#[test]
fn a_queue_can_be_dropped_with_requests_in_flight() {
    let [directory, _] = directories();
    for (engine, waits) in USES {
        let path = image(directory.path(), 64 << 20);
        let disk = open_image(&path, engine, Direct::Auto);
        for _ in 0..20 {
            let mut queue = open_queue(&disk, 64, waits);
            for tag in 0..64 {
                let buffer = Buffer::from(vec![1; 256 << 10]);
                let offset = tag * (256 << 10);
                queue.submit(Request {
                    tag,
                    operation: Operation::Write { offset, buffer },
                });
            }
            queue.submit(Request {
                tag: 64,
                operation: Operation::Flush,
            });
            queue.kick();
        }
        drop(disk);
        // Everything has let go of the image, so it can be locked again.
        open_image(&path, engine, Direct::Auto);
    }
}

#[test]
fn discard_frees_space_and_zeroes_read_back() {
    let [directory, _] = directories();
    for (engine, waits) in USES {
        let path = image(directory.path(), 8 << 20);
        let disk = open_image(&path, engine, Direct::Auto);
        assert!(disk.capabilities().discard);
        let mut queue = open_queue(&disk, 4, waits);
        let buffer = Buffer::from(vec![0xab; 8 << 20]);
        run(&mut *queue, Operation::Write { offset: 0, buffer }).unwrap();
        run(&mut *queue, Operation::Flush).unwrap();
        let full = path.metadata().unwrap().blocks();
        run(
            &mut *queue,
            Operation::Discard {
                offset: 1 << 20,
                length: 4 << 20,
            },
        )
        .unwrap();
        assert!(path.metadata().unwrap().blocks() <= full - (4 << 20) / 512);
        let (offset, length) = (6 << 20, 1 << 20);
        run(
            &mut *queue,
            Operation::WriteZeroes {
                offset,
                length,
                may_unmap: true,
            },
        )
        .unwrap();
        assert!(path.metadata().unwrap().blocks() <= full - (5 << 20) / 512);
        assert_eq!(read(&mut *queue, offset, &[1 << 20], 0), vec![0; 1 << 20]);
        assert_eq!(read(&mut *queue, 0, &[512], 0), vec![0xab; 512]);
        assert_eq!(path.metadata().unwrap().len(), 8 << 20);
    }
}

#[test]
fn a_file_that_shrinks_under_a_disk_is_an_io_error() {
    let [directory, _] = directories();
    for (engine, waits) in USES {
        for direct in [Direct::Auto, Direct::Off] {
            let path = image(directory.path(), 1 << 20);
            let disk = open_image(&path, engine, direct);
            let mut queue = open_queue(&disk, 4, waits);
            OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(4096 + 512)
                .unwrap();
            let buffer = Buffer::zeroed(8192);
            let result = run(&mut *queue, Operation::Read { offset: 0, buffer });
            assert_eq!(result, Err(IoError::Os(libc::EIO)));
        }
    }
}

#[test]
fn a_full_file_system_is_enospc() {
    let directory = TempDir::new().unwrap();
    let mount = directory.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    if !mount_tmpfs(&mount) {
        return left_out("mounting a tmpfs, which takes root");
    }
    let result = std::panic::catch_unwind(|| {
        for (engine, waits) in USES {
            let path = image(&mount, 8 << 20);
            let disk = open_image(&path, engine, Direct::Auto);
            let mut queue = open_queue(&disk, 4, waits);
            let buffer = Buffer::from(vec![1; 4 << 20]);
            let result = run(&mut *queue, Operation::Write { offset: 0, buffer });
            assert_eq!(result, Err(IoError::Os(libc::ENOSPC)));
        }
    });
    Command::new("umount").arg(&mount).status().unwrap();
    result.unwrap();
}

/// A test is left out for want of something on the host. That is for a developer's own machine: in CI it fails.
pub(crate) fn left_out(missing: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "this host lacks what the test needs: {missing}"
    );
    eprintln!("left out: this host lacks {missing}");
}

pub(crate) fn mount_tmpfs(path: &Path) -> bool {
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "none"])
        .arg(path)
        .status();
    status.is_ok_and(|status| status.success())
}

#[test]
fn a_read_only_disk_refuses_to_write() {
    let [directory, _] = directories();
    for (engine, waits) in USES {
        let path = image(directory.path(), 1 << 20);
        let options = RawOptions {
            read_only: true,
            engine,
            ..RawOptions::new(&path)
        };
        let disk = RawDisk::open(&options).unwrap();
        let capabilities = disk.capabilities();
        assert!(capabilities.read_only && !capabilities.discard && !capabilities.write_zeroes);
        let mut queue = open_queue(&disk, 4, waits);
        let (offset, length) = (0, 512);
        for operation in [
            Operation::Write {
                offset,
                buffer: Buffer::zeroed(512),
            },
            Operation::Discard { offset, length },
            Operation::WriteZeroes {
                offset,
                length,
                may_unmap: false,
            },
        ] {
            assert_eq!(run(&mut *queue, operation), Err(IoError::ReadOnly));
        }
        assert_eq!(run(&mut *queue, Operation::Flush), Ok(()));
        assert_eq!(read(&mut *queue, 0, &[512], 0), vec![0; 512]);
    }
}
