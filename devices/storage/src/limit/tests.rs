//! The bucket by itself, and queues with limits on disks in memory.

use proptest::prelude::*;

use super::*;
use crate::testing::{Fault, MemoryDisk};
use crate::{Buffer, Completion, IoError, Request};

const PATIENCE: Duration = Duration::from_secs(20);

fn rate(per_second: u64, burst: u64) -> Rate {
    let per_second = NonZeroU64::new(per_second).unwrap();
    Rate { per_second, burst }
}

fn read(tag: u64, length: usize) -> Request {
    let buffer = Buffer::zeroed(length);
    Request {
        tag,
        operation: Operation::Read { offset: 0, buffer },
    }
}

proptest! {
    /// In any time, no more passes than the burst, what the rate gives in that time, and one request; and whoever waits as it is told to passes.
    #[test]
    fn a_bucket_keeps_its_rate(
        per_second in 1..10_000_000_u64,
        burst in 0..10_000_000_u64,
        steps in proptest::collection::vec((0..2_000_000_u64, 1..5_000_000_u64), 1..200),
    ) {
        let start = Instant::now();
        let rate = rate(per_second, burst);
        let mut bucket = Bucket::new(rate, start);
        let capacity = burst.max(per_second / 1000 + 1);
        let (mut now, mut passed, mut largest) = (start, 0_u128, 0);
        for (pause, cost) in steps {
            now += Duration::from_micros(pause);
            if let Some(wait) = bucket.wait(now) {
                prop_assert!(wait > Duration::ZERO);
                now += wait;
                prop_assert_eq!(bucket.wait(now), None);
            }
            bucket.take(now, cost);
            passed += u128::from(cost);
            largest = largest.max(cost);
            let given = (now - start).as_nanos() * u128::from(per_second) / 1_000_000_000;
            let most = u128::from(capacity) + given + u128::from(largest) + 1;
            prop_assert!(passed <= most, "{passed} of {most}");
        }
    }

    /// Nothing overflows.
    #[test]
    fn a_bucket_takes_any_numbers(per_second in 1..u64::MAX, burst: u64, cost: u64, pause: u32) {
        let start = Instant::now();
        let mut bucket = Bucket::new(rate(per_second, burst), start);
        for _ in 0..3 {
            bucket.take(start, cost);
            let _ = bucket.wait(start + Duration::from_secs(pause.into()));
        }
    }
}

/// Two queues: one has small requests without end, the other one that is larger than what the first ever leaves in the bucket.
#[test]
fn a_large_request_is_not_overtaken_for_ever() {
    let start = Instant::now();
    let mut bucket = Bucket::new(rate(10 << 20, 1 << 20), start);
    let mut now = start;
    bucket.take(now, 1 << 20);
    for _ in 0..1000 {
        now += bucket.wait(now).unwrap_or_default();
        bucket.take(now, 4096);
    }
    // The next that asks when there is anything is the large one.
    let wait = bucket.wait(now).unwrap();
    assert!(wait <= Duration::from_millis(1), "{wait:?}");
    bucket.take(now + wait, 1 << 20);
    let paid = bucket.wait(now + wait).unwrap();
    assert!(paid >= Duration::from_millis(99), "{paid:?}");
}

/// Serves the queue until so many were answered, by what wakes its user.
fn answers(queue: &mut dyn DiskQueue, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    let end = Instant::now() + PATIENCE;
    queue.kick();
    while done.len() < count {
        assert!(Instant::now() < end, "{} of {count}", done.len());
        crate::fd::wait_readable(queue.completion_event(), end).unwrap();
        queue.reap(&mut done);
    }
    done
}

#[test]
fn requests_wait_for_their_turn_and_pass_in_their_order() {
    let memory = MemoryDisk::new(1 << 20);
    let limits = Limits {
        requests: Some(rate(100, 5)),
        bytes: None,
    };
    let disk = LimitedDisk::new(Arc::new(memory), limits);
    let mut queue = disk.open_queue(32).unwrap();
    let start = Instant::now();
    for tag in 0..15 {
        queue.submit(read(tag, 512));
    }
    assert_eq!(queue.in_flight(), 15);
    let tags: Vec<_> = answers(queue.as_mut(), 15).iter().map(|c| c.tag).collect();
    // Five at once; the others a hundredth of a second each.
    assert!(
        start.elapsed() >= Duration::from_millis(80),
        "{:?}",
        start.elapsed()
    );
    assert!(tags[6..].is_sorted(), "{tags:?}");
    let throttled = disk.throttled();
    assert!((9..=10).contains(&throttled.requests), "{throttled:?}");
    assert!(
        throttled.time >= Duration::from_millis(200),
        "{throttled:?}"
    );
}

