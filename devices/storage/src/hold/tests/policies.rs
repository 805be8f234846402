//! What each policy does, step by step.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::state::Shared;
use super::super::supervisor;
use super::*;

fn stopping(disk: &MemoryDisk, opener: Option<Opener>) -> (HoldingDisk, Heard) {
    let heard = Heard::default();
    let disk = Arc::new(disk.clone());
    let holding = HoldingDisk::new(disk, Policy::Stop, opener, heard.listener());
    (holding, heard)
}

fn retrying(disk: &MemoryDisk, retry: Retry, opener: Option<Opener>) -> (HoldingDisk, Heard) {
    let heard = Heard::default();
    let disk = Arc::new(disk.clone());
    let holding = HoldingDisk::new(disk, Policy::Retry(retry), opener, heard.listener());
    (holding, heard)
}

const QUICK: Retry = Retry {
    deadline: PATIENCE,
    interval: Duration::from_millis(2),
    then: Then::Report,
};

#[test]
fn a_stopped_disk_answers_nothing_until_it_is_resumed_and_replays_in_order() {
    let disk = MemoryDisk::new(8192);
    let (holding, heard) = stopping(&disk, None);
    let mut queue = holding.open_queue(8).unwrap();
    let mut other = holding.open_queue(8).unwrap();
    disk.script([Fault::None, ENOSPC]);
    let done = look(queue.as_mut(), [write(0, 0, 1), write(1, 1, 2)]);
    assert_eq!(sorted(done), all_well([0]));
    // Whatever comes after it is held, also on other queues; the same sector shows the order.
    assert!(look(queue.as_mut(), [write(2, 1, 3), write(3, 1, 4), flush(4)]).is_empty());
    assert!(look(other.as_mut(), [write(0, 2, 5)]).is_empty());
    let status = holding.status();
    let failure = status.failure.unwrap();
    assert_eq!((failure.errno, failure.offset), (libc::ENOSPC, Some(512)));
    assert!(status.stopped && status.requests == 5 && status.errors == 1);
    assert_eq!(heard.letters(), "FS");
    assert_eq!((queue.in_flight(), other.in_flight()), (4, 1));
    assert_eq!(disk.contents()[512..1024], [0; 512]);

    holding.resume().unwrap();
    assert_eq!(answers(queue.as_mut(), 4), all_well([1, 2, 3, 4]));
    assert_eq!(answers(other.as_mut(), 1), all_well([0]));
    wait_for("the recovery", || heard.letters() == "FS=");
    assert_eq!(holding.status().failure, None);
    let bytes = disk.contents();
    assert_eq!((bytes[0], bytes[512], bytes[1024]), (1, 4, 5));
}

#[test]
fn each_resume_is_one_attempt() {
    let disk = MemoryDisk::new(4096);
    let (holding, heard) = stopping(&disk, None);
    let mut queue = holding.open_queue(8).unwrap();
    disk.script([EIO, ENOSPC]);
    assert!(look(queue.as_mut(), [write(0, 0, 1)]).is_empty());
    holding.resume().unwrap();
    wait_for("the second failure", || {
        assert!(look(queue.as_mut(), []).is_empty());
        heard.letters() == "FSS"
    });
    let failure = holding.status().failure.unwrap();
    assert_eq!(failure.errno, libc::ENOSPC, "what it says now");
    holding.resume().unwrap();
    assert_eq!(answers(queue.as_mut(), 1), all_well([0]));
    wait_for("the recovery", || heard.letters() == "FSS=");
    holding.resume().unwrap();
    assert_eq!(heard.letters(), "FSS=", "there is nothing to resume");
}

#[test]
fn the_guests_own_errors_and_discards_are_never_held() {
    let disk = MemoryDisk::new(4096);
    let (holding, heard) = stopping(&disk, None);
    let mut queue = holding.open_queue(8).unwrap();
    disk.script([EIO, Fault::Error(IoError::Unsupported)]);
    let discard = || Request {
        tag: 1,
        operation: Operation::Discard {
            offset: 0,
            length: 4096,
        },
    };
    let done = look(queue.as_mut(), [write(0, 8, 1), discard(), write(2, 0, 1)]);
    let expected = [
        (0, Err(IoError::OutOfRange)),
        (1, Err(IoError::Os(libc::EIO))),
        (2, Err(IoError::Unsupported)),
    ];
    assert_eq!(sorted(done), expected);
    assert_eq!(heard.letters(), "");
    // Also while something is held.
    disk.script([EIO]);
    assert!(look(queue.as_mut(), [write(3, 0, 1)]).is_empty());
    let mut done = look(queue.as_mut(), [write(4, 8, 1)]);
    assert_eq!(done.pop().unwrap().result, Err(IoError::OutOfRange));
}

