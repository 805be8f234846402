//! Guest, NIC and network all at once, on several queue pairs, with queues stopped and started under way.

use super::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MQ;

const FRAMES: u64 = 3000;

fn length(number: u64) -> usize {
    usize::try_from(14 + number * 7919 % 3000).unwrap()
}

/// Sends frames back to where they came from, in order.
fn echo(peer: &OwnedFd, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Some(bytes) = try_receive(peer) else {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        };
        while try_send(peer, &bytes[HEADER_SIZE..]).is_err() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

fn transmit(driver: &Mutex<Driver>) {
    let start = Instant::now();
    for number in 0..FRAMES {
        let bytes = with_header(&frame(number, length(number)));
        let rest = u32::try_from(bytes.len() - 12).unwrap();
        loop {
            let mut driver = driver.lock().unwrap();
            while driver.take().is_some() {}
            if driver.has_room(2, false) {
                driver.offer(&[(12, false), (rest, false)], &bytes, number % 3 == 0);
                driver.notify();
                break;
            }
            // Asleep until told, so that a lost interrupt shows.
            assert!(driver.take_within(Duration::from_secs(5)).is_some());
            assert!(start.elapsed() < 3 * DEADLINE, "stuck at frame {number}");
        }
    }
}

fn receive_all(driver: &Mutex<Driver>) {
    for number in 0..FRAMES {
        let mut driver = driver.lock().unwrap();
        while driver.has_room(2, false) {
            driver.offer(&[(100, true), (700, true)], &[], false);
        }
        driver.notify();
        assert_eq!(collect(&mut driver), frame(number, length(number)));
    }
}

fn run(bits: u64) {
    let bits = bits | features(&[VIRTIO_NET_F_MQ]);
    // Nothing may be lost here.
    let mut bench = Bench::new(2).patient();
    bench.net.set_features(bits);
    let drivers: Vec<Mutex<Driver>> = (0..4)
        .map(|index| Mutex::new(bench.start(index, bits)))
        .collect();
    let kicks: Vec<_> = drivers
        .iter()
        .map(|driver| driver.lock().unwrap().kick_event())
        .collect();
    let stop = AtomicBool::new(false);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for peer in &bench.peers {
            let stop = &stop;
            scope.spawn(move || echo(peer, stop));
        }
        let net = &mut bench.net;
        let memory = &bench.memory;
        let interrupts = &bench.interrupts;
        let (done, kicks) = (&done, &kicks);
        let interrupter = scope.spawn(move || {
            let mut turn = 0_u16;
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(3));
                let index = turn % 4;
                turn += 1;
                let queue = net.stop_queue(index).unwrap();
                let resources = crate::virtio::QueueResources {
                    queue,
                    memory: memory.clone(),
                    kick: Arc::clone(&kicks[usize::from(index)]),
                    interrupt: Arc::clone(interrupts) as _,
                    features: bits,
                };
                net.start_queue(index, resources).unwrap();
            }
            turn
        });
        let mut workers = Vec::new();
        for pair in drivers.chunks(2) {
            workers.push(scope.spawn(move || receive_all(&pair[0])));
            workers.push(scope.spawn(move || transmit(&pair[1])));
        }
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
        assert!(interrupter.join().unwrap() > 4);
        assert!(results.iter().all(Result::is_ok));
    });
    assert_eq!(bench.interrupts.resets(), Vec::<String>::new());
    let counted = bench.counted(|c| c.rx_frames == 2 * FRAMES);
    assert_eq!(
        counted.rx_dropped + counted.tx_dropped + counted.rx_errors,
        0
    );
}

#[test]
fn everything_at_once() {
    run(modern());
}

#[test]
fn everything_at_once_without_event_indices() {
    run(base() | features(&[VIRTIO_NET_F_MRG_RXBUF]));
}

/// The driver adds chains at a pace close to the device's, so that the device is again and again making up its mind to wait
/// when one comes. A kick that is lost leaves the device waiting for good.
fn at_the_same_pace(bits: u64) {
    const TURNS: u64 = 30_000;
    let mut bench = Bench::new(1);
    let bytes = with_header(&frame(1, 60));
    let piece = u32::try_from(bytes.len()).unwrap();
    for (queue, chain) in [(TX, (piece, false)), (RX, (2000, true))] {
        let mut driver = bench.start(queue, bits);
        let mut left = TURNS;
        let mut came = Instant::now();
        while left > 0 || driver.in_flight() > 0 {
            if left.is_multiple_of(32) || driver.in_flight() > 32 {
                // There is always room for frames, and always one waiting.
                while try_receive(&bench.peers[0]).is_some() {}
                while queue == RX && try_send(&bench.peers[0], &bytes).is_ok() {}
            }
            if left > 0 && driver.has_room(1, false) {
                driver.offer(&[chain], &bytes, false);
                driver.notify();
                left -= 1;
                for _ in 0..left % 97 {
                    std::hint::spin_loop();
                }
            }
            while driver.take().is_some() {
                came = Instant::now();
            }
            let waited = came.elapsed();
            assert!(
                waited < Duration::from_secs(5),
                "a kick was lost, {left} to go"
            );
        }
        bench.net.stop_queue(queue).unwrap();
    }
    assert_eq!(bench.interrupts.resets(), Vec::<String>::new());
}

#[test]
fn no_kick_is_lost() {
    at_the_same_pace(modern());
}

#[test]
fn no_kick_is_lost_without_event_indices() {
    at_the_same_pace(base() | features(&[VIRTIO_NET_F_MRG_RXBUF]));
}
