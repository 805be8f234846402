//! Each type of request, well-formed in every layout, and malformed in every way that can be answered.

use super::*;
use paddock_storage::Capabilities;
use proptest::prelude::*;
use std::collections::BTreeMap;

const SIZE: usize = 64 * 512;

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|i| (i / 3) as u8 ^ seed.wrapping_mul(29))
        .collect()
}

#[test]
fn data_written_is_read_back_and_flushed() {
    let disk = MemoryDisk::new(SIZE);
    let mut bench = Bench::new(&disk, 16);
    let data = pattern(1024, 1);
    assert_eq!(
        bench.status(&[&header(VIRTIO_BLK_T_OUT, 3), &data], &[1]),
        OK
    );
    assert_eq!(disk.contents()[3 * 512..5 * 512], data);
    let used = bench.run(&[&header(VIRTIO_BLK_T_IN, 3)], &[1024, 1]);
    assert_eq!(used.written[..1024], data);
    assert_eq!(used.written[1024..], [OK]);
    assert_eq!(bench.status(&[&header(VIRTIO_BLK_T_FLUSH, 0)], &[1]), OK);
    assert_eq!(disk.flushes(), 1);
}

#[test]
fn what_was_done_is_counted_by_kind_and_outlives_the_queue() {
    let disk = MemoryDisk::new(SIZE);
    let counters = Arc::new(Counters::new(1));
    for _ in 0..2 {
        let Bench {
            guest,
            driver,
            core,
        } = Bench::new(&disk, 16);
        let mut bench = Bench {
            guest,
            driver,
            core: core.counting_in(Arc::clone(&counters)),
        };
        let write = header(VIRTIO_BLK_T_OUT, 3);
        assert_eq!(bench.status(&[&write, &[7; 1024]], &[1]), OK);
        bench.run(&[&header(VIRTIO_BLK_T_IN, 3)], &[512, 1]);
        bench.run(&[&header(VIRTIO_BLK_T_IN, 64)], &[512, 1]);
        bench.run(&[&header(VIRTIO_BLK_T_IN, 3)], &[511, 1]);
        bench.run(&[&header(VIRTIO_BLK_T_FLUSH, 0)], &[1]);
        bench.run(&[&header(VIRTIO_BLK_T_DISCARD, 0), &range(8, 2, 0)], &[1]);
        bench.run(&[&header(VIRTIO_BLK_T_GET_ID, 0)], &[20, 1]);
        bench.run(&[&header(77, 0)], &[1]);
    }
    let counted = Kind::ALL.map(|kind| {
        let values = counters.values(kind);
        let classes: u64 = values.classes.iter().sum();
        assert_eq!(classes, values.requests);
        (values.requests, values.bytes, values.errors)
    });
    let expected = [
        (6, 1024, 4),
        (2, 2048, 0),
        (2, 0, 0),
        (2, 2048, 0),
        (0, 0, 0),
        (4, 0, 2),
    ];
    assert_eq!(counted, expected);
    assert!(counters.values(Kind::Write).nanoseconds > 0);
}

#[test]
fn the_serial_number_is_padded_or_cut() {
    let mut bench = Bench::new(&MemoryDisk::new(SIZE), 16);
    let used = bench.run(&[&header(VIRTIO_BLK_T_GET_ID, 0)], &[20, 1]);
    assert_eq!(used.written, [SERIAL.as_bytes(), &[0; 6], &[OK]].concat());
    let used = bench.run(&[&header(VIRTIO_BLK_T_GET_ID, 0)], &[4, 1]);
    assert_eq!(used.written, [&SERIAL.as_bytes()[..4], &[OK]].concat());
    assert_eq!(
        bench.run(&[&header(VIRTIO_BLK_T_GET_ID, 0)], &[1]).written,
        [OK]
    );
}