#[test]
fn a_disk_that_retries_tries_the_handle_and_then_a_new_one() {
    let dead = MemoryDisk::new(4096);
    let fresh = MemoryDisk::new(8192);
    dead.script([EIO; 100]);
    let tries = Arc::new(Mutex::new(0));
    let opener: Opener = {
        let (fresh, tries) = (fresh.clone(), Arc::clone(&tries));
        Box::new(move || {
            let mut tries = tries.lock().unwrap();
            *tries += 1;
            match *tries {
                1 => Err(io::ErrorKind::NotFound.into()),
                // Too small to be the same.
                2 => Ok(Arc::new(MemoryDisk::new(512))),
                _ => Ok(Arc::new(fresh.clone())),
            }
        })
    };
    let (holding, heard) = retrying(&dead, QUICK, Some(opener));
    let mut queue = holding.open_queue(8).unwrap();
    assert!(look(queue.as_mut(), [write(0, 1, 7), flush(1)]).is_empty());
    assert_eq!(answers(queue.as_mut(), 2), all_well([0, 1]));
    wait_for("the recovery", || heard.letters() == "F=");
    assert_eq!(*tries.lock().unwrap(), 3);
    assert_eq!((fresh.contents()[512], dead.contents()[512]), (7, 0));
    assert_eq!((dead.open_queues(), fresh.open_queues()), (0, 1));
    assert_eq!(holding.size(), 8192, "it has grown");
}

#[test]
fn a_disk_that_is_busy_with_us_is_closed_before_it_is_opened_anew() {
    let disk = MemoryDisk::new(4096);
    disk.script([EIO, EIO, EIO, EIO]);
    let opener: Opener = {
        let disk = disk.clone();
        Box::new(move || match disk.open_queues() {
            0 => Ok(Arc::new(disk.clone())),
            _ => Err(io::ErrorKind::ResourceBusy.into()),
        })
    };
    let (holding, heard) = retrying(&disk, QUICK, Some(opener));
    let mut first = holding.open_queue(8).unwrap();
    let mut second = holding.open_queue(8).unwrap();
    let worker = std::thread::spawn(move || {
        // It has nothing at the disk, and lets go nevertheless.
        let mut done = Vec::new();
        while done.is_empty() {
            let end = Instant::now() + PATIENCE;
            crate::fd::wait_readable(second.completion_event(), end).unwrap();
            second.reap(&mut done);
            if disk.contents()[512] == 9 {
                return;
            }
        }
    });
    assert!(look(first.as_mut(), [write(0, 1, 9)]).is_empty());
    assert_eq!(answers(first.as_mut(), 1), all_well([0]));
    wait_for("the recovery", || heard.letters() == "F=");
    worker.join().unwrap();
}

#[test]
fn past_the_deadline_failures_are_reported_until_something_succeeds() {
    let disk = MemoryDisk::new(4096);
    disk.script([ENOSPC; 3]);
    let retry = Retry {
        deadline: Duration::from_millis(1),
        interval: PATIENCE,
        then: Then::Report,
    };
    let (holding, heard) = retrying(&disk, retry, None);
    let mut queue = holding.open_queue(8).unwrap();
    assert!(look(queue.as_mut(), [write(0, 0, 1), write(1, 1, 1)]).is_empty());
    assert!(look(queue.as_mut(), [write(2, 2, 1)]).is_empty());
    let no_space = Err(IoError::Os(libc::ENOSPC));
    let expected = [(0, no_space), (1, no_space), (2, no_space)];
    assert_eq!(answers(queue.as_mut(), 3), expected);
    assert!(holding.status().reporting);
    assert_eq!(
        sorted(look(queue.as_mut(), [write(3, 3, 1)])),
        [(3, no_space)]
    );
    assert_eq!(heard.letters(), "FR");
    assert_eq!(
        sorted(look(queue.as_mut(), [write(4, 4, 1)])),
        all_well([4])
    );
    assert_eq!(heard.letters(), "FR=");
    assert_eq!(holding.status().requests, 0);
}

