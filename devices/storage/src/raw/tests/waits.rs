//! A user that waits in the queue itself, for its own descriptors too.

use std::time::Instant;

use super::*;

const SOON: Duration = Duration::from_millis(20);

fn queue(directory: &Path) -> Box<dyn DiskQueue> {
    let disk = open_image(&image(directory, 1 << 20), Engine::IoUring, Direct::Auto);
    disk.open_queue(4).unwrap()
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn read_of(tag: u64, offset: u64) -> Request {
    let buffer = Buffer::zeroed(512);
    Request {
        tag,
        operation: Operation::Read { offset, buffer },
    }
}

#[test]
fn each_write_to_what_is_watched_is_told_once_and_need_not_be_read() {
    let [directory, _] = directories();
    let mut queue = queue(directory.path());
    let (first, second) = (event(), event());
    assert!(queue.watch(crate::fd::borrow(&first), 5).unwrap());
    assert!(queue.watch(crate::fd::borrow(&second), 63).unwrap());
    assert_eq!(queue.wait(Some(SOON)).unwrap(), 0);
    for _ in 0..3 {
        first.write(1).unwrap();
        assert_eq!(queue.wait(None).unwrap(), 1 << 5);
        assert_eq!(queue.wait(Some(Duration::ZERO)).unwrap(), 0);
        assert_eq!(queue.wait(Some(SOON)).unwrap(), 0);
    }
    first.write(1).unwrap();
    second.write(1).unwrap();
    let mut told = 0;
    while told != 1 << 5 | 1 << 63 {
        told |= queue.wait(Some(DEADLINE)).unwrap();
    }
    queue.unwatch(5);
    first.write(1).unwrap();
    assert_eq!(queue.wait(Some(SOON)).unwrap(), 0);
    // The same name for another one, which has been written to already.
    assert!(queue.watch(crate::fd::borrow(&second), 5).unwrap());
    assert_eq!(queue.wait(Some(DEADLINE)).unwrap(), 1 << 5);
}

#[test]
fn somebody_else_wakes_the_one_who_waits() {
    let [directory, _] = directories();
    let mut queue = queue(directory.path());
    let event = event();
    assert!(queue.watch(crate::fd::borrow(&event), 1).unwrap());
    assert_eq!(queue.wait(Some(Duration::ZERO)).unwrap(), 0);
    let start = Instant::now();
    let other = std::thread::spawn(move || {
        std::thread::sleep(SOON);
        event.write(1).unwrap();
    });
    assert_eq!(queue.wait(Some(DEADLINE)).unwrap(), 1 << 1);
    assert!((SOON..DEADLINE).contains(&start.elapsed()));
    other.join().unwrap();
}

#[test]
fn requests_are_carried_out_while_their_user_waits() {
    let [directory, _] = directories();
    let mut queue = queue(directory.path());
    let event = event();
    assert!(queue.watch(crate::fd::borrow(&event), 1).unwrap());
    // More than the ring holds, and in between one that is refused without the kernel.
    for round in 0..3 {
        for tag in 0..200 {
            let offset = if tag == 7 { 1 << 30 } else { tag * 512 };
            queue.submit(read_of(tag, offset));
        }
        queue.kick();
        let mut done = Vec::new();
        while queue.in_flight() > 0 {
            queue.reap(&mut done);
            if queue.in_flight() > 0 {
                assert_eq!(queue.wait(Some(DEADLINE)).unwrap(), 0, "round {round}");
            }
        }
        let refused = |done: &Completion| done.result == Err(IoError::OutOfRange);
        assert_eq!(done.len(), 200);
        assert!(done.iter().all(|done| done.result.is_ok() || refused(done)));
        assert_eq!(done.iter().filter(|done| refused(done)).count(), 1);
    }
    // What is watched is not forgotten over a drain.
    event.write(1).unwrap();
    queue.submit(read_of(1, 0));
    let mut done = Vec::new();
    queue.drain(DEADLINE, &mut done).unwrap();
    assert_eq!(done.len(), 1);
    assert_eq!(queue.wait(Some(DEADLINE)).unwrap(), 1 << 1);
}

#[test]
fn nothing_is_watched_by_a_queue_that_cannot_wait_or_for_too_many() {
    let [directory, _] = directories();
    let event = event();
    let path = image(directory.path(), 1 << 20);
    let disk = open_image(&path, Engine::Threads, Direct::Auto);
    let mut queue = disk.open_queue(4).unwrap();
    assert!(!queue.watch(crate::fd::borrow(&event), 1).unwrap());
    assert!(queue.wait(Some(Duration::ZERO)).is_err());
    queue.unwatch(1);
    drop((queue, disk));
    let disk = open_image(&path, Engine::IoUring, Direct::Auto);
    let mut queue = disk.open_queue(4).unwrap();
    // Too late: the ring that it has cannot be exchanged any more.
    queue.submit(read_of(1, 0));
    assert!(!queue.watch(crate::fd::borrow(&event), 1).unwrap());
    let mut done = Vec::new();
    queue.drain(DEADLINE, &mut done).unwrap();
    assert!(queue.watch(crate::fd::borrow(&event), 64).is_err());
    for token in 0..8 {
        assert!(queue.watch(crate::fd::borrow(&event), token).unwrap());
    }
    assert!(queue.watch(crate::fd::borrow(&event), 9).is_err());
}