#[test]
fn discard_and_write_zeroes_work_on_their_range_only() {
    let disk = MemoryDisk::new(SIZE);
    disk.fill(&[0x55; SIZE]);
    let mut bench = Bench::new(&disk, 16);
    for (kind, sector, flags) in [
        (VIRTIO_BLK_T_WRITE_ZEROES, 2, 0),
        (VIRTIO_BLK_T_WRITE_ZEROES, 5, 1),
        (VIRTIO_BLK_T_DISCARD, 8, 0),
    ] {
        assert_eq!(
            bench.status(&[&header(kind, 0), &range(sector, 2, flags)], &[1]),
            OK
        );
    }
    let bytes = disk.contents();
    let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).take(12).collect();
    assert_eq!(
        sectors,
        [0x55, 0x55, 0, 0, 0x55, 0, 0, 0x55, 0xdd, 0xdd, 0x55, 0x55]
    );
}

/// Name, expected status, readable and writable buffers.
type Case<'a> = (&'a str, u8, &'a [&'a [u8]], &'a [usize]);

#[test]
fn what_cannot_be_is_answered_with_the_status_the_specification_has_for_it() {
    let disk = MemoryDisk::new(SIZE);
    disk.fill(&[0x55; SIZE]);
    let before = disk.contents();
    let mut bench = Bench::new(&disk, 16);
    let (io, unsupported) = (IOERR, UNSUPP);
    let zeroes = header(VIRTIO_BLK_T_WRITE_ZEROES, 0);
    let discard = header(VIRTIO_BLK_T_DISCARD, 0);
    let (read, write) = (header(VIRTIO_BLK_T_IN, 0), header(VIRTIO_BLK_T_OUT, 0));
    let two = [range(0, 1, 0), range(2, 1, 0)].concat();
    let cases: &[Case] = &[
        ("no header", io, &[], &[1]),
        ("short header", io, &[&read[..15]], &[513]),
        ("read of nothing", io, &[&read], &[1]),
        (
            "read into what is not writable",
            io,
            &[&read, &[0; 512]],
            &[1],
        ),
        ("read of half a sector", io, &[&read], &[256, 1]),
        ("write of nothing", io, &[&write], &[1]),
        (
            "write of a sector and a byte",
            io,
            &[&write, &[0; 513]],
            &[1],
        ),
        (
            "read at the end",
            io,
            &[&header(VIRTIO_BLK_T_IN, 64)],
            &[512, 1],
        ),
        (
            "read over the end",
            io,
            &[&header(VIRTIO_BLK_T_IN, 63)],
            &[1024, 1],
        ),
        (
            "write over the end",
            io,
            &[&header(VIRTIO_BLK_T_OUT, 63), &[1; 1024]],
            &[1],
        ),
        (
            "last sector there could be",
            io,
            &[&header(VIRTIO_BLK_T_IN, u64::MAX)],
            &[512, 1],
        ),
        (
            "offset that wraps to 0",
            io,
            &[&header(VIRTIO_BLK_T_OUT, 1 << 55), &[1; 512]],
            &[1],
        ),
        (
            "offset that wraps with the length",
            io,
            &[&header(VIRTIO_BLK_T_OUT, (1 << 55) - 1), &[1; 512]],
            &[1],
        ),
        ("unknown type", unsupported, &[&header(77, 0)], &[1]),
        (
            "unknown type with data",
            unsupported,
            &[&header(0xffff_ffff, 0), &[0; 512]],
            &[512, 1],
        ),
        ("SCSI command", unsupported, &[&header(2, 0)], &[1]),
        (
            "secure erase",
            unsupported,
            &[&header(14, 0), &range(0, 1, 0)],
            &[1],
        ),
        ("discard without a range", io, &[&discard], &[1]),
        ("discard with half a range", io, &[&discard, &[0; 8]], &[1]),
        ("discard of two ranges", io, &[&discard, &two], &[1]),
        (
            "discard with unmap",
            unsupported,
            &[&discard, &range(0, 1, 1)],
            &[1],
        ),
        (
            "discard with reserved flags",
            unsupported,
            &[&discard, &range(0, 1, 2)],
            &[1],
        ),
        ("discard of nothing", io, &[&discard, &range(0, 0, 0)], &[1]),
        (
            "discard over the end",
            io,
            &[&discard, &range(60, 5, 0)],
            &[1],
        ),
        (
            "discard too long",
            io,
            &[&discard, &range(0, u32::MAX, 0)],
            &[1],
        ),
        (
            "zeroes with reserved flags",
            unsupported,
            &[&zeroes, &range(0, 1, 3)],
            &[1],
        ),
        (
            "zeroes too long",
            io,
            &[&zeroes, &range(0, u32::MAX, 1)],
            &[1],
        ),
        (
            "zeroes at the end of numbers",
            io,
            &[&zeroes, &range(u64::MAX, 1, 0)],
            &[1],
        ),
    ];
    for (name, expected, readable, writable) in cases {
        assert_eq!(bench.status(readable, writable), *expected, "{name}");
    }
    assert_eq!(disk.contents(), before);
    assert_eq!(bench.guest.broken(), None);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let disk = MemoryDisk::with(Capabilities {
        read_only: true,
        ..MemoryDisk::new(SIZE).capabilities()
    });
    let mut bench = Bench::new(&disk, 16);
    assert_eq!(
        bench.status(&[&header(VIRTIO_BLK_T_OUT, 0), &[1; 512]], &[1]),
        IOERR
    );
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(
            bench.status(&[&header(kind, 0), &range(0, 1, 0)], &[1]),
            UNSUPP
        );
    }
    assert_eq!(bench.status(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]), OK);
    assert_eq!(disk.contents(), [0; SIZE]);
}