#[test]
fn past_the_deadline_a_disk_can_stop_and_be_resumed() {
    let disk = MemoryDisk::new(4096);
    disk.script([EIO]);
    let retry = Retry {
        deadline: Duration::from_millis(20),
        interval: PATIENCE,
        then: Then::Stop,
    };
    let (holding, heard) = retrying(&disk, retry, None);
    let mut queue = holding.open_queue(8).unwrap();
    assert!(look(queue.as_mut(), [write(0, 0, 1)]).is_empty());
    wait_for("the stop", || heard.letters() == "FS");
    assert!(look(queue.as_mut(), []).is_empty());
    let mut done = Vec::new();
    wait_for("the recovery", || {
        // The time starts anew with each resume. On a busy machine it may be over before the queue was looked at: the disk has stopped again then, perhaps
        // with nothing held any more, and it is the next request that finds out.
        if holding.status().stopped {
            holding.resume().unwrap();
        }
        if queue.in_flight() == 0 {
            queue.submit(write(1, 1, 1));
        }
        done.extend(look(queue.as_mut(), []));
        heard.letters().ends_with('=')
    });
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    assert_eq!((done[0].tag, heard.letters().matches('F').count()), (0, 1));
    assert_eq!(disk.contents()[0], 1);
}

#[test]
fn opening_that_hangs_does_not_hold_the_deadline_up() {
    let disk = MemoryDisk::new(4096);
    disk.script([EIO; 100]);
    let (release, hung) = std::sync::mpsc::channel::<()>();
    let hung = Mutex::new(hung);
    let opener: Opener = Box::new(move || {
        let _ = hung.lock().unwrap().recv();
        Err(io::ErrorKind::NotFound.into())
    });
    let retry = Retry {
        deadline: Duration::from_millis(50),
        interval: Duration::from_millis(1),
        then: Then::Report,
    };
    let (holding, heard) = retrying(&disk, retry, Some(opener));
    let mut queue = holding.open_queue(8).unwrap();
    assert!(look(queue.as_mut(), [write(0, 0, 1)]).is_empty());
    let answers = answers(queue.as_mut(), 1);
    assert_eq!(answers, [(0, Err(IoError::Os(libc::EIO)))]);
    assert_eq!(heard.letters(), "FR");
    drop(release);
}

