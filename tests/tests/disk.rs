//! Virtio-blk on a raw image: what the guest writes is what the file holds, and trouble reaches the guest as an error.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use paddock_probe::blocks::{Stamp, fill};
use paddock_probe::protocol::{
    Area, BlocksDiscard, BlocksFlush, BlocksRead, BlocksVerify, BlocksWrite, BlocksZero, Exec,
    Range,
};
use paddock_tests::host::{SmallFileSystem, run};
use paddock_tests::{Vm, amount, blocks, files};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BLOCK: usize = 4096;
const LONG: Duration = Duration::from_secs(300);

/// A directory with an image of `size` bytes.
fn image(size: u64) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = files::empty_disk(directory.path(), "disk.img", size);
    (directory, path)
}

fn disk(path: &std::path::Path, more: &str) -> [String; 2] {
    [
        "--disk".to_owned(),
        format!("path={}{more}", path.display()),
    ]
}

fn area(count: u64) -> Area {
    Area {
        count: Some(count),
        ..Area::new("/dev/vda", GIB, 42)
    }
}

/// Has the guest write blocks all over its disk by 4 queues, flush, and read them back.
fn write_and_verify(vm: &Vm, count: u64) -> Area {
    let area = area(count);
    blocks::write(vm, &area);
    blocks::verify(vm, &area);
    area
}

/// Random writes on every queue, seen the same from both sides.
fn writes_are_the_same_from_both_sides(options: &str) {
    let (_directory, path) = image(GIB);
    let vm = Vm::builder()
        .cpus(&4)
        .args(disk(
            &path,
            &format!(",queues=4,serial=PADDOCK-0001{options}"),
        ))
        .boot();
    let info = vm.info();
    let found = &info.disks[0];
    assert_eq!((found.size, found.queues, found.read_only), (GIB, 4, false));
    assert_eq!(found.serial, "PADDOCK-0001");
    let area = write_and_verify(&vm, amount(800, 12_000));
    // Without a word to the guest: the data is in the file now, and only there where it was written.
    let file = File::open(&path).unwrap();
    let count = blocks::verify_file(&file, &area);
    let allocated = file.metadata().unwrap().blocks() * 512;
    assert!(
        allocated < count * 4096 * 2,
        "{allocated} bytes are allocated"
    );
    vm.power_off();
}

#[test]
fn random_writes_on_4_queues_with_io_uring() {
    writes_are_the_same_from_both_sides(",engine=io_uring");
}

#[test]
fn blocks_of_4096_bytes_are_the_same_from_both_sides() {
    let (_directory, path) = image(64 * MIB);
    let file = File::options().write(true).open(&path).unwrap();
    let stamp = Stamp {
        seed: 7,
        generation: 3,
    };
    let mut block = vec![0; BLOCK];
    for index in 0..64 * MIB / BLOCK as u64 {
        fill(&mut block, index * BLOCK as u64, stamp);
        file.write_all_at(&block, index * BLOCK as u64).unwrap();
    }
    let more = ",block-size=4096";
    let vm = Vm::builder().cpus(&4).args(disk(&path, more)).boot();
    let block = vm.shell("cat /sys/block/vda/queue/logical_block_size");
    assert_eq!(block, "4096\n");
    let mut area = Area::new("/dev/vda", 64 * MIB, 7);
    area.generation = 3;
    let mut verify = BlocksVerify::new(area);
    verify.issue.jobs = 8;
    let reply = vm.call_within(verify, LONG);
    assert!(reply.is_clean(), "{reply:?}");
    assert_eq!(reply.bytes, 64 * MIB);
    // And the other way round.
    let area = Area {
        generation: 4,
        count: Some(amount(400, 8000)),
        ..Area::new("/dev/vda", 64 * MIB, 7)
    };
    blocks::write(&vm, &area);
    blocks::verify(&vm, &area);
    let file = File::open(&path).unwrap();
    assert_eq!(Some(blocks::verify_file(&file, &area)), area.count);
    vm.power_off();
}