#[test]
fn bytes_have_a_limit_of_their_own_and_a_flush_has_none() {
    let memory = MemoryDisk::new(1 << 20);
    let limits = Limits {
        requests: None,
        bytes: Some(rate(1 << 20, 4096)),
    };
    let disk = LimitedDisk::new(Arc::new(memory.clone()), limits);
    let mut queue = disk.open_queue(8).unwrap();
    let start = Instant::now();
    // Larger than the bucket: it passes, and the next one waits for it.
    queue.submit(read(0, 128 << 10));
    queue.submit(read(1, 512));
    answers(queue.as_mut(), 2);
    assert!(
        start.elapsed() >= Duration::from_millis(100),
        "{:?}",
        start.elapsed()
    );
    let operation = Operation::Flush;
    queue.submit(Request { tag: 2, operation });
    answers(queue.as_mut(), 1);
    assert_eq!(memory.flushes(), 1);
}

/// A disk may have to write zeros, so they are bytes as others are; what is discarded is none.
#[test]
fn zeros_are_bytes() {
    let limits = Limits {
        requests: None,
        bytes: Some(rate(1 << 20, 4096)),
    };
    let disk = LimitedDisk::new(Arc::new(MemoryDisk::new(1 << 20)), limits);
    let mut queue = disk.open_queue(8).unwrap();
    let (offset, length) = (0, 128 << 10);
    let start = Instant::now();
    let mut submit = |tag, operation| queue.submit(Request { tag, operation });
    submit(0, Operation::Discard { offset, length });
    // Larger than the bucket, and let through all the same.
    submit(
        1,
        Operation::WriteZeroes {
            offset,
            length,
            may_unmap: true,
        },
    );
    assert_eq!(disk.throttled().requests, 0);
    queue.submit(read(2, 512));
    answers(queue.as_mut(), 3);
    assert!(
        start.elapsed() >= Duration::from_millis(100),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(disk.throttled().requests, 1);
}

fn slow(memory: &MemoryDisk) -> LimitedDisk {
    let limits = Limits {
        requests: Some(rate(1, 1)),
        bytes: None,
    };
    LimitedDisk::new(Arc::new(memory.clone()), limits)
}

#[test]
fn a_limit_that_is_lifted_lets_go_of_what_waits() {
    let memory = MemoryDisk::new(4096);
    let disk = slow(&memory);
    let mut queue = disk.open_queue(128).unwrap();
    for tag in 0..100 {
        queue.submit(read(tag, 512));
    }
    answers(queue.as_mut(), 1);
    disk.set(Limits::default());
    let start = Instant::now();
    answers(queue.as_mut(), 99);
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(disk.limits(), Limits::default());
}

#[test]
fn a_drain_does_not_wait_for_the_limit() {
    let memory = MemoryDisk::new(4096);
    let disk = slow(&memory);
    let mut queue = disk.open_queue(128).unwrap();
    for tag in 0..100 {
        queue.submit(read(tag, 512));
    }
    let mut done = Vec::new();
    let start = Instant::now();
    queue.drain(PATIENCE, &mut done).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!((done.len(), queue.in_flight()), (100, 0));
}

#[test]
fn what_waits_when_it_is_abandoned_never_reaches_the_disk() {
    let memory = MemoryDisk::new(4096);
    let disk = slow(&memory);
    let mut queue = disk.open_queue(8).unwrap();
    memory.script([Fault::None, Fault::Error(IoError::Os(libc::EIO))]);
    for tag in 0..3 {
        queue.submit(read(tag, 512));
    }
    queue.kick();
    queue.abandon();
    let mut results = answers(queue.as_mut(), 3);
    results.sort_by_key(|completion| completion.tag);
    let results: Vec<_> = results.into_iter().map(|c| c.result).collect();
    let canceled = Err(IoError::Os(libc::ECANCELED));
    assert_eq!(results, [Ok(()), canceled, canceled]);
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn a_user_that_waits_in_the_ring_is_woken_by_the_timer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    let raw = crate::RawDisk::open(&crate::RawOptions::new(&path)).unwrap();
    let limits = Limits {
        requests: Some(rate(50, 1)),
        bytes: None,
    };
    let disk = LimitedDisk::new(Arc::new(raw), limits);
    let mut queue = disk.open_queue(8).unwrap();
    let events = crate::fd::Joined::new().unwrap();
    let fd = std::os::fd::AsFd::as_fd(&events);
    if !queue.watch(fd).unwrap() {
        // The host's ring cannot wait: the other tests have what is left.
        return;
    }
    events.add(queue.notice().unwrap()).unwrap();
    for tag in 0..6 {
        queue.submit(read(tag, 4096));
    }
    let (mut done, start) = (Vec::new(), Instant::now());
    queue.kick();
    while done.len() < 6 {
        assert!(start.elapsed() < PATIENCE, "{done:?}");
        queue.wait(Some(PATIENCE));
        queue.reap(&mut done);
    }
    assert!(start.elapsed() >= Duration::from_millis(80));
    assert!(start.elapsed() < PATIENCE / 2, "the timer woke nobody");
}
