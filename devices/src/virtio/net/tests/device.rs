//! The device: options, configuration space, features, control queue, and a backend that goes away.

use super::*;
use paddock_network::Offloads;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MTU,
};

fn build(options: NetOptions) -> Result<Net, String> {
    let (backend, _peers) = SocketBackend::new(2, None).unwrap();
    Net::new("net0", Arc::new(backend), options)
        .map_err(|e| format!("{e}: {}", std::error::Error::source(&e).unwrap()))
}

fn options() -> NetOptions {
    NetOptions {
        mac: MAC,
        mtu: Some(9000),
        queue_pairs: 2,
        queue_size: 256,
    }
}

#[test]
fn bad_options_are_named() {
    let cases = [
        (
            NetOptions {
                queue_pairs: 0,
                ..options()
            },
            "queue_pairs",
        ),
        (
            NetOptions {
                queue_pairs: 3,
                ..options()
            },
            "queue_pairs",
        ),
        (
            NetOptions {
                queue_size: 100,
                ..options()
            },
            "queue_size",
        ),
        (
            NetOptions {
                queue_size: 0,
                ..options()
            },
            "queue_size",
        ),
        (
            NetOptions {
                queue_size: 16,
                ..options()
            },
            "queue_size",
        ),
        (
            NetOptions {
                mtu: Some(67),
                ..options()
            },
            "mtu",
        ),
        (
            NetOptions {
                mac: MacAddress::new([1, 0, 0, 0, 0, 1]),
                ..options()
            },
            "mac",
        ),
    ];
    for (options, name) in cases {
        let error = build(options).unwrap_err();
        assert!(error.contains(name), "{error}");
    }
    assert!(build(options()).is_ok());
}

#[test]
fn the_configuration_space_reads_at_any_width() {
    let net = build(options()).unwrap();
    let mut all = [0xff; 20];
    net.read_config(0, &mut all);
    assert_eq!(all[..6], MAC.bytes());
    assert_eq!(all[6..8], [1, 0], "link up");
    assert_eq!(all[8..10], [2, 0], "queue pairs");
    assert_eq!(all[10..12], 9000_u16.to_le_bytes());
    assert_eq!(all[12..], [0; 8]);
    for offset in [0, 1, 5, 11, 12, 13, 4096, u64::MAX] {
        for width in [1, 2, 4, 8] {
            let mut part = vec![0xff; width];
            net.read_config(offset, &mut part);
            for (i, byte) in part.into_iter().enumerate() {
                let at = usize::try_from(offset).ok().and_then(|o| o.checked_add(i));
                assert_eq!(byte, at.and_then(|at| all.get(at)).copied().unwrap_or(0));
            }
        }
    }
}

#[test]
fn features_follow_options_and_backend() {
    let both = features(&[VIRTIO_NET_F_MQ, VIRTIO_NET_F_MTU]);
    assert_eq!(build(options()).unwrap().features() & both, both);
    let plain = build(NetOptions {
        queue_pairs: 1,
        mtu: None,
        ..options()
    })
    .unwrap();
    assert_eq!(plain.features() & both, 0);
    assert_eq!(plain.queue_max_sizes(), [256, 256, 64]);
}

#[test]
fn offloads_follow_the_negotiated_features() {
    let mut bench = Bench::new(2);
    let tso = features(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4]);
    bench.net.set_features(modern() | tso);
    let wanted = Offloads::CSUM | Offloads::TSO4;
    assert_eq!(bench.backend.offload_bits(), wanted.bits());
    assert_eq!(bench.backend.active_queues(), 1);
    // Segmentation without checksums is refused by the kernel, and by the standard.
    bench
        .net
        .set_features(modern() | features(&[VIRTIO_NET_F_GUEST_TSO4]));
    assert_eq!(bench.backend.offload_bits(), 0);
    bench.net.set_features(modern() | tso);
    bench.net.reset();
    assert_eq!(bench.backend.offload_bits(), 0);
}

fn command(driver: &mut Driver, bytes: &[u8]) -> u8 {
    let length = u32::try_from(bytes.len()).unwrap();
    driver.offer(&[(length, false), (1, true)], bytes, false);
    driver.notify();
    let (_, answer) = driver.wait();
    assert_eq!(answer.len(), 1);
    answer[0]
}