#[test]
fn random_writes_on_4_queues_of_a_qcow2_image() {
    // An overlay: what is around a block that the guest writes is copied.
    let (directory, base) = image(GIB);
    let path = directory.path().join("disk.qcow2");
    run(&format!(
        "qemu-img create -q -f qcow2 -F raw -b {} {}",
        base.display(),
        path.display()
    ));
    let spec = directory.path().join("vm.json");
    let disk = serde_json::json!({"path": path, "format": "qcow2", "queues": 4, "backing": {"path": base}});
    let text = serde_json::json!({"disks": [disk]}).to_string();
    std::fs::write(&spec, text).unwrap();
    let boot = || {
        let builder = Vm::builder().cpus(&4);
        builder.args(["--spec", spec.to_str().unwrap()]).boot()
    };
    let vm = boot();
    assert_eq!(vm.info().disks[0].size, GIB);
    let range = Range {
        path: "/dev/vda".to_owned(),
        offset: 0,
        length: 64 * MIB,
    };
    let discard = BlocksDiscard { range };
    assert_eq!(vm.call(discard).error, None);
    let area = write_and_verify(&vm, amount(600, 8000));
    // What was flushed is there when the process is gone from one moment to the next, and the image is as sound as before.
    drop(vm);
    let vm = boot();
    blocks::verify(&vm, &area);
    vm.power_off();
    let raw = directory.path().join("disk.raw");
    run(&format!("qemu-img check -f qcow2 {}", path.display()));
    run(&format!(
        "qemu-img convert -f qcow2 -O raw {} {}",
        path.display(),
        raw.display()
    ));
    assert_eq!(
        blocks::verify_file(&File::open(&raw).unwrap(), &area),
        area.count.unwrap()
    );
    assert_eq!(std::fs::metadata(&base).unwrap().blocks(), 0);
}

/// Flush requests that a block device has completed (Documentation/block/stat, field 16).
fn flushes(device: &str) -> u64 {
    let name = device.trim_start_matches("/dev/");
    let stat = run(&format!("cat /sys/block/{name}/stat"));
    let field = stat.split_whitespace().nth(15).unwrap();
    field.parse().unwrap()
}

#[test]
fn flush_reaches_the_device() {
    let (_directory, path) = image(64 * MIB);
    let device = run(&format!("losetup --find --show {}", path.display()));
    let device = device.trim();
    for engine in ["io_uring", "threads"] {
        let vm = Vm::builder()
            .args(disk(device.as_ref(), &format!(",engine={engine}")))
            .boot();
        assert_eq!(vm.info().disks[0].cache, "write back");
        let written = vm.call(BlocksWrite::new(Area::new("/dev/vda", MIB, 1)));
        assert!(written.is_clean(), "{written:?}");
        let before = flushes(device);
        let reply = vm.call(BlocksFlush {
            path: "/dev/vda".to_owned(),
        });
        assert_eq!(reply.error, None);
        assert!(
            flushes(device) > before,
            "{engine}: no flush below the disk"
        );
        vm.power_off();
    }
    run(&format!("losetup --detach {device}"));
}

#[test]
fn discard_shrinks_the_file_and_zeroes_are_zeroes() {
    let (_directory, path) = image(GIB);
    let vm = Vm::builder().args(disk(&path, "")).boot();
    let mut area = Area::new("/dev/vda", 64 * MIB, 9);
    area.block_size = 256 << 10;
    let reply = vm.call_within(BlocksWrite::new(area), LONG);
    assert!(reply.is_clean(), "{reply:?}");
    let allocated = || std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(allocated() >= 64 * MIB, "{} allocated", allocated());
    let range = |offset, length| Range {
        path: "/dev/vda".to_owned(),
        offset,
        length,
    };
    let reply = vm.call(BlocksDiscard {
        range: range(0, 32 * MIB),
    });
    assert_eq!(reply.error, None);
    assert!(
        allocated() <= 33 * MIB,
        "{} bytes are still allocated after the discard",
        allocated()
    );
    for unmap in [false, true] {
        let reply = vm.call(BlocksZero {
            range: range(40 * MIB, 4 * MIB),
            unmap,
        });
        assert_eq!(reply.error, None, "unmap {unmap}");
    }
    let file = File::open(&path).unwrap();
    let mut zeroed = vec![1; usize::try_from(4 * MIB).unwrap()];
    file.read_exact_at(&mut zeroed, 40 * MIB).unwrap();
    assert!(zeroed.iter().all(|byte| *byte == 0));
    // Next to it, nothing was touched.
    let reply = vm.call(BlocksRead {
        range: range(39 * MIB, 4096),
        direct: true,
    });
    assert_eq!(reply.error, None);
    assert!(reply.data.0.iter().any(|byte| *byte != 0));
    vm.power_off();
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let (_directory, path) = image(64 * MIB);
    let vm = Vm::builder().args(disk(&path, ",readonly=on")).boot();
    assert!(vm.info().disks[0].read_only);
    // Linux itself will not open it for writing; a command that ignores that must fail too.
    let tried = vm.call(Exec::shell(
        "blockdev --setrw /dev/vda; dd if=/dev/zero of=/dev/vda bs=4096 count=1 oflag=direct",
    ));
    assert!(!tried.success(), "{tried:?}");
    assert_eq!(std::fs::metadata(&path).unwrap().blocks(), 0);
    let read = vm.shell("dd if=/dev/vda bs=1M count=1 | wc -c");
    assert_eq!(read.trim(), "1048576");
    vm.power_off();
}