#[test]
fn requests_whose_feature_was_not_negotiated_are_unsupported() {
    let mut bench = Bench::with_features(&MemoryDisk::new(SIZE), 16, 0);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(
            bench.status(&[&header(kind, 0), &range(0, 1, 0)], &[1]),
            UNSUPP
        );
    }
}

#[test]
fn a_block_size_of_4096_is_kept() {
    let disk = MemoryDisk::with(Capabilities {
        logical_block_size: 4096,
        ..MemoryDisk::new(SIZE).capabilities()
    });
    let mut bench = Bench::new(&disk, 16);
    assert_eq!(bench.status(&[&header(VIRTIO_BLK_T_IN, 8)], &[4096, 1]), OK);
    assert_eq!(
        bench.status(&[&header(VIRTIO_BLK_T_IN, 1)], &[4096, 1]),
        IOERR
    );
    assert_eq!(
        bench.status(&[&header(VIRTIO_BLK_T_IN, 8)], &[512, 1]),
        IOERR
    );
}

/// A request of the model, and how its bytes are cut into descriptors.
#[derive(Debug, Clone)]
struct Plan {
    kind: u32,
    sector: u64,
    sectors: usize,
    seed: u8,
    cuts: Vec<usize>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let kind = prop::sample::select(vec![
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_WRITE_ZEROES,
        VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_GET_ID,
    ]);
    let cuts = prop::collection::vec(1..700_usize, 0..6);
    (kind, 0..70_u64, 1..8_usize, any::<u8>(), cuts).prop_map(
        |(kind, sector, sectors, seed, cuts)| Plan {
            kind,
            sector,
            sectors,
            seed,
            cuts,
        },
    )
}

/// Cuts `total` into pieces of these sizes, and the rest.
fn cut(total: usize, cuts: &[usize]) -> Vec<usize> {
    let mut pieces = Vec::new();
    let mut left = total;
    for &piece in cuts {
        if piece < left {
            pieces.push(piece);
            left -= piece;
        }
    }
    pieces.push(left);
    pieces
}

impl Plan {
    fn bytes(&self) -> Vec<u8> {
        let header = header(self.kind, self.sector);
        match self.kind {
            VIRTIO_BLK_T_OUT => [&header[..], &pattern(self.sectors * 512, self.seed)].concat(),
            VIRTIO_BLK_T_WRITE_ZEROES => {
                let flags = u32::from(self.seed & 1);
                let range = range(self.sector, self.sectors as u32, flags);
                [&header[..], &range].concat()
            }
            _ => header.to_vec(),
        }
    }

