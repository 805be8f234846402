//! Virtio-net on a tap: packets arrive, whole, both ways; on a tap that is there and on one made on a VLAN bridge.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use paddock_probe::protocol::{NetPing, NetReceive, NetSend, NetUp};
use paddock_probe::stream::Stream;
use paddock_tests::Vm;
use paddock_tests::host::{Bridge, Link, run, shell};

const MIB: usize = 1 << 20;
const TRANSFER: usize = 64 * MIB;
const LONG: Duration = Duration::from_secs(300);
const HOST: &str = "10.99.0.1";
const GUEST: &str = "10.99.0.2/24";

/// Takes one connection and receives a stream to its end; returns how many bytes came and whether all were right.
fn receive(listener: TcpListener, seed: u64) -> JoinHandle<(usize, bool)> {
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut received = Vec::with_capacity(TRANSFER);
        peer.read_to_end(&mut received).unwrap();
        let mut wanted = vec![0; received.len()];
        Stream::new(seed).fill(&mut wanted);
        (received.len(), received == wanted)
    })
}

/// Takes one connection and sends a stream.
fn send(listener: TcpListener, seed: u64) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.set_write_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut data = vec![0; TRANSFER];
        Stream::new(seed).fill(&mut data);
        peer.write_all(&data).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
    })
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let peer = listener.local_addr().unwrap().to_string();
    (listener, peer)
}

/// Configures the guest's first NIC, pings the host and sends 64 MiB each way.
fn talks(vm: &mut Vm) {
    let nic = vm.info().nics[0].name.clone();
    vm.call(NetUp {
        device: nic,
        address: Some(GUEST.to_owned()),
        gateway: None,
        mtu: None,
    });
    let mut ping = NetPing::new(HOST);
    ping.count = 10;
    ping.interval_ms = 50;
    let reply = vm.call(ping.clone());
    // The first may be lost while the bridge learns.
    assert!(reply.received >= 9 && reply.corrupt == 0, "{reply:?}");
    // In fragments, which are put together again.
    ping.size = 20_000;
    let reply = vm.call(ping);
    assert_eq!((reply.received, reply.corrupt), (10, 0), "{reply:?}");

    let (listener, peer) = listen();
    let receiver = receive(listener, 1);
    let reply = vm.call_within(
        NetSend {
            peer,
            bytes: TRANSFER as u64,
            seed: 1,
            timeout_ms: 60_000,
        },
        LONG,
    );
    assert_eq!(reply.error, None);
    assert_eq!(receiver.join().unwrap(), (TRANSFER, true));

    let (listener, peer) = listen();
    let sender = send(listener, 2);
    let reply = vm.call_within(
        NetReceive {
            peer,
            bytes: TRANSFER as u64,
            seed: 2,
            timeout_ms: 60_000,
        },
        LONG,
    );
    sender.join().unwrap();
    assert_eq!((reply.error, reply.mismatch), (None, None));
    assert_eq!(reply.bytes, TRANSFER as u64);
}

#[test]
fn an_existing_tap() {
    let tap = Link::tap("pdktest0", "vnet_hdr");
    run("ip address add 10.99.0.1/24 dev pdktest0");
    let mut vm = Vm::builder()
        .cpus(&2)
        .args(["--net", "tap=pdktest0,mac=52:54:00:12:34:56"])
        .boot();
    let info = vm.info();
    assert_eq!(info.nics[0].mac, "52:54:00:12:34:56");
    talks(&mut vm);
    // A reset keeps the tap.
    vm.reboot(2);
    let nic = vm.info().nics[0].name.clone();
    vm.call(NetUp {
        device: nic,
        address: Some(GUEST.to_owned()),
        gateway: None,
        mtu: None,
    });
    let reply = vm.call(NetPing::new(HOST));
    assert!(reply.received >= 2, "{reply:?}");
    vm.power_off();
    run(&format!("ip link show {}", tap.name()));
}

#[test]
fn a_multi_queue_tap_made_on_a_vlan_bridge() {
    let bridge = Bridge::new("pdkbr0", 100, "10.99.0.1/24");
    let net = format!("bridge={},vlan=100,queues=2,mtu=1400", bridge.name());
    let mut vm = Vm::builder().cpus(&2).args(["--net", &net]).boot();
    let ports = run("bridge -json vlan show");
    let tap = run("ls /sys/class/net/pdkbr0/brif");
    let tap = tap.trim();
    assert!(!tap.is_empty(), "no port in the bridge");
    let own = ports
        .split("\"ifname\"")
        .find(|part| part.contains(tap))
        .unwrap_or_default();
    assert!(
        own.contains("100") && !own.contains("\"vlan\":1,"),
        "VLAN 100 only: {own}"
    );
    let nic = &vm.info().nics[0];
    assert_eq!((nic.mtu, nic.rx_queues, nic.tx_queues), (1400, 2, 2));
    talks(&mut vm);
    vm.power_off();
    assert_eq!(run("ls /sys/class/net/pdkbr0/brif"), "", "the tap is gone");
    assert!(!shell(&format!("ip link show {tap}")).status.success());
}

#[test]
fn offloads_are_negotiated() {
    let bridge = Bridge::new("pdkbr1", 7, "10.98.0.1/24");
    let net = format!("bridge={},vlan=7", bridge.name());
    let vm = Vm::builder().args(["--net", &net]).boot();
    let features = vm.info().nics[0].features.clone();
    // CSUM, GUEST_CSUM, MTU, MAC, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MRG_RXBUF, STATUS, CTRL_VQ, event index, VERSION_1.
    for bit in [0, 1, 3, 5, 7, 8, 11, 12, 15, 16, 17, 29, 32] {
        assert!(
            features.contains(&bit),
            "feature {bit} is missing in {features:?}"
        );
    }
    vm.power_off();
}
