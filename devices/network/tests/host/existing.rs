//! Taps that are there already.

use paddock_network::{Backend, NetworkErrorKind as Kind};

use super::sandbox::{alone, become_user, exists, hide, link, run};
use super::{existing, message};

#[test]
fn a_single_queue_tap_is_opened_and_left_as_it_was() {
    alone(|| {
        run("ip tuntap add dev t0 mode tap");
        run("ip link set t0 mtu 1400 up");
        let tap = existing("t0", 1).unwrap();
        assert_eq!(tap.name(), "t0");
        assert_eq!(tap.queue_pairs(), 1);
        assert_eq!(tap.mtu(), Some(1400));
        tap.set_active_queues(1).unwrap();
        tap.set_active_queues(7).unwrap();
        let error = existing("t0", 1).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy, "{}", message(&error));
        assert!(message(&error).contains("t0: another process has the tap open"));
        drop(tap);
        assert!(exists("t0"));
        drop(existing("t0", 1).unwrap());
    });
}

#[test]
fn a_multi_queue_tap_is_opened_with_as_many_queues_as_asked() {
    alone(|| {
        run("ip tuntap add dev t0 mode tap multi_queue");
        for pairs in [1, 2, 4] {
            let tap = existing("t0", pairs).unwrap();
            assert_eq!(tap.queue_pairs(), pairs);
            let count = |key: &str| link("t0")["linkinfo"]["info_data"][key].as_u64().unwrap();
            for active in [1, pairs, pairs, 1, 99, 0] {
                tap.set_active_queues(active).unwrap();
                let active = active.clamp(1, pairs);
                assert_eq!(count("numqueues"), u64::from(active));
                assert_eq!(count("numdisabled"), u64::from(pairs - active));
            }
            // Another queue could be had, but it would take the frames of this NIC.
            let error = existing("t0", 1).unwrap_err();
            assert_eq!(error.kind(), Kind::Busy, "{}", message(&error));
        }
    });
}

#[test]
fn several_queues_of_a_single_queue_tap_are_refused() {
    alone(|| {
        run("ip tuntap add dev t0 mode tap");
        let error = existing("t0", 2).unwrap_err();
        assert_eq!(error.kind(), Kind::WrongQueueMode);
        assert!(message(&error).contains("ip tuntap add dev t0 mode tap multi_queue"));
        for pairs in [0, 257] {
            let error = existing("t0", pairs).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidSetting);
        }
    });
}

#[test]
fn a_tap_that_is_not_there_is_not_made() {
    alone(|| {
        let error = existing("t0", 1).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{}", message(&error));
        assert!(!exists("t0"));
    });
}

#[test]
fn what_is_no_tap_is_named() {
    alone(|| {
        run("ip tuntap add dev tun0 mode tun");
        run("ip link add br0 type bridge");
        run("ip link add v0 type veth peer name v1");
        for (name, kind) in [
            ("tun0", "tun"),
            ("br0", "bridge"),
            ("v0", "veth"),
            ("lo", "device"),
        ] {
            let error = existing(name, 1).unwrap_err();
            assert_eq!(error.kind(), Kind::WrongType);
            assert_eq!(error.subject(), name);
            assert!(message(&error).contains(&format!("it is a {kind}, not a tap")));
        }
    });
}

#[test]
fn a_tap_needs_no_privilege_but_ones_own() {
    alone(|| {
        run("ip tuntap add dev mine mode tap user 4242");
        run("ip tuntap add dev others mode tap user 4243");
        become_user(4242);
        let tap = existing("mine", 1).unwrap();
        tap.set_offloads(tap.supported_offloads()).unwrap();
        let error = existing("others", 1).unwrap_err();
        assert_eq!(error.kind(), Kind::Permission, "{}", message(&error));
        assert!(message(&error).contains("belongs to another user"));
    });
}

#[test]
fn a_missing_driver_is_named() {
    alone(|| {
        run("ip tuntap add dev t0 mode tap");
        hide("/dev/net");
        let error = existing("t0", 1).unwrap_err();
        assert_eq!(error.kind(), Kind::NoTunDevice);
        assert!(message(&error).contains("/dev/net/tun is missing"));
    });
}

#[test]
fn a_deleted_tap_says_so() {
    alone(|| {
        run("ip tuntap add dev t0 mode tap");
        run("ip link set t0 up");
        let tap = existing("t0", 1).unwrap();
        run("ip link del t0");
        let error = super::frames::try_read(&tap, 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADFD));
        assert!(tap.set_offloads(tap.supported_offloads()).is_err());
    });
}
