//! Several queues of one image at once, and an image that grows.

use super::*;
use crate::raw::tests::{left_out, mount_tmpfs};
use crate::{Completion, Request, ResizeError};

const DEADLINE: Duration = Duration::from_secs(60);

/// Works on every fourth block from `lane` on, so that several lanes share each cluster. Returns what its blocks have in the end.
fn work_on_a_lane(disk: &Qcow2Disk, lane: u64, size: u64, rounds: u64) -> Vec<(u64, Option<u8>)> {
    const BLOCK: u64 = 4096;
    let mut queue = disk.open_queue(16).unwrap();
    let mut state = lane + 1;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let blocks = size / BLOCK / 4;
    let mut written = vec![None; blocks as usize];
    for round in 0..rounds {
        let mut batch = std::collections::BTreeMap::new();
        while batch.len() < 12 {
            batch.insert(random(blocks), random(10));
        }
        for (tag, (&block, &kind)) in (0..).zip(&batch) {
            let offset = (block * 4 + lane) * BLOCK;
            let (seed, length) = ((round * 7 + block) as u8, BLOCK);
            let operation = match kind {
                0 => Operation::Flush,
                1 | 2 => {
                    written[block as usize] = None;
                    Operation::WriteZeroes {
                        offset,
                        length,
                        may_unmap: kind == 1,
                    }
                }
                _ => {
                    written[block as usize] = Some(seed);
                    let buffer = Buffer::from(pattern(seed, BLOCK));
                    Operation::Write { offset, buffer }
                }
            };
            queue.submit(Request { tag, operation });
        }
        let mut done: Vec<Completion> = Vec::new();
        queue.drain(DEADLINE, &mut done).unwrap();
        assert_eq!(done.len(), 12);
        assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    }
    let place = |(block, seed): (u64, Option<u8>)| ((block * 4 + lane) * BLOCK, seed);
    (0..).zip(written).map(place).collect()
}

#[test]
fn four_queues_at_once_do_no_harm_to_each_other() {
    let directory = TempDir::new_in("/var/tmp").unwrap();
    let path = directory.path().join("image");
    let size = 32 << 20;
    for options in [
        "cluster_size=512",
        "cluster_size=64k",
        "cluster_size=2M",
        "compat=0.10",
    ] {
        for direct in [Direct::Auto, Direct::Off] {
            create(&path, options, size);
            let image = Qcow2Options {
                direct,
                ..Qcow2Options::new(&path)
            };
            let disk = open(&image);
            let lanes: Vec<_> = std::thread::scope(|scope| {
                let lane = |lane| {
                    let disk = &disk;
                    scope.spawn(move || work_on_a_lane(disk, lane, size, 40))
                };
                let lanes: Vec<_> = (0..4).map(lane).collect();
                lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
            });
            let now = contents(&disk);
            for (offset, seed) in lanes.into_iter().flatten() {
                let block = &now[offset as usize..offset as usize + 4096];
                let expected = seed.map_or(vec![0; 4096], |seed| pattern(seed, 4096));
                assert!(
                    block == expected,
                    "{options}: the block at byte {offset} differs"
                );
            }
            drop(disk);
            assert_sound(&path);
            assert!(seen_by_qemu(&path) == now, "{options}");
        }
    }
}

#[test]
fn writes_to_blocks_that_one_cluster_has_and_discards_at_once() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    create(&path, "", 8 << 20);
    let disk = open(&Qcow2Options::new(&path));
    std::thread::scope(|scope| {
        for writer in 0..3_u64 {
            let disk = &disk;
            scope.spawn(move || {
                let mut queue = disk.open_queue(4).unwrap();
                for round in 0..400 {
                    let offset = (round % 64) * 131_072 + writer * 4096;
                    let bytes = pattern(writer as u8, 4096);
                    write(&mut *queue, offset, &bytes).unwrap();
                    assert!(read(&mut *queue, offset, &[4096], 0) == bytes);
                }
            });
        }
        scope.spawn(|| {
            let mut queue = disk.open_queue(4).unwrap();
            for round in 0..400 {
                // The clusters between those that are written, which makes room that the writers take.
                let (offset, length) = ((round % 64) * 131_072 + 65_536, 65_536);
                write(&mut *queue, offset, &pattern(77, length)).unwrap();
                run(&mut *queue, Operation::Discard { offset, length }).unwrap();
            }
        });
    });
    drop(disk);
    assert_sound(&path);
}

