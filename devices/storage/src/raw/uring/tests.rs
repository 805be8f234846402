//! What takes a look inside.

use std::path::Path;

use super::ring::{PAUSE, WATCH};
use super::*;
use crate::{Buffer, Disk, Operation, RawDisk, RawOptions};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A queue whose user waits in it.
fn open() -> (tempfile::NamedTempFile, EventFd, UringQueue) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let disk = RawDisk::open(&RawOptions::new(file.path())).unwrap();
    assert_eq!(disk.size(), 1 << 20);
    let mut queue = UringQueue::new(Arc::clone(&disk.image), 4).unwrap();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    assert!(queue.watch(crate::fd::borrow(&event)).unwrap());
    (file, event, queue)
}

fn write(queue: &mut UringQueue, tag: u64) {
    let buffer = Buffer::from(vec![0xee; 4096]);
    let offset = 4096 * tag;
    queue.submit(Request {
        tag,
        operation: Operation::Write { offset, buffer },
    });
}

fn is_armed(queue: &UringQueue) -> bool {
    queue.watch.as_ref().unwrap().armed
}

#[test]
fn a_watch_that_the_kernel_ends_is_asked_for_again() {
    let (_file, event, mut queue) = open();
    for _ in 0..3 {
        event.write(1).unwrap();
        assert!(queue.wait(None));
        let end = opcode::PollRemove::new(WATCH).build();
        assert!(queue.ring.push_extra(end, NOBODY));
        while is_armed(&queue) {
            queue.ring.turn(Some(PAUSE)).unwrap();
            queue.collect();
        }
        // It was written to before, which the kernel tells anew.
        assert!(queue.wait(None));
        assert!(is_armed(&queue));
    }
}

#[test]
fn who_waits_looks_for_himself_where_the_kernel_cannot_poll() {
    let (_file, _event, mut queue) = open();
    let watch = queue.watch.as_mut().unwrap();
    watch.hear(-libc::EINVAL, true, Path::new(""));
    let start = Instant::now();
    assert!(queue.wait(None));
    assert!((MOMENT..100 * MOMENT).contains(&start.elapsed()));
    write(&mut queue, 1);
    queue.kick();
    let mut done = Vec::new();
    queue.drain(Duration::from_secs(20), &mut done).unwrap();
    assert_eq!(done[0].result, Ok(()));
}

#[test]
fn who_waits_in_a_dead_ring_looks_for_himself() {
    let (_file, event, mut queue) = open();
    write(&mut queue, 1);
    queue.kick();
    queue.ring.turn(Some(Duration::ZERO)).unwrap();
    // Never handed over.
    let watch = queue.watch.as_mut().unwrap();
    assert!(watch.arm(&mut queue.ring));
    queue.ring.die(libc::EBADF);
    event.write(1).unwrap();
    for _ in 0..3 {
        let start = Instant::now();
        assert!(queue.wait(None));
        assert!(start.elapsed() < 100 * MOMENT);
    }
}

#[test]
fn the_disk_need_not_wait_until_all_is_submitted() {
    let (_file, _event, mut queue) = open();
    for tag in 0..BATCH as u64 + 1 {
        write(&mut queue, tag);
    }
    let waiting = queue.ready.len() + queue.ring.pushed.len();
    assert_eq!((waiting, queue.ring.submitted), (1, BATCH));
    queue.kick();
    let mut done = Vec::new();
    queue.drain(Duration::from_secs(20), &mut done).unwrap();
    assert_eq!(done.len(), BATCH + 1);
}

#[test]
fn a_kernel_that_takes_something_is_no_longer_busy() {
    let (_file, _event, mut queue) = open();
    queue.ring.busy = Some(Instant::now());
    // More than the submission queue holds: some of it is handed over at once.
    for tag in 0..20 {
        write(&mut queue, tag);
    }
    queue.kick();
    assert_eq!(queue.ring.busy, None);
    let mut done = Vec::new();
    queue.drain(Duration::from_secs(20), &mut done).unwrap();
    assert_eq!(done.len(), 20);
}

#[test]
fn what_a_dead_ring_has_answered_never_happens_and_what_the_kernel_has_is_awaited() {
    let (file, _event, mut queue) = open();
    write(&mut queue, 1);
    queue.kick();
    queue.ring.turn(Some(Duration::ZERO)).unwrap();
    for tag in 2..6 {
        write(&mut queue, tag);
    }
    queue.kick();
    assert_eq!(queue.ring.pushed.len(), 4);
    queue.ring.die(libc::EBADF);
    let mut done = Vec::new();
    queue.reap(&mut done);
    let end = Instant::now() + Duration::from_secs(20);
    while queue.in_flight() > 0 && Instant::now() < end {
        queue.wait(Some(Duration::from_secs(1)));
        queue.reap(&mut done);
    }
    let results = done.iter().map(|done| (done.tag, done.result));
    let results: std::collections::BTreeMap<_, _> = results.collect();
    assert_eq!((done.len(), results.len()), (5, 5));
    for (tag, result) in results {
        let expected = match tag {
            1 => Ok(()),
            _ => Err(IoError::Os(libc::EBADF)),
        };
        assert_eq!(result, expected);
    }
    // Refused from now on.
    write(&mut queue, 6);
    done.clear();
    queue.drain(Duration::from_secs(1), &mut done).unwrap();
    assert_eq!(done[0].result, Err(IoError::Os(libc::EBADF)));
    drop(queue);
    std::thread::sleep(10 * PAUSE);
    let bytes = std::fs::read(file.path()).unwrap();
    for tag in 0..8 {
        let expected = if tag == 1 { 0xee } else { 0 };
        assert_eq!(bytes[4096 * tag], expected, "block {tag}");
    }
}
