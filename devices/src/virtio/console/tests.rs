//! The device against a driver that does what Linux does, with real sockets and a real worker.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::legacy::serial::tests::Collector;
use crate::socket::PrivateSocket;
use crate::virtio::test_driver::{DEADLINE, Driver, Guest, wait_for};

mod linux;
mod properties;

use linux::{Host, Linux, connect};

/// Ports of the test device: a host console, and two sockets.
const HVC: usize = 0;
const AGENT: usize = 1;
const PROBE: usize = 2;

/// Long enough for the worker to do what it should not.
fn pause() {
    std::thread::sleep(Duration::from_millis(30));
}

fn read_exactly(stream: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn console_and_channel_carry_data_both_ways() {
    let host = Host::new();
    let mut device = host.device();
    let mut linux = Linux::up(&mut device);
    linux.write(HVC, b"login: ");
    assert_eq!(host.sink.take(), b"login: ");
    linux.offer(HVC, &[2, 100]);
    let input = host.ports.input(HVC).unwrap();
    assert_eq!(input.enqueue(b"root\n"), 5);
    assert_eq!(linux.read(HVC), b"root\n");

    let mut client = host.connect(AGENT);
    linux.wait_open(AGENT, true);
    client.write_all(b"{\"ping\"}").unwrap();
    pause();
    assert_eq!(linux.try_read(AGENT), None, "no buffer yet");
    linux.offer(AGENT, &[4096]);
    assert_eq!(linux.read(AGENT), b"{\"ping\"}");
    linux.write(AGENT, b"{\"pong\"}");
    assert_eq!(read_exactly(&mut client, 8), b"{\"pong\"}");
    let queue = &linux.queues[usize::from(tx_queue(AGENT))];
    // It comes after the data.
    wait_for("an interrupt", || (queue.interrupts() > 0).then_some(()));
    linux.stop(&mut device);
}

#[derive(Debug, Default)]
struct Openings(AtomicUsize);

impl PortEvents for Openings {
    fn port_opened(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_goes_through_is_counted_and_openings_are_told_also_across_devices() {
    let host = Host::new();
    let openings = Arc::<Openings>::default();
    host.ports.set_events(Arc::clone(&openings) as _);
    let opened = || openings.0.load(Ordering::Relaxed);
    let counters = host.ports.counters();
    for round in 1..=2 {
        let mut device = host.device();
        let mut linux = Linux::new(&mut device, F_MULTIPORT);
        linux.shake_hands();
        let before = opened();
        // A console, a port that there is not, and one that is closed.
        for (port, value) in [(0, 1), (7, 1), (1, 0)] {
            linux.say(port, 6, value);
        }
        assert_eq!(opened(), before);
        linux.say(1, 6, 1);
        assert_eq!(opened(), before + 1);
        linux.write(HVC, b"login: ");
        linux.offer(HVC, &[100]);
        host.ports.input(HVC).unwrap().enqueue(b"root");
        linux.read(HVC);
        // Nobody is there to take it.
        linux.write(AGENT, b"nothing");
        let (name, hvc) = &counters[HVC];
        assert_eq!(name, "");
        assert_eq!((hvc.from_guest(), hvc.to_guest()), (7 * round, 4 * round));
        assert_eq!(counters[AGENT].1.from_guest(), 0);
        linux.stop(&mut device);
    }
}

#[test]
fn data_waits_until_a_guest_program_opens_the_port() {
    let host = Host::new();
    let mut client = host.connect(PROBE);
    client.write_all(b"early").unwrap();
    let mut device = host.device();
    let mut linux = Linux::new(&mut device, F_MULTIPORT);
    linux.shake_hands();
    linux.wait_open(PROBE, true);
    linux.offer(PROBE, &[64]);
    pause();
    assert_eq!(linux.try_read(PROBE), None);
    linux.say(2, 6, 1);
    assert_eq!(linux.read(PROBE), b"early");
    linux.say(2, 6, 0);
    linux.offer(PROBE, &[64]);
    client.write_all(b"late").unwrap();
    pause();
    assert_eq!(linux.try_read(PROBE), None, "closed again");
    linux.say(2, 6, 1);
    assert_eq!(linux.read(PROBE), b"late");
}

#[test]
fn clients_are_served_one_after_the_other() {
    let host = Host::new();
    let mut device = host.device();
    let mut linux = Linux::up(&mut device);
    let mut first = host.connect(PROBE);
    linux.wait_open(PROBE, true);
    let mut second = host.connect(PROBE);
    second.write_all(b"second").unwrap();
    first.write_all(b"first").unwrap();
    drop(first);
    pause();
    assert!(linux.heard.is_empty(), "what the first sent comes first");
    linux.offer(PROBE, &[64]);
    linux.offer(PROBE, &[64]);
    assert_eq!(linux.read(PROBE), b"first");
    linux.wait_open(PROBE, false);
    linux.wait_open(PROBE, true);
    assert_eq!(linux.read(PROBE), b"second");
    linux.write(PROBE, b"hello");
    assert_eq!(read_exactly(&mut second, 5), b"hello");
    drop(second);
    linux.wait_open(PROBE, false);
    linux.write(PROBE, b"to nobody");
    let mut third = host.connect(PROBE);
    linux.wait_open(PROBE, true);
    linux.write(PROBE, b"x");
    assert_eq!(read_exactly(&mut third, 1), b"x", "nothing of before");
}

#[test]
fn a_client_may_stop_sending_and_still_read() {
    let host = Host::new();
    let mut device = host.device();
    let mut linux = Linux::up(&mut device);
    let mut client = host.connect(PROBE);
    client.write_all(b"request").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    linux.wait_open(PROBE, true);
    linux.offer(PROBE, &[64]);
    linux.offer(PROBE, &[64]);
    assert_eq!(linux.read(PROBE), b"request");
    linux.write(PROBE, b"answer");
    assert_eq!(read_exactly(&mut client, 6), b"answer");
    drop(client);
    linux.wait_open(PROBE, false);
    assert_eq!(linux.try_read(PROBE), None);
}

#[test]
fn clients_that_give_up_before_the_guest_opens_do_not_pile_up() {
    let host = Host::new();
    let mut device = host.device();
    let mut linux = Linux::new(&mut device, F_MULTIPORT);
    linux.shake_hands();
    for _ in 0..20 {
        let mut client = host.connect(AGENT);
        client.write_all(b"anybody there?").unwrap();
        drop(client);
        linux.wait_open(AGENT, true);
        linux.wait_open(AGENT, false);
    }
    let mut client = host.connect(AGENT);
    client.write_all(b"now").unwrap();
    linux.say(1, 6, 1);
    linux.offer(AGENT, &[64]);
    assert_eq!(linux.read(AGENT), b"now");
}

#[test]
fn a_slow_client_holds_up_its_own_port_only() {
    let host = Host::new();
    let mut device = host.device();
    let mut linux = Linux::up(&mut device);
    let mut slow = host.connect(AGENT);
    let mut quick = host.connect(PROBE);
    linux.wait_open(AGENT, true);
    linux.wait_open(PROBE, true);
    let pattern: Vec<u8> = (0..1_u32 << 20).map(|i| i.to_le_bytes()[1] ^ 7).collect();
    let tail = pattern.len() / 3;
    linux.post(AGENT, &[&pattern[..tail], &pattern[tail..]]);
    linux.post(AGENT, &[b"end"]);
    pause();
    assert!(!linux.try_posted(AGENT), "more than a socket holds");
    linux.write(PROBE, b"still here");
    assert_eq!(read_exactly(&mut quick, 10), b"still here");

    // Stopped half way through a chain, and started again: nothing is lost or repeated.
    assert_eq!(read_exactly(&mut slow, 1000), pattern[..1000]);
    let queues = linux.stop(&mut device);
    assert!(!device.service.is_running());
    for (index, (driver, queue)) in (0..).zip(linux.queues.iter().zip(queues)) {
        let resources = driver.resources_with(queue, linux.features);
        device.start_queue(index, resources).unwrap();
    }
    assert_eq!(
        read_exactly(&mut slow, pattern.len() - 1000),
        pattern[1000..]
    );
    assert_eq!(read_exactly(&mut slow, 3), b"end");
    wait_for("both chains", || linux.try_posted(AGENT).then_some(()));
    wait_for("both chains", || linux.try_posted(AGENT).then_some(()));

    // One that leaves half way through takes its part of the message with it.
    linux.post(AGENT, &[&pattern]);
    pause();
    drop(slow);
    linux.wait_open(AGENT, false);
    let mut next = host.connect(AGENT);
    linux.wait_open(AGENT, true);
    linux.write(AGENT, b"fresh");
    assert_eq!(read_exactly(&mut next, 5), b"fresh");

    // Also while the queue is stopped half way through.
    linux.post(AGENT, &[&pattern]);
    assert_eq!(read_exactly(&mut next, 1), pattern[..1]);
    let queue = device.stop_queue(tx_queue(AGENT)).unwrap();
    drop(next);
    linux.wait_open(AGENT, false);
    let mut last = host.connect(AGENT);
    linux.wait_open(AGENT, true);
    let driver = &linux.queues[usize::from(tx_queue(AGENT))];
    let resources = driver.resources_with(queue, linux.features);
    device.start_queue(tx_queue(AGENT), resources).unwrap();
    linux.post(AGENT, &[b"new"]);
    assert_eq!(read_exactly(&mut last, 3), b"new");
}

#[test]
fn a_guest_that_does_not_read_leaves_data_in_the_socket() {
    let host = Host::new();
    let mut device = host.device();
    let mut linux = Linux::up(&mut device);
    let mut client = host.connect(PROBE);
    linux.wait_open(PROBE, true);
    client.set_nonblocking(true).unwrap();
    let mut sent = Vec::<u8>::new();
    let mut quiet = 0;
    while quiet < 20 {
        let piece: Vec<u8> = (0..5000_u32)
            .map(|i| i.wrapping_mul(31).to_le_bytes()[0] ^ sent.len().to_le_bytes()[1])
            .collect();
        match client.write(&piece) {
            Ok(count) => {
                sent.extend(&piece[..count]);
                quiet = 0;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                quiet += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        assert!(sent.len() < 4 << 20, "the device reads what nobody wants");
    }
    let mut got = Vec::new();
    while got.len() < sent.len() {
        linux.offer(PROBE, &[10_000, 30_000]);
        got.extend(linux.read(PROBE));
    }
    assert_eq!(got, sent);
}

#[test]
fn a_new_device_finds_its_clients_connected() {
    let host = Host::new();
    let mut device = host.device();
    let mut linux = Linux::up(&mut device);
    let mut client = host.connect(PROBE);
    linux.wait_open(PROBE, true);
    linux.write(PROBE, b"one");
    // The VM resets: the guest forgets, the machine builds a new device.
    linux.stop(&mut device);
    device.reset();
    drop(device);
    client.write_all(b"across").unwrap();
    let mut device = host.device();
    let mut linux = Linux::up(&mut device);
    linux.wait_open(PROBE, true);
    linux.offer(PROBE, &[64]);
    assert_eq!(linux.read(PROBE), b"across");
    linux.write(PROBE, b"two");
    assert_eq!(read_exactly(&mut client, 6), b"onetwo");
    // The last to go removes the sockets.
    let path = host.path(PROBE);
    linux.stop(&mut device);
    drop(device);
    assert!(path.exists());
    drop(host.ports);
    assert!(!path.exists());
}

#[test]
fn window_sizes_reach_the_guest() {
    let host = Host::new();
    host.ports.resize(80, 25);
    let mut device = host.device();
    let mut config = [0xff; 14];
    device.read_config(0, &mut config);
    assert_eq!(config, [80, 0, 25, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    device.read_config(u64::MAX - 1, &mut config);
    assert_eq!(config, [0; 14]);
    let mut linux = Linux::up(&mut device);
    assert_eq!(linux.hear_of(0, 5).3, [80, 0, 25, 0]);
    host.ports.resize(300, 40);
    assert_eq!(linux.hear_of(0, 5).3, [44, 1, 40, 0]);
    linux.stop(&mut device);

    // A driver without ports is told through the configuration, and has its console at once.
    device.reset();
    let mut plain = Linux::new(&mut device, F_SIZE);
    host.ports.resize(1, 2);
    let interrupts = Arc::clone(&plain.guest.interrupts);
    wait_for("a configuration change", || {
        (interrupts.config.load(Ordering::Relaxed) > 0).then_some(())
    });
    plain.write(HVC, b"plain");
    assert_eq!(host.sink.take(), b"plain");
    plain.offer(HVC, &[16]);
    host.ports.input(HVC).unwrap().enqueue(b"in");
    assert_eq!(plain.read(HVC), b"in");
}

#[test]
fn a_console_behind_a_socket_never_stalls_the_guest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let ports = ConsolePorts::new(vec![PortSpec {
        name: String::new(),
        console: true,
        backend: PortBackend::Socket(PrivateSocket::bind(&path).unwrap()),
    }])
    .unwrap();
    let mut device = VirtioConsole::new("console0", ports);
    let mut linux = Linux::new(&mut device, 0);
    let mut client = connect(&path);
    wait_for("the client to be let in", || {
        linux.write(HVC, b"x");
        client.set_nonblocking(true).unwrap();
        client.read(&mut [0]).ok()
    });
    for _ in 0..20 {
        linux.write(HVC, &[b'y'; 100_000]);
    }
}

/// Processor time of the thread named `name`, in clock ticks of 10 ms.
fn thread_ticks(name: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let stat = tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok())
        .find(|stat| stat.contains(&format!("({name})")))
        .expect("the worker runs");
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
    fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
}

#[test]
fn the_worker_sleeps_when_nothing_can_be_done() {
    let host = Host::new();
    let mut device = VirtioConsole::new("sleeper", Arc::clone(&host.ports));
    let mut linux = Linux::up(&mut device);
    // Gone with data unread that the guest has no buffer for; another waits behind it.
    let mut client = host.connect(PROBE);
    linux.wait_open(PROBE, true);
    client.write_all(&[1; 1000]).unwrap();
    drop(client);
    let _waiting = host.connect(PROBE);
    // Half closed, and slow.
    let agent = host.connect(AGENT);
    linux.wait_open(AGENT, true);
    agent.shutdown(std::net::Shutdown::Write).unwrap();
    linux.offer(AGENT, &[64]);
    linux.post(AGENT, &[&[0; 1 << 20]]);
    pause();
    let before = thread_ticks("sleeper");
    std::thread::sleep(Duration::from_millis(300));
    let spent = thread_ticks("sleeper") - before;
    assert!(spent <= 5, "{spent} ticks of 10 ms in 300 ms");
}

#[test]
fn queues_are_started_once_and_stopped_once() {
    let host = Host::new();
    let mut device = host.device();
    assert_eq!(device.queue_max_sizes(), [QUEUE_SIZE; 8]);
    assert!(device.stop_queue(0).is_none());
    let guest = Guest::new();
    let driver = guest.queue(0, 8);
    assert!(device.start_queue(8, driver.resources(0)).is_err());
    device.start_queue(0, driver.resources(0)).unwrap();
    let error = device.start_queue(0, driver.resources(0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "virtio device console0: starting queue 0"
    );
    assert!(device.stop_queue(0).is_some());
    assert!(device.stop_queue(0).is_none());
    assert!(!device.service.is_running());
}
