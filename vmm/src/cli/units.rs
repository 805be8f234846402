//! The unit templates in `vmm/systemd`, held against what the command takes and against systemd's own reader.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command as Program;
use std::time::Duration;

use clap::Parser;

use super::args::{Cli, Command};
use super::process::ending_takes;

const SERVICE: &str = include_str!("../../systemd/paddock@.service");
const BRIDGE: &str = include_str!("../../systemd/bridge.conf");
const NETWORK_DISKS: &str = include_str!("../../systemd/network-disks.conf");

/// The value of a setting that is there once.
fn setting<'a>(unit: &'a str, name: &str) -> &'a str {
    let mut values = unit
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    match (values.next(), values.next()) {
        (Some(value), None) => value,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn the_service_runs_a_command_that_there_is() {
    let words = setting(SERVICE, "ExecStart").split_whitespace();
    let cli = Cli::try_parse_from(words).unwrap();
    let Command::Run(args) = cli.command else {
        panic!("not run");
    };
    assert!(args.vm.spec.is_some());
    let stop: u64 = setting(SERVICE, "TimeoutStopSec").parse().unwrap();
    let grace = Duration::from_secs(args.shutdown_timeout);
    assert!(Duration::from_secs(stop) >= ending_takes(grace));
    assert_eq!(setting(SERVICE, "Type"), "notify");
    // In a directory of the VM's own, which goes with it.
    let runtime = format!("/run/{}", setting(SERVICE, "RuntimeDirectory"));
    let socket = args.api_socket.unwrap();
    assert_eq!(socket.parent(), Some(Path::new(&runtime)));
}

#[test]
fn each_vm_is_on_its_own() {
    assert_eq!(setting(SERVICE, "DynamicUser"), "yes");
    for name in [
        "User",
        "StateDirectory",
        "RuntimeDirectory",
        "LogsDirectory",
    ] {
        let value = setting(SERVICE, name);
        assert!(value.contains("%i"), "{name}={value} is of all VMs");
    }
    assert_eq!(setting(SERVICE, "CapabilityBoundingSet"), "");
    for given in ["AmbientCapabilities=", "DeviceAllow=block-"] {
        let given: Vec<_> = SERVICE.lines().filter(|l| l.starts_with(given)).collect();
        assert_eq!(given, [""; 0]);
    }
    for name in ["AmbientCapabilities", "CapabilityBoundingSet"] {
        assert_eq!(setting(BRIDGE, name), "CAP_NET_ADMIN");
    }
}

#[test]
fn disks_on_the_network_take_sockets_and_patience() {
    assert_eq!(
        setting(SERVICE, "RestrictAddressFamilies"),
        "AF_UNIX AF_NETLINK"
    );
    // Beside those of the service: lists that allow are united.
    assert_eq!(
        setting(NETWORK_DISKS, "RestrictAddressFamilies"),
        "AF_INET AF_INET6"
    );
    for name in ["Wants", "After"] {
        let targets = setting(NETWORK_DISKS, name);
        assert!(targets.contains("network-online.target"), "{targets}");
    }
    // Tried again for ever, which is what the service's restart does with a start that fails.
    assert_eq!(setting(NETWORK_DISKS, "StartLimitIntervalSec"), "0");
    assert_eq!(setting(SERVICE, "Restart"), "on-failure");
    let start = |unit| -> u64 { setting(unit, "TimeoutStartSec").parse().unwrap() };
    assert!(start(NETWORK_DISKS) > start(SERVICE));
    for drop_in in ["bridge.conf", "network-disks.conf"] {
        assert!(SERVICE.contains(drop_in), "{drop_in} is not told of");
    }
}

/// What systemd says of a service and its drop-in. `None` where systemd is not installed, which CI does not allow.
fn verify(service: &str, drop_in: &str) -> Option<String> {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let own = std::env::current_exe().unwrap();
    let service = service.replace("/usr/bin/paddock", own.to_str().unwrap());
    fs::write(path("paddock@.service"), service).unwrap();
    fs::create_dir(path("paddock@web.service.d")).unwrap();
    fs::write(path("paddock@web.service.d/drop-in.conf"), drop_in).unwrap();
    let output = Program::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(path("paddock@web.service"))
        .output();
    match output {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
            // What it says of the host's own units is not about ours.
            let ours = said.lines().filter(|line| line.contains("paddock"));
            Some(ours.collect::<Vec<_>>().join("\n"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let missing = "systemd-analyze, of Debian's package systemd, is not installed: the units are not verified";
            assert!(std::env::var_os("CI").is_none(), "{missing}");
            eprintln!("{missing}");
            None
        }
        Err(error) => panic!("systemd-analyze: {error}"),
    }
}

#[test]
fn systemd_takes_the_units() {
    for drop_in in [BRIDGE, NETWORK_DISKS] {
        let Some(said) = verify(SERVICE, drop_in) else {
            return;
        };
        assert_eq!(said, "");
    }
    // It succeeds whatever it finds: make sure that it would have said so.
    let mistaken = SERVICE.replace("KillMode=mixed", "KillMode=mixt");
    let said = verify(&mistaken, BRIDGE).unwrap();
    assert!(said.contains("mixt"), "{said}");
    let mistaken = BRIDGE.replace("AmbientCap", "AmbienceCap");
    let said = verify(SERVICE, &mistaken).unwrap();
    assert!(said.contains("AmbienceCap"), "{said}");
    let mistaken = NETWORK_DISKS.replace("AF_INET6", "AF_INET7");
    let said = verify(SERVICE, &mistaken).unwrap();
    assert!(said.contains("AF_INET7"), "{said}");
}