#[test]
fn more_queues_than_imago_has_tables_for() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    // An L2 table for each 32 KiB.
    create(&path, "cluster_size=512", 64 << 20);
    let disk = open(&Qcow2Options::new(&path));
    let mut queues: Vec<_> = (0..64).map(|_| disk.open_queue(16).unwrap()).collect();
    for (index, queue) in (0..).zip(&mut queues) {
        for tag in 0..16 {
            let offset = (index * 16 + tag) * 65_536;
            let buffer = Buffer::from(pattern(index as u8, 4096));
            let operation = Operation::Write { offset, buffer };
            queue.submit(Request { tag, operation });
        }
        queue.kick();
    }
    for queue in &mut queues {
        let mut done = Vec::new();
        queue.drain(DEADLINE, &mut done).unwrap();
        assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    }
    drop(queues);
    drop(disk);
    assert_sound(&path);
}

#[test]
fn a_queue_can_be_dropped_with_requests_in_flight() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    create(&path, "", 64 << 20);
    for _ in 0..5 {
        let disk = open(&Qcow2Options::new(&path));
        let mut queue = disk.open_queue(64).unwrap();
        for tag in 0..64 {
            let buffer = Buffer::from(vec![1; 1 << 20]);
            let operation = Operation::Write {
                offset: tag << 20,
                buffer,
            };
            queue.submit(Request { tag, operation });
        }
        queue.kick();
    }
    assert_sound(&path);
}

#[test]
fn requests_that_cannot_be_are_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    create(&path, "", 1 << 20);
    let disk = open(&Qcow2Options::new(&path));
    let mut queue = disk.open_queue(4).unwrap();
    for offset in [1, 1 << 20, u64::MAX - 511] {
        assert_eq!(
            write(&mut *queue, offset, &[0; 512]),
            Err(IoError::OutOfRange)
        );
    }
    assert_eq!(write(&mut *queue, 0, &[]), Ok(()));
    drop(queue);
    drop(disk);
    let before = fs::read(&path).unwrap();
    let disk = open(&read_only(&path));
    let capabilities = disk.capabilities();
    assert!(capabilities.read_only && !capabilities.discard && !capabilities.write_zeroes);
    let mut queue = disk.open_queue(4).unwrap();
    assert_eq!(write(&mut *queue, 0, &[1; 512]), Err(IoError::ReadOnly));
    assert_eq!(run(&mut *queue, Operation::Flush), Ok(()));
    assert!(fs::read(&path).unwrap() == before);
}

#[test]
fn what_is_flushed_is_there_without_a_goodbye() {
    let directory = TempDir::new().unwrap();
    let [path, copy] = ["image", "copy"].map(|name| directory.path().join(name));
    create(&path, "", 4 << 20);
    let disk = open(&Qcow2Options::new(&path));
    let mut queue = disk.open_queue(4).unwrap();
    for round in 0..8 {
        write(&mut *queue, round * 500_224, &pattern(round as u8, 4096)).unwrap();
        run(&mut *queue, Operation::Flush).unwrap();
        // As it would be if the process ended now.
        fs::copy(&path, &copy).unwrap();
        assert_sound(&copy);
        let bytes = contents(&open(&Qcow2Options::new(&copy)));
        for earlier in 0..=round {
            let at = earlier as usize * 500_224;
            assert!(bytes[at..at + 4096] == pattern(earlier as u8, 4096));
        }
    }
    // What is not flushed may be lost, and does no harm: no cluster is free and used at once.
    for round in 0..8 {
        write(&mut *queue, round * 400_384, &pattern(50, 8192)).unwrap();
        fs::copy(&path, &copy).unwrap();
        open(&Qcow2Options::new(&copy));
    }
}

