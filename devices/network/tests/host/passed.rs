//! Taps whose queues somebody else opened.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use paddock_network::{Backend, NetworkErrorKind as Kind, Tap};

use super::sandbox::{alone, become_user, run};
use super::{existing, message};

/// Duplicates of the queues of a tap, as an agent would pass them.
fn queues(tap: &Tap) -> Vec<OwnedFd> {
    let pairs = 0..tap.queue_pairs();
    pairs
        .map(|pair| tap.queue(pair).unwrap().try_clone_to_owned().unwrap())
        .collect()
}

#[test]
fn queues_are_taken_without_any_privilege() {
    alone(|| {
        run("ip tuntap add dev t0 mode tap multi_queue");
        run("ip link set t0 mtu 1400 up");
        let opened = queues(&existing("t0", 2).unwrap());
        let numbers: Vec<_> = opened.iter().map(AsRawFd::as_raw_fd).collect();
        become_user(65534);
        let tap = Tap::adopt(opened, &"fd:3+4").unwrap();
        assert_eq!((tap.name(), tap.queue_pairs()), ("t0", 2));
        assert_eq!(tap.mtu(), Some(1400));
        for (pair, number) in (0..).zip(numbers) {
            let queue = tap.queue(pair).unwrap();
            assert_eq!(queue.as_fd().as_raw_fd(), number, "the very descriptor");
        }
        for active in [1, 2, 1] {
            tap.set_active_queues(active).unwrap();
        }
        tap.set_offloads(tap.supported_offloads()).unwrap();
    });
}

#[test]
fn queues_of_different_taps_or_of_one_that_has_but_one() {
    alone(|| {
        run("ip tuntap add dev t0 mode tap multi_queue");
        run("ip tuntap add dev t1 mode tap multi_queue");
        run("ip tuntap add dev t2 mode tap");
        let mut mixed = queues(&existing("t0", 1).unwrap());
        mixed.extend(queues(&existing("t1", 1).unwrap()));
        let error = Tap::adopt(mixed, &"fd:3+4").unwrap_err();
        assert_eq!(error.kind(), Kind::WrongType, "{}", message(&error));
        assert!(message(&error).contains("t0 and t1"), "{}", message(&error));
        let single = existing("t2", 1).unwrap();
        let twice = [queues(&single), queues(&single)];
        let twice = twice.into_iter().flatten().collect();
        let error = Tap::adopt(twice, &"fd:3+4").unwrap_err();
        assert_eq!(error.kind(), Kind::WrongQueueMode, "{}", message(&error));
    });
}

#[test]
fn what_is_attached_to_nothing() {
    alone(|| {
        let open = |path| OwnedFd::from(File::options().read(true).write(true).open(path).unwrap());
        for path in ["/dev/net/tun", "/dev/null"] {
            let error = Tap::adopt(vec![open(path)], &"fd:3").unwrap_err();
            assert_eq!(error.kind(), Kind::WrongType, "{}", message(&error));
            assert!(message(&error).contains("fd:3"), "{}", message(&error));
        }
    });
}
