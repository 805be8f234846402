//! A host that forbids io_uring, as container runtimes do: by a seccomp filter, here on the thread of the test.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

use super::{image, read, run};
use crate::raw::{Direct, Engine, RawDisk, RawOptions};
use crate::{Buffer, Disk, OpenErrorKind, Operation};

fn forbid_io_uring() {
    let rules = BTreeMap::from([(libc::SYS_io_uring_setup, Vec::new())]);
    let eperm = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, eperm, TargetArch::x86_64);
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    apply_filter(&program).unwrap();
}

#[test]
fn without_io_uring_the_threads_take_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(directory.path(), 1 << 20);
    let test = move || {
        forbid_io_uring();
        let options = RawOptions {
            direct: Direct::Off,
            ..RawOptions::new(&path)
        };
        let forced = RawOptions {
            engine: Engine::IoUring,
            ..options.clone()
        };
        let refused = RawDisk::open(&forced).unwrap_err();
        assert_eq!(refused.kind, OpenErrorKind::IoUring);
        let disk = RawDisk::open(&options).unwrap();
        assert_eq!(disk.engine(), Engine::Threads);
        let mut queue = disk.open_queue(8).unwrap();
        let write = Operation::Write {
            offset: 4096,
            buffer: Buffer::from(b"paddock!".repeat(512)),
        };
        run(&mut *queue, write).unwrap();
        assert_eq!(read(&mut *queue, 4096, &[4096], 0), b"paddock!".repeat(512));
    };
    // The filter ends with its thread.
    std::thread::spawn(test).join().unwrap();
}

/// As where rings count as locked memory: the one to try with fits, a queue's does not.
#[test]
fn without_a_ring_for_a_queue_the_threads_take_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(directory.path(), 1 << 20);
    let options = RawOptions {
        read_only: true,
        ..RawOptions::new(&path)
    };
    let forced = RawOptions {
        engine: Engine::IoUring,
        ..options.clone()
    };
    let Ok(forced) = RawDisk::open(&forced) else {
        return; // The host of the test forbids io_uring itself, which the test above is about.
    };
    let disk = RawDisk::open(&options).unwrap();
    assert_eq!(disk.engine(), Engine::IoUring);
    let test = move || {
        forbid_io_uring();
        assert!(forced.open_queue(8).is_err());
        let mut queue = disk.open_queue(8).unwrap();
        assert_eq!(read(&mut *queue, 0, &[4096], 0).len(), 4096);
    };
    std::thread::spawn(test).join().unwrap();
}