#[test]
fn what_is_abandoned_never_reaches_the_disk() {
    let disk = MemoryDisk::new(4096);
    let (holding, heard) = stopping(&disk, None);
    let mut queue = holding.open_queue(8).unwrap();
    disk.script([EIO]);
    let done = look(queue.as_mut(), [write(0, 0, 1), write(1, 1, 1)]);
    assert_eq!(sorted(done), all_well([1]), "it was at the disk before");
    assert!(look(queue.as_mut(), [write(2, 2, 1)]).is_empty());
    let start = Instant::now();
    let error = queue.drain(PATIENCE, &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(start.elapsed() < PATIENCE / 2, "nobody knows for how long");
    queue.abandon();
    let canceled = Err(IoError::Os(libc::ECANCELED));
    let answered = answers(queue.as_mut(), 2);
    assert_eq!(answered, [(0, canceled), (2, canceled)]);
    assert_eq!((queue.in_flight(), holding.status().requests), (0, 0));
    drop(queue);
    holding.resume().unwrap();
    let mut queue = holding.open_queue(8).unwrap();
    wait_for("an attempt", || holding.status().attempts == 1);
    assert!(holding.status().failure.is_some(), "nothing was tried");
    queue.submit(flush(0));
    queue.kick();
    assert_eq!(answers(queue.as_mut(), 1), all_well([0]));
    assert_eq!(heard.letters(), "FS=");
    let bytes = disk.contents();
    assert_eq!((bytes[0], bytes[512], bytes[1024]), (0, 1, 0));
}

/// With nothing that waits there is nothing to try, and so nothing that says that the disk works again.
#[test]
fn a_disk_that_was_reset_has_recovered_when_a_request_succeeds() {
    let disk = MemoryDisk::new(4096);
    let (holding, heard) = retrying(&disk, QUICK, None);
    let mut queue = holding.open_queue(8).unwrap();
    disk.script([EIO; 3]);
    assert!(look(queue.as_mut(), [write(0, 0, 1)]).is_empty());
    queue.abandon();
    drop(queue);
    let mut queue = holding.open_queue(8).unwrap();
    wait_for("an attempt", || holding.status().attempts > 0);
    std::thread::sleep(10 * QUICK.interval);
    assert_eq!(heard.letters(), "F");
    let status = holding.status();
    assert!(status.failure.is_some() && !status.stopped, "{status:?}");
    assert_eq!((status.requests, status.attempts), (0, 1));
    // The next one fails as well, and is held and tried in its turn.
    disk.script([ENOSPC; 2]);
    assert!(look(queue.as_mut(), [write(1, 1, 1)]).is_empty());
    assert_eq!(answers(queue.as_mut(), 1), all_well([1]));
    wait_for("the recovery", || heard.letters() == "F=");
    assert_eq!(holding.status().failure, None);
}

#[test]
fn a_stopped_disk_that_was_reset_stops_again_when_it_still_fails() {
    let disk = MemoryDisk::new(4096);
    let (holding, heard) = stopping(&disk, None);
    let mut queue = holding.open_queue(8).unwrap();
    disk.script([EIO]);
    assert!(look(queue.as_mut(), [write(0, 0, 1)]).is_empty());
    drop(queue);
    holding.resume().unwrap();
    let mut queue = holding.open_queue(8).unwrap();
    wait_for("an attempt", || holding.status().attempts == 1);
    assert!(!holding.status().stopped);
    disk.script([ENOSPC]);
    let mut done = look(queue.as_mut(), [write(1, 1, 1)]);
    wait_for("the stop", || {
        queue.reap(&mut done);
        heard.letters() == "FSS"
    });
    assert!(done.is_empty() && holding.status().stopped);
    holding.resume().unwrap();
    assert_eq!(answers(queue.as_mut(), 1), all_well([1]));
    wait_for("the recovery", || heard.letters() == "FSS=");
}

/// The owner has let the VM go on by then, and is to stop it again.
#[test]
fn a_resume_without_a_thread_stops_again_and_can_be_repeated() {
    let disk = MemoryDisk::new(4096);
    let heard = Heard::default();
    let holding = HoldingDisk::started_by(
        start_if_there_are_threads,
        Arc::new(disk.clone()),
        Policy::Stop,
        None,
        heard.listener(),
    );
    let mut queue = holding.open_queue(8).unwrap();
    disk.script([EIO]);
    assert!(look(queue.as_mut(), [write(0, 0, 1)]).is_empty());
    let refused = holding.resume().unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    assert!(holding.status().stopped);
    assert_eq!(heard.letters(), "FSS");
    THREADS.store(true, Ordering::Relaxed);
    holding.resume().unwrap();
    assert_eq!(answers(queue.as_mut(), 1), all_well([0]));
    wait_for("the recovery", || heard.letters() == "FSS=");
}

static THREADS: AtomicBool = AtomicBool::new(false);

fn start_if_there_are_threads(shared: Arc<Shared>) -> io::Result<()> {
    match THREADS.load(Ordering::Relaxed) {
        true => supervisor::start(shared),
        false => Err(io::ErrorKind::WouldBlock.into()),
    }
}

#[test]
fn a_queue_that_goes_takes_what_it_holds_along() {
    let disk = MemoryDisk::new(4096);
    let (holding, _) = stopping(&disk, None);
    let mut queue = holding.open_queue(8).unwrap();
    let mut other = holding.open_queue(8).unwrap();
    disk.script([EIO]);
    assert!(look(queue.as_mut(), [write(0, 0, 1)]).is_empty());
    assert!(look(other.as_mut(), [write(0, 1, 1)]).is_empty());
    drop(queue);
    assert_eq!(holding.status().requests, 1);
    holding.resume().unwrap();
    assert_eq!(answers(other.as_mut(), 1), all_well([0]));
    assert_eq!(disk.contents()[0], 0);
}

#[test]
fn a_flush_that_cannot_be_repeated_is_reported() {
    let disk = MemoryDisk::new(4096).forgetting_flushes();
    let (holding, heard) = stopping(&disk, None);
    let mut queue = holding.open_queue(8).unwrap();
    disk.script([Fault::None, EIO]);
    let done = look(queue.as_mut(), [write(0, 0, 1), flush(1)]);
    let failed = Err(IoError::Os(libc::EIO));
    assert_eq!(sorted(done), [(0, Ok(())), (1, failed)]);
    assert_eq!(heard.letters(), "");
}

#[test]
fn what_a_page_cache_may_have_lost_fails_the_next_flush_once() {
    let dead = MemoryDisk::new(4096).forgetting_flushes();
    let fresh = dead.clone();
    let opener: Opener = Box::new(move || Ok(Arc::new(fresh.clone())));
    let (holding, heard) = retrying(&dead, QUICK, Some(opener));
    let mut queue = holding.open_queue(8).unwrap();
    // Covered by a flush, then not.
    for lost in [false, true] {
        let done = look(queue.as_mut(), [write(0, 0, 1)]);
        assert_eq!(sorted(done), all_well([0]));
        if !lost {
            assert_eq!(sorted(look(queue.as_mut(), [flush(1)])), all_well([1]));
        }
        // Also on the handle there is.
        dead.script([EIO, EIO]);
        let buffer = Buffer::zeroed(512);
        let operation = Operation::Read { offset: 0, buffer };
        assert!(look(queue.as_mut(), [Request { tag: 2, operation }]).is_empty());
        assert_eq!(answers(queue.as_mut(), 1), all_well([2]));
        let result = match lost {
            true => Err(IoError::Os(libc::EIO)),
            false => Ok(()),
        };
        assert_eq!(sorted(look(queue.as_mut(), [flush(3)])), [(3, result)]);
        assert_eq!(sorted(look(queue.as_mut(), [flush(4)])), all_well([4]));
    }
    wait_for("the recoveries", || heard.letters() == "F=F=");
}

#[test]
fn what_a_handle_that_was_replaced_still_acknowledges_is_covered_by_no_flush() {
    let dead = MemoryDisk::new(4096).forgetting_flushes();
    let fresh = dead.clone();
    let opener: Opener = Box::new(move || Ok(Arc::new(fresh.clone())));
    let (holding, heard) = retrying(&dead, QUICK, Some(opener));
    let mut writing = holding.open_queue(8).unwrap();
    let mut reading = holding.open_queue(8).unwrap();
    dead.script([Fault::Stuck, EIO, EIO]);
    assert!(look(writing.as_mut(), [write(0, 0, 1)]).is_empty());
    let buffer = Buffer::zeroed(512);
    let operation = Operation::Read { offset: 0, buffer };
    assert!(look(reading.as_mut(), [Request { tag: 1, operation }]).is_empty());
    assert_eq!(answers(reading.as_mut(), 1), all_well([1]));
    wait_for("the new handle", || heard.letters() == "F=");
    dead.release();
    assert_eq!(answers(writing.as_mut(), 1), all_well([0]));
    let lost = Err(IoError::Os(libc::EIO));
    assert_eq!(sorted(look(reading.as_mut(), [flush(2)])), [(2, lost)]);
    assert_eq!(sorted(look(reading.as_mut(), [flush(3)])), all_well([3]));
}

#[test]
fn a_user_that_waits_in_the_ring_hears_of_a_replay() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let raw = Arc::new(crate::RawDisk::open(&crate::RawOptions::new(&path)).unwrap());
    // Fails until it is opened anew.
    let dead = MemoryDisk::new(1 << 20);
    dead.script([EIO; 2]);
    let opener: Opener = Box::new(move || Ok(raw.clone()));
    let (holding, _) = retrying(&dead, QUICK, Some(opener));
    let mut queue = holding.open_queue(8).unwrap();
    let events = crate::fd::Joined::new().unwrap();
    assert!(!queue.watch(std::os::fd::AsFd::as_fd(&events)).unwrap());
    events.add(queue.completion_event()).unwrap();
    queue.submit(write(0, 3, 3));
    queue.kick();
    let mut done = Vec::new();
    let end = Instant::now() + PATIENCE;
    while done.is_empty() {
        crate::fd::wait_readable(std::os::fd::AsFd::as_fd(&events), end).unwrap();
        queue.reap(&mut done);
    }
    assert_eq!(sorted(done), all_well([0]));
    drop(queue);
    // A queue opened now waits in its ring, where the host has one.
    let mut queue = holding.open_queue(8).unwrap();
    let events = crate::fd::Joined::new().unwrap();
    let waits = queue.watch(std::os::fd::AsFd::as_fd(&events)).unwrap();
    let notice = match waits {
        true => queue.notice().unwrap(),
        false => queue.completion_event(),
    };
    events.add(notice).unwrap();
    queue.submit(write(1, 4, 4));
    let mut done = Vec::new();
    while done.is_empty() {
        assert!(Instant::now() < end, "no answer");
        if waits {
            queue.wait(Some(PATIENCE));
        } else {
            queue.kick();
        }
        queue.reap(&mut done);
    }
    assert_eq!(sorted(done), all_well([1]));
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!((bytes[3 * 512], bytes[4 * 512]), (3, 4));
}
