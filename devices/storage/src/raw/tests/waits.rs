//! A user that waits in the queue itself, for a descriptor of its own too.

use std::time::Instant;

use super::*;

const SOON: Duration = Duration::from_millis(30);

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn queue(directory: &Path, event: &EventFd) -> Box<dyn DiskQueue> {
    let disk = open_image(&image(directory, 1 << 20), Engine::IoUring, Direct::Auto);
    let mut queue = disk.open_queue(4).unwrap();
    assert!(queue.watch(crate::fd::borrow(event)).unwrap());
    queue
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
    let event = event();
    let mut queue = queue(directory.path(), &event);
    assert!(!queue.wait(Some(SOON)));
    for _ in 0..3 {
        event.write(1).unwrap();
        assert!(queue.wait(None));
        assert!(!queue.wait(Some(Duration::ZERO)));
        let start = Instant::now();
        assert!(!queue.wait(Some(SOON)));
        assert!(start.elapsed() >= SOON);
    }
}

#[test]
fn somebody_else_wakes_the_one_who_waits() {
    let [directory, _] = directories();
    let event = event();
    let mut queue = queue(directory.path(), &event);
    let start = Instant::now();
    let other = std::thread::spawn(move || {
        std::thread::sleep(SOON);
        event.write(1).unwrap();
    });
    assert!(queue.wait(Some(DEADLINE)));
    assert!((SOON..DEADLINE).contains(&start.elapsed()));
    other.join().unwrap();
}

#[test]
fn requests_are_carried_out_while_their_user_waits() {
    let [directory, _] = directories();
    let event = event();
    let mut queue = queue(directory.path(), &event);
    for _ in 0..3 {
        // More than the ring holds, and in between one that is refused without the kernel.
        for tag in 0..200 {
            let offset = if tag == 7 { 1 << 30 } else { tag * 512 };
            queue.submit(read_of(tag, offset));
        }
        queue.kick();
        let mut done = Vec::new();
        queue.reap(&mut done);
        while queue.in_flight() > 0 {
            assert!(!queue.wait(Some(DEADLINE)), "nothing was written");
            queue.reap(&mut done);
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
    assert!(queue.wait(Some(DEADLINE)));
}

#[test]
fn a_queue_that_cannot_wait_says_so() {
    let [directory, _] = directories();
    let event = event();
    let path = image(directory.path(), 1 << 20);
    let disk = open_image(&path, Engine::Threads, Direct::Auto);
    let mut queue = disk.open_queue(4).unwrap();
    assert!(!queue.watch(crate::fd::borrow(&event)).unwrap());
    drop((queue, disk));
    let disk = open_image(&path, Engine::IoUring, Direct::Auto);
    let mut queue = disk.open_queue(4).unwrap();
    // Too late: the ring that it has cannot be exchanged any more.
    queue.submit(read_of(1, 0));
    assert!(!queue.watch(crate::fd::borrow(&event)).unwrap());
    let mut done = Vec::new();
    queue.drain(DEADLINE, &mut done).unwrap();
    assert_eq!(done.len(), 1);
}
