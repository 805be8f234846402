//! Taps made as ports of a bridge.

use paddock_network::{Backend, BridgePort, NetworkErrorKind as Kind};

use super::sandbox::{alone, become_user, exists, link, run, vlans};
use super::{access, make, message, port};

const FILTERING: &str = "ip link add br0 up type bridge vlan_filtering 1";

fn tagless(vlan: u64) -> Vec<(u64, Vec<String>)> {
    vec![(vlan, vec!["PVID".to_owned(), "Egress Untagged".to_owned()])]
}

#[test]
fn a_tap_comes_up_on_its_bridge_and_goes_with_its_descriptor() {
    alone(|| {
        run("ip link add br0 up type bridge");
        run("ip tuntap add dev uplink mode tap");
        run("ip link set uplink address 0e:00:00:00:00:01 mtu 9000 master br0");
        let address = link("br0")["address"].clone();
        assert_eq!(address, "0e:00:00:00:00:01");
        for pairs in [1, 4] {
            let tap = make(&port("br0"), pairs).unwrap();
            let seen = link(tap.name());
            assert_eq!(seen["master"], "br0");
            assert_eq!(seen["mtu"], 9000);
            assert_eq!(tap.mtu(), Some(9000));
            assert!(seen["flags"].as_array().unwrap().contains(&"UP".into()));
            assert_eq!(seen["inet6_addr_gen_mode"], "none");
            assert!(seen["address"].as_str().unwrap().starts_with("fe:"));
            let multi = &seen["linkinfo"]["info_data"]["multi_queue"];
            assert_eq!(multi.as_bool(), Some(pairs > 1));
            // A bridge takes its lowest port's address; a VM's tap must not become that.
            assert_eq!(link("br0")["address"], address);
            let name = tap.name().to_owned();
            drop(tap);
            assert!(!exists(&name));
        }
        assert_eq!(run("bridge link show").lines().count(), 1);
        assert_eq!(link("br0")["mtu"], 9000);
    });
}

#[test]
fn a_ports_mtu_can_be_chosen() {
    alone(|| {
        run("ip link add br0 up type bridge");
        let with = |mtu| BridgePort {
            mtu: Some(mtu),
            ..port("br0")
        };
        assert_eq!(make(&with(1280), 1).unwrap().mtu(), Some(1280));
        for mtu in [67, 65_535] {
            let error = make(&with(mtu), 1).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidSetting, "{}", message(&error));
        }
        assert_eq!(run("bridge link show"), "");
        assert_eq!(link("br0")["mtu"], 1500);
    });
}

#[test]
fn an_access_port_has_its_vlan_and_no_other() {
    alone(|| {
        run(FILTERING);
        for vlan in [1, 2, 100, 4094] {
            let tap = make(&access("br0", vlan), 1).unwrap();
            assert_eq!(vlans(tap.name()), tagless(u64::from(vlan)));
        }
        // Without one, it gets what the bridge gives.
        assert_eq!(vlans(make(&port("br0"), 1).unwrap().name()), tagless(1));
        // A bridge may give another VLAN, or none.
        for pvid in [0, 7, 100] {
            run(&format!(
                "ip link add br{pvid}d up type bridge vlan_filtering 1 vlan_default_pvid {pvid}"
            ));
            let tap = make(&access(&format!("br{pvid}d"), 100), 1).unwrap();
            assert_eq!(vlans(tap.name()), tagless(100));
        }
    });
}

#[test]
fn a_name_can_be_chosen_unless_it_is_taken() {
    alone(|| {
        run("ip link add br0 up type bridge");
        run("ip tuntap add dev taken mode tap");
        let named = |name: &str| BridgePort {
            tap: Some(name.parse().unwrap()),
            ..port("br0")
        };
        let tap = make(&named("vm-7-net0"), 2).unwrap();
        assert_eq!(tap.name(), "vm-7-net0");
        for name in ["vm-7-net0", "taken", "br0", "lo"] {
            let error = make(&named(name), 1).unwrap_err();
            assert_eq!(error.kind(), Kind::AlreadyExists, "{}", message(&error));
            assert_eq!(error.subject(), name);
        }
        assert!(exists("taken"));
        assert!(exists("vm-7-net0"));
    });
}

#[test]
fn an_unfit_bridge_is_refused_with_what_mends_it() {
    alone(|| {
        run("ip link add plain up type bridge");
        run("ip tuntap add dev t0 mode tap");
        let error = make(&access("plain", 100), 1).unwrap_err();
        assert_eq!(error.kind(), Kind::VlanFilteringOff);
        let command = "ip link set plain type bridge vlan_filtering 1";
        assert!(message(&error).contains(command), "{}", message(&error));
        run(command);
        assert_eq!(
            vlans(make(&access("plain", 100), 1).unwrap().name()),
            tagless(100)
        );

        let error = make(&port("missing"), 1).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(message(&error).contains("ip link add missing up type bridge"));
        for name in ["t0", "lo"] {
            let error = make(&port(name), 1).unwrap_err();
            assert_eq!(error.kind(), Kind::WrongType);
            assert!(message(&error).contains("not a bridge"));
        }
        let left: Vec<_> = run("ip -o link show").lines().map(str::to_owned).collect();
        assert_eq!(left.len(), 3, "{left:?}");
    });
}

#[test]
fn making_a_tap_needs_the_right() {
    alone(|| {
        run(FILTERING);
        become_user(4242);
        let error = make(&access("br0", 100), 1).unwrap_err();
        assert_eq!(error.kind(), Kind::Permission, "{}", message(&error));
        assert!(message(&error).contains("CAP_NET_ADMIN"));
    });
}