#[test]
fn a_disk_that_fills_up_gives_an_error_and_the_vm_lives() {
    let directory = tempfile::tempdir().unwrap();
    let small = SmallFileSystem::new(directory.path().join("small"), "16m");
    let path = small.path().join("disk.img");
    File::create(&path).unwrap().set_len(GIB).unwrap();
    let vm = Vm::builder().args(disk(&path, "")).boot();
    let mut area = Area::new("/dev/vda", 64 * MIB, 5);
    area.block_size = 1 << 20;
    let reply = vm.call_within(BlocksWrite::new(area), LONG);
    assert!(!reply.errors.is_empty(), "{reply:?}");
    for error in &reply.errors {
        // ENOSPC is not in virtio's vocabulary: the guest sees EIO.
        assert_eq!(error.errno, 5, "{error:?}");
    }
    assert!(reply.blocks > 4, "some fitted: {reply:?}");
    assert_eq!(vm.shell("echo alive").trim(), "alive");
    vm.power_off();
}

#[test]
fn a_disk_with_bad_blocks_gives_an_error_and_the_vm_lives() {
    // Below the disk, device-mapper: 8 MiB that work, 8 MiB that answer every request with EIO, 8 MiB that work.
    let (_directory, path) = image(24 * MIB);
    let sectors = 16384;
    let device = run(&format!("losetup --find --show {}", path.display()));
    let device = device.trim();
    run(&format!(
        "printf '0 {sectors} linear {device} 0\\n{sectors} {sectors} error\\n{} {sectors} linear {device} {}\\n' | \
         dmsetup create --noudevsync paddock-bad",
        2 * sectors,
        2 * sectors
    ));
    let name = run("dmsetup info --columns --noheadings -o blkdevname paddock-bad");
    let bad_device = format!("/dev/{}", name.trim());
    let vm = Vm::builder().args(disk(bad_device.as_ref(), "")).boot();
    let bad = vm.call(BlocksRead {
        range: Range {
            path: "/dev/vda".to_owned(),
            offset: 9 * MIB,
            length: 4096,
        },
        direct: true,
    });
    assert_eq!(bad.error.map(|error| error.errno), Some(5));
    for offset in [0, 16 * MIB] {
        let mut area = Area::new("/dev/vda", 4 * MIB, 11);
        area.offset = offset;
        let reply = vm.call(BlocksWrite::new(area.clone()));
        assert!(reply.is_clean(), "{reply:?}");
        let reply = vm.call(BlocksVerify::new(area));
        assert!(reply.is_clean(), "{reply:?}");
    }
    vm.power_off();
    run("dmsetup remove paddock-bad");
    run(&format!("losetup --detach {device}"));
}

#[test]
fn a_disk_has_one_writer() {
    let (_directory, path) = image(64 * MIB);
    let vm = Vm::builder().args(disk(&path, "")).boot();
    let kernel = files::guest("vmlinuz");
    let (status, log) = paddock_tests::vm::refused(&[
        "--kernel",
        paddock_tests::vm::text(&kernel),
        "--disk",
        paddock_tests::vm::text(&path),
    ]);
    assert_eq!(status, Some(1), "{log}");
    assert!(log.contains("disk.img"), "{log}");
    vm.power_off();
}

/// Of what CI does once, the rest.
mod soak {
    use super::*;

    #[test]
    fn random_writes_on_4_queues_with_threads() {
        writes_are_the_same_from_both_sides(",engine=threads");
    }
}