    fn writable(&self) -> usize {
        match self.kind {
            VIRTIO_BLK_T_IN => self.sectors * 512 + 1,
            VIRTIO_BLK_T_GET_ID => 21,
            _ => 1,
        }
    }

    /// What the driver must see in the writable part, with the model's disk changed accordingly.
    fn expect(&self, model: &mut [u8]) -> Option<Vec<u8>> {
        let start = usize::try_from(self.sector).unwrap() * 512;
        let moves = matches!(
            self.kind,
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_WRITE_ZEROES
        );
        let end = start + self.sectors * 512;
        if moves && end > model.len() {
            return None;
        }
        let mut expected = Vec::new();
        match self.kind {
            VIRTIO_BLK_T_IN => expected.extend_from_slice(&model[start..end]),
            VIRTIO_BLK_T_OUT => {
                model[start..end].copy_from_slice(&pattern(self.sectors * 512, self.seed));
            }
            VIRTIO_BLK_T_WRITE_ZEROES => model[start..end].fill(0),
            VIRTIO_BLK_T_GET_ID => {
                expected.extend_from_slice(SERIAL.as_bytes());
                expected.resize(20, 0);
            }
            _ => {}
        }
        expected.push(OK);
        Some(expected)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_layout_of_any_request_agrees_with_the_model(
        plans in prop::collection::vec(plan(), 1..40), event_idx: bool, batch in 1..5_usize
    ) {
        let disk = MemoryDisk::new(SIZE);
        let mask = if event_idx { !0 } else { !(1 << VIRTIO_RING_F_EVENT_IDX) };
        let mut bench = Bench::with_features(&disk, 128, mask);
        let mut model = vec![0; SIZE];
        for plans in plans.chunks(batch) {
            let mut expected = BTreeMap::new();
            for plan in plans {
                let (bytes, mut rest) = (plan.bytes(), &plan.bytes()[..]);
                let pieces = cut(bytes.len(), &plan.cuts);
                let readable: Vec<&[u8]> = pieces.iter().map(|&piece| {
                    let (now, later) = rest.split_at(piece);
                    rest = later;
                    now
                }).collect();
                let writable = cut(plan.writable(), &plan.cuts);
                let head = bench.driver.add_bytes(&readable, &writable);
                expected.insert(head, (plan.writable(), plan.expect(&mut model)));
                // The disk answers out of order and requests may overlap, so each is served before the next is made;
                // completions are still collected a batch at a time.
                bench.settle();
            }
            for _ in plans {
                let used = bench.driver.try_used().expect("each request is used");
                let (length, bytes) = expected.remove(&used.head).expect("and once");
                prop_assert_eq!(used.written.len(), length);
                match bytes {
                    Some(bytes) => prop_assert_eq!(used.written, bytes),
                    None => prop_assert_eq!(used.written.last(), Some(&IOERR)),
                }
            }
            prop_assert!(bench.driver.try_used().is_none());
        }
        prop_assert!(disk.contents() == model);
        prop_assert_eq!(bench.guest.broken(), None);
    }
}

#[test]
fn the_first_of_a_full_ring_do_not_wait_for_the_last() {
    let disk = MemoryDisk::new(64 * 512);
    let mut bench = Bench::new(&disk, 64);
    for (requests, expected) in [(20, vec![8, 8, 4]), (8, vec![8]), (9, vec![8, 1])] {
        for _ in 0..requests {
            let read = header(VIRTIO_BLK_T_IN, 0);
            bench.driver.add_bytes(&[&read], &[512, 1]);
        }
        let mut batches = Vec::new();
        loop {
            let more = bench.core.serve();
            batches.push(std::iter::from_fn(|| bench.driver.try_used()).count());
            if !more {
                break;
            }
        }
        assert_eq!(batches, expected);
    }
    assert!(bench.driver.interrupts() > 0);
}
