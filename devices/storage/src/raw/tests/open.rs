//! What is refused, with which reason; locks; block devices.

use super::*;
use crate::OpenErrorKind;
use std::os::unix::fs::PermissionsExt;

fn kind(options: &RawOptions) -> OpenErrorKind {
    let error = RawDisk::open(options).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains(&*options.path.to_string_lossy()),
        "{message}"
    );
    error.kind
}

#[test]
fn what_is_no_image_is_refused_with_the_reason() {
    let [directory, _] = directories();
    let at = |name: &str| RawOptions::new(directory.path().join(name));
    assert_eq!(kind(&at("missing")), OpenErrorKind::Missing);
    assert_eq!(
        kind(&RawOptions::new(directory.path())),
        OpenErrorKind::Directory
    );
    assert_eq!(
        kind(&RawOptions::new("/dev/null")),
        OpenErrorKind::WrongKind
    );
    let fifo = at("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo.path)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(kind(&fifo), OpenErrorKind::WrongKind);
    File::create(directory.path().join("empty")).unwrap();
    assert_eq!(kind(&at("empty")), OpenErrorKind::Empty);
    std::fs::write(directory.path().join("odd"), [1; 1000]).unwrap();
    assert_eq!(
        kind(&at("odd")),
        OpenErrorKind::Size {
            size: 1000,
            block: 512
        }
    );
    let path = image(directory.path(), 4096 + 512);
    let block_size = |size| RawOptions {
        block_size: Some(size),
        ..RawOptions::new(&path)
    };
    assert_eq!(
        kind(&block_size(4096)),
        OpenErrorKind::Size {
            size: 4608,
            block: 4096
        }
    );
    for asked in [0, 256, 1000, 8192] {
        assert_eq!(
            kind(&block_size(asked)),
            OpenErrorKind::BlockSize { asked, device: 0 }
        );
    }
    // `sync_file_range` and the like aside, procfs knows no locks and no size; what matters is that it ends in an error.
    assert!(
        RawDisk::open(&RawOptions {
            read_only: true,
            ..RawOptions::new("/proc/self/maps")
        })
        .is_err()
    );
}

#[test]
fn permissions_are_reported_as_such() {
    let [directory, _] = directories();
    let path = image(directory.path(), 4096);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    let as_nobody = move || {
        if rustix::process::geteuid().is_root() {
            // Of this thread only.
            let nobody = rustix::fs::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(None, nobody, None).unwrap();
        }
        kind(&RawOptions::new(&path))
    };
    let found = std::thread::spawn(as_nobody).join().unwrap();
    assert_eq!(found, OpenErrorKind::Permission);
}

/// One writer, or any number of readers.
fn check_locks(path: &Path) {
    let writer = RawOptions::new(path);
    let reader = RawOptions {
        read_only: true,
        ..RawOptions::new(path)
    };
    let first = RawDisk::open(&writer).unwrap();
    assert_eq!(kind(&writer), OpenErrorKind::InUse { writing: true });
    assert_eq!(kind(&reader), OpenErrorKind::InUse { writing: false });
    // A queue holds the image, too.
    let queue = first.open_queue(4).unwrap();
    drop(first);
    assert_eq!(kind(&writer), OpenErrorKind::InUse { writing: true });
    drop(queue);
    let first = RawDisk::open(&reader).unwrap();
    let second = RawDisk::open(&reader).unwrap();
    assert_eq!(kind(&writer), OpenErrorKind::InUse { writing: true });
    drop((first, second));
    RawDisk::open(&writer).unwrap();
}

#[test]
fn locks_keep_a_second_writer_out() {
    for directory in directories() {
        check_locks(&image(directory.path(), 1 << 20));
    }
}

/// A loop device on a file; detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(backing: &Path, sector: u32) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector.to_string()])
            .arg(backing)
            .output()
            .ok()?;
        let name = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Self(name.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_block_device_is_a_disk() {
    let [directory, _] = directories();
    for sector in [512, 4096] {
        let backing = image(directory.path(), SIZE);
        let Some(device) = Loop::new(&backing, sector) else {
            return left_out(
                "loop devices of any sector size, which take root, losetup and the module loop",
            );
        };
        check_locks(&device.0);
        for engine in ENGINES {
            let disk = open_image(&device.0, engine, Direct::On);
            let capabilities = disk.capabilities();
            assert_eq!(
                (capabilities.size, capabilities.logical_block_size),
                (SIZE, sector)
            );
            let mut queue = disk.open_queue(4).unwrap();
            let data: Vec<u8> = (0..16384_u32).map(|i| (i / 3) as u8).collect();
            for gap in [0, 1] {
                let buffer = scattered(&[8192, 8192], gap);
                buffer.copy_from(&data);
                run(
                    &mut *queue,
                    Operation::Write {
                        offset: 4096,
                        buffer,
                    },
                )
                .unwrap();
                assert_eq!(read(&mut *queue, 4096, &[8192, 4096, 4096], gap), data);
            }
            for may_unmap in [false, true] {
                let (offset, length) = (8192, 4096);
                run(
                    &mut *queue,
                    Operation::WriteZeroes {
                        offset,
                        length,
                        may_unmap,
                    },
                )
                .unwrap();
                assert_eq!(read(&mut *queue, offset, &[4096], 0), vec![0; 4096]);
            }
            assert!(capabilities.discard);
            run(
                &mut *queue,
                Operation::Discard {
                    offset: 4096,
                    length: 4096,
                },
            )
            .unwrap();
            run(&mut *queue, Operation::Flush).unwrap();
            let unaligned = Operation::Read {
                offset: 512,
                buffer: Buffer::zeroed(512),
            };
            let expected = if sector == 512 {
                Ok(())
            } else {
                Err(IoError::OutOfRange)
            };
            assert_eq!(run(&mut *queue, unaligned), expected);
        }
        let asked = 512;
        let options = RawOptions {
            block_size: Some(asked),
            ..RawOptions::new(&device.0)
        };
        if sector == 4096 {
            assert_eq!(
                kind(&options),
                OpenErrorKind::BlockSize {
                    asked,
                    device: sector
                }
            );
        }
    }
}

#[test]
fn what_an_image_lacks_of_its_last_block_reads_as_zeros() {
    for directory in directories() {
        let path = directory.path().join("odd.iso");
        let data: Vec<u8> = (0..5000_u32).map(|i| (i % 251 + 1) as u8).collect();
        std::fs::write(&path, &data).unwrap();
        for engine in ENGINES {
            let options = RawOptions {
                read_only: true,
                engine,
                block_size: Some(2048),
                pad: true,
                ..RawOptions::new(&path)
            };
            let disk = RawDisk::open(&options).unwrap();
            assert_eq!(disk.size(), 3 * 2048);
            let mut queue = disk.open_queue(4).unwrap();
            let mut padded = data.clone();
            padded.resize(3 * 2048, 0);
            // Whole, and only the block that ends early, in pieces that do not fit the end.
            assert!(read(&mut *queue, 0, &[4096, 1000, 1048], 1) == padded);
            assert!(read(&mut *queue, 4096, &[900, 9, 1139], 0) == padded[4096..]);
            // What becomes shorter behind our back is not made up for.
            std::fs::write(&path, &data[..4500]).unwrap();
            let buffer = Buffer::zeroed(2048);
            let offset = 4096;
            let read = run(&mut *queue, Operation::Read { offset, buffer });
            assert_eq!(read, Err(IoError::Os(libc::EIO)));
            std::fs::write(&path, &data).unwrap();
        }
        // One that is written has no end but its own.
        let writable = RawOptions {
            pad: true,
            ..RawOptions::new(&path)
        };
        let (size, block) = (5000, 512);
        assert_eq!(kind(&writable), OpenErrorKind::Size { size, block });
    }
}