#[test]
fn an_image_grows_while_it_is_in_use() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    for options in ["cluster_size=512", "cluster_size=64k", "compat=0.10"] {
        create(&path, options, 1 << 20);
        let disk = open(&Qcow2Options::new(&path));
        let mut queue = disk.open_queue(4).unwrap();
        let mut now = pattern(1, 1 << 20);
        write(&mut *queue, 0, &now).unwrap();
        assert_eq!(
            write(&mut *queue, 1 << 20, &[1; 512]),
            Err(IoError::OutOfRange)
        );
        assert_eq!(disk.resize(Some(9 << 20)).unwrap(), 9 << 20);
        assert_eq!(disk.size(), 9 << 20);
        now.resize(9 << 20, 0);
        write(&mut *queue, (9 << 20) - 512, &[7; 512]).unwrap();
        now[(9 << 20) - 512..].fill(7);
        assert!(contents(&disk) == now);
        let resize = |size| disk.resize(Some(size)).map_err(|error| error.to_string());
        assert!(resize(8 << 20).unwrap_err().contains("cannot shrink"));
        assert!(resize((9 << 20) + 1).unwrap_err().contains("multiple"));
        let huge = resize(1 << 62).unwrap_err();
        assert!(huge.contains("cannot be changed"), "{huge}");
        assert_eq!(disk.resize(None).unwrap(), 9 << 20);
        drop(queue);
        drop(disk);
        assert_sound(&path);
        assert!(seen_by_qemu(&path) == now, "{options}");
        let error = open(&read_only(&path)).resize(Some(10 << 20)).unwrap_err();
        assert!(matches!(error, ResizeError::ReadOnly), "{error}");
    }
}

#[test]
fn what_a_longer_backing_file_has_does_not_appear_when_an_overlay_grows() {
    let directory = TempDir::new().unwrap();
    let [path, base] = ["image", "base"].map(|name| directory.path().join(name));
    fs::write(&base, pattern(1, 4 << 20)).unwrap();
    let arguments = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base"];
    let arguments = arguments.map(OsStr::new).into_iter();
    qemu_img(arguments.chain([path.as_os_str(), OsStr::new("1M")]));
    let format = BackingFormat::Raw;
    let backing = Some(Backing { path: base, format });
    let disk = open(&Qcow2Options {
        backing,
        ..Qcow2Options::new(&path)
    });
    disk.resize(Some(3 << 20)).unwrap();
    let now = contents(&disk);
    assert!(now[..1 << 20] == pattern(1, 1 << 20));
    assert!(now[1 << 20..].iter().all(|&byte| byte == 0));
    drop(disk);
    assert_sound(&path);
    assert!(seen_by_qemu(&path) == now);
}

/// Writes block after block until one fails; returns how many there were and why.
fn fill(queue: &mut dyn DiskQueue, from: u64) -> (u64, IoError) {
    let mut block = from;
    loop {
        if let Err(error) = write(queue, block * 4096, &pattern(block as u8, 4096)) {
            return (block, error);
        }
        block += 1;
    }
}

#[test]
fn a_full_file_system_is_enospc_and_no_harm() {
    let directory = TempDir::new().unwrap();
    let mount = directory.path().join("small");
    fs::create_dir(&mount).unwrap();
    if !mount_tmpfs(&mount) {
        return left_out("mounting a tmpfs, which takes root");
    }
    let result = std::panic::catch_unwind(|| {
        let [path, ballast] = ["image", "ballast"].map(|name| mount.join(name));
        create(&path, "cluster_size=4k", 8 << 20);
        fs::write(&ballast, vec![1; 256 << 10]).unwrap();
        let disk = open(&Qcow2Options::new(&path));
        let mut queue = disk.open_queue(4).unwrap();
        let (first, error) = fill(&mut *queue, 0);
        assert_eq!(error, IoError::Os(libc::ENOSPC));
        // What failed is written once there is room, as who holds it would have it.
        fs::remove_file(&ballast).unwrap();
        let (end, error) = fill(&mut *queue, first);
        assert_eq!(error, IoError::Os(libc::ENOSPC));
        assert!(end > first);
        let bytes = contents(&disk);
        for block in 0..end {
            let at = block as usize * 4096;
            assert!(
                bytes[at..at + 4096] == pattern(block as u8, 4096),
                "block {block}"
            );
        }
        // A last one with room for the tables of all.
        run(
            &mut *queue,
            Operation::Discard {
                offset: 0,
                length: 64 << 10,
            },
        )
        .unwrap();
        run(&mut *queue, Operation::Flush).unwrap();
        drop(queue);
        drop(disk);
        assert_sound(&path);
        let disk = open(&Qcow2Options::new(&path));
        assert!(contents(&disk)[64 << 10..] == bytes[64 << 10..]);
    });
    Command::new("umount").arg(&mount).status().unwrap();
    result.unwrap();
}