#[test]
fn control_commands_are_obeyed_or_refused() {
    let mut bench = Bench::new(2);
    let all = modern()
        | features(&[
            VIRTIO_NET_F_MQ,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            VIRTIO_NET_F_GUEST_CSUM,
        ]);
    bench.net.set_features(all);
    let mut driver = bench.start(4, all);
    assert_eq!(command(&mut driver, &[4, 0, 2, 0]), 0);
    assert_eq!(bench.backend.active_queues(), 2);
    assert_eq!(command(&mut driver, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    let mut mac = [0; 6];
    bench.net.read_config(0, &mut mac);
    assert_eq!(mac, [2, 0, 0, 0, 0, 9]);
    assert_eq!(command(&mut driver, &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
    assert_eq!(bench.backend.offload_bits(), 0);
    assert_eq!(command(&mut driver, &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 0);
    assert_eq!(bench.backend.offload_bits(), Offloads::CSUM.bits());
    let refused: [&[u8]; 12] = [
        &[4, 0, 0, 0],                      // No queue pairs.
        &[4, 0, 3, 0],                      // More than there are.
        &[4, 0, 1],                         // Short.
        &[4, 0, 1, 0, 0],                   // Long.
        &[4, 1, 1, 0],                      // RSS was not offered.
        &[1, 1, 1, 0, 0, 0, 0, 9],          // Multicast.
        &[1, 1, 0, 0, 0, 0, 0, 0],          // Zero.
        &[0, 0, 1],                         // Receive filters were not offered.
        &[5, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], // TSO4 was not negotiated.
        &[9],
        &[0xff; 100],
        &[4, 0],
    ];
    for bytes in refused {
        assert_eq!(command(&mut driver, bytes), 1, "{bytes:?}");
    }
    assert_eq!(bench.backend.active_queues(), 2);
    // No room for an answer, and nothing but room.
    driver.offer(&[(4, false)], &[4, 0, 1, 0], false);
    driver.offer(&[(1, true)], &[], false);
    driver.notify();
    assert!(driver.wait().1.is_empty());
    assert_eq!(driver.wait().1, [1]);
    assert_eq!(bench.backend.active_queues(), 1);
    bench.counted(|c| c.control_errors == 13);
}

#[test]
fn without_multi_queue_the_control_queue_comes_third() {
    let mut bench = Bench::new(2);
    let plain = modern() | features(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_CTRL_MAC_ADDR]);
    bench.net.set_features(plain);
    // Its size is that of the queue at this index, so the driver may have made it larger than needed.
    let mut driver = bench.start(2, plain);
    assert_eq!(command(&mut driver, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(command(&mut driver, &[4, 0, 1, 0]), 1, "MQ");
    let other = bench.prepare(4, plain);
    assert!(bench.net.start_queue(4, other.resources()).is_err());
}

#[test]
fn queues_that_are_not_there_or_run_already_are_refused() {
    let mut bench = Bench::new(1);
    let driver = bench.start(RX, modern());
    assert!(bench.net.start_queue(RX, driver.resources()).is_err());
    assert!(bench.net.start_queue(9, driver.resources()).is_err());
    assert!(bench.net.stop_queue(9).is_none());
}

#[test]
fn a_backend_that_goes_away_takes_the_link_down_once() {
    let mut bench = Bench::new(1);
    let mut rx = bench.start(RX, modern());
    let mut tx = bench.start(TX, modern());
    rx.offer(&[(2000, true)], &[], false);
    rx.notify();
    bench.peers.clear();
    eventually("the configuration interrupt", || {
        (bench.interrupts.of_config() == 1).then_some(())
    });
    let mut status = [0xff; 2];
    bench.net.read_config(6, &mut status);
    assert_eq!(status, [0, 0]);
    // The guest's frames are dropped like on a pulled cable.
    for _ in 0..10 {
        let bytes = with_header(&frame(1, 100));
        tx.offer(
            &[(u32::try_from(bytes.len()).unwrap(), false)],
            &bytes,
            false,
        );
        tx.notify();
        tx.wait();
    }
    rx.kick();
    bench.assert_idle("rx0");
    bench.assert_idle("tx0");
    assert_eq!(bench.interrupts.of_config(), 1);
    assert!(bench.net.stop_queue(RX).is_some());
    assert!(bench.net.stop_queue(TX).is_some());
}

#[test]
fn a_new_device_takes_the_backend_over() {
    let mut bench = Bench::new(1);
    let mut driver = bench.start(RX, modern());
    driver.offer(&[(2000, true)], &[], false);
    driver.notify();
    bench.deliver(&frame(1, 100));
    assert_eq!(collect(&mut driver), frame(1, 100));
    // Dropped with its queues running, as a VM that is reset may leave it.
    let backend = Arc::clone(&bench.backend) as Arc<dyn Backend>;
    let options = NetOptions {
        mtu: None,
        queue_pairs: 1,
        queue_size: SIZE,
        ..options()
    };
    bench.net = Net::new("again", backend, options).unwrap();
    bench.memory = guest_ram(3);
    let mut driver = bench.start(RX, modern());
    bench.deliver(&frame(2, 100));
    driver.offer(&[(2000, true)], &[], false);
    driver.notify();
    assert_eq!(collect(&mut driver), frame(2, 100));
}
