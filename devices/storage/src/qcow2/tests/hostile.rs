//! Images that are not what they should be: each is refused, and nothing panics.

use super::*;
use crate::qcow2::header::Header;
use std::os::unix::fs::FileExt;

/// The bytes of a small image with something in it.
fn image(options: &str) -> (TempDir, PathBuf, Vec<u8>) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    create(&path, options, 4 << 20);
    let disk = open(&Qcow2Options::new(&path));
    let mut queue = disk.open_queue(4).unwrap();
    for offset in [0, 1 << 20, 3 << 20] {
        write(&mut *queue, offset, &pattern(5, 65_536)).unwrap();
    }
    // A thread of the queue may be the last to let go of the image, after this one has read it.
    run(&mut *queue, Operation::Flush).unwrap();
    drop(queue);
    drop(disk);
    let bytes = fs::read(&path).unwrap();
    (directory, path, bytes)
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The image with some of its bytes changed.
fn with(bytes: &[u8], at: u64, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at as usize..at as usize + new.len()].copy_from_slice(new);
    bytes
}

#[test]
fn headers_that_lie() {
    let (_directory, _path, bytes) = image("");
    let length = bytes.len() as u64;
    Header::parse(&bytes, length).unwrap();
    let damaged = |at: u64, new: &[u8]| {
        let error = Header::parse(&with(&bytes, at, new), length).unwrap_err();
        assert!(matches!(error, Qcow2Problem::Damaged(_)), "{at}: {error:?}");
    };
    let far = (1_u64 << 40).to_be_bytes();
    let odd = 0x3_0200_u64.to_be_bytes();
    // L1 table, table of reference counts, and where there are snapshots, theirs: beyond the end, in no cluster, over the end of all.
    for at in [40, 48] {
        for offset in [far, odd, [0; 8], [0xff; 8], (u64::MAX << 16).to_be_bytes()] {
            damaged(at, &offset);
        }
    }
    for bits in [0_u32, 8, 22, 31, 32, 63, 64, u32::MAX] {
        damaged(20, &bits.to_be_bytes());
    }
    // L1: none, more than the file has, more than anybody has.
    for entries in [0_u32, 1 << 20, (4 << 20) + 1, u32::MAX] {
        damaged(36, &entries.to_be_bytes());
    }
    for clusters in [0_u32, 100, 1 << 20, u32::MAX] {
        damaged(56, &clusters.to_be_bytes());
    }
    for snapshots in [1_u32, 65_537, u32::MAX] {
        damaged(60, &snapshots.to_be_bytes());
    }
    damaged(96, &7_u32.to_be_bytes());
    damaged(96, &u32::MAX.to_be_bytes());
    for header in [0_u32, 103, 105, 1 << 20, u32::MAX] {
        damaged(100, &header.to_be_bytes());
    }
    // A disk that the L1 table is too small for.
    for size in [1_u64 << 40, u64::MAX - 511] {
        damaged(24, &size.to_be_bytes());
    }
    // A backing file's name beyond the first cluster, too long, none.
    for offset in [far, 65_535_u64.to_be_bytes(), [0xff; 8]] {
        damaged(8, &[&offset[..], &8_u32.to_be_bytes()].concat());
    }
    for length in [0_u32, 1024, u32::MAX] {
        damaged(
            8,
            &[&512_u64.to_be_bytes()[..], &length.to_be_bytes()].concat(),
        );
    }
    // Extensions without an end, with one in the middle of nowhere, and one that makes imago panic.
    let extension = number(&bytes, 96) & 0xffff_ffff;
    for (kind, length) in [(1_u32, u32::MAX), (1, 70_000), (0x6803_f857, 49)] {
        damaged(
            extension,
            &[kind.to_be_bytes(), length.to_be_bytes()].concat(),
        );
    }
    for short in [8, 71, 103, 111] {
        let error = Header::parse(&bytes[..short], length).unwrap_err();
        assert!(
            matches!(error, Qcow2Problem::Damaged(_)),
            "{short}: {error:?}"
        );
    }
}

#[test]
fn headers_that_say_what_cannot_be_had() {
    let (_directory, path, bytes) = image("");
    let say = |at: u64, new: &[u8]| {
        fs::write(&path, with(&bytes, at, new)).unwrap();
        let problems = [Qcow2Options::new(&path), read_only(&path)].map(|image| problem(&image));
        assert_eq!(problems[0], problems[1]);
        problems[0].clone()
    };
    assert_eq!(say(0, b"RAW!"), Qcow2Problem::NotQcow2);
    assert_eq!(say(4, &1_u32.to_be_bytes()), Qcow2Problem::Version(1));
    assert_eq!(say(4, &4_u32.to_be_bytes()), Qcow2Problem::Version(4));
    assert_eq!(say(79, &[1]), Qcow2Problem::Dirty);
    assert_eq!(say(79, &[2]), Qcow2Problem::Corrupt);
    let unknown = Feature::Unknown(1 << 63 | 1 << 5);
    assert_eq!(
        say(72, &[0x80, 0, 0, 0, 0, 0, 0, 0x20]),
        Qcow2Problem::Unsupported(unknown)
    );
    let encryption = Qcow2Problem::Unsupported(Feature::Encryption);
    assert_eq!(say(32, &1_u32.to_be_bytes()), encryption);
    assert_eq!(say(24, &1000_u64.to_be_bytes()), Qcow2Problem::Size(1000));
    assert_eq!(say(24, &[0; 8]), Qcow2Problem::Size(0));
    fs::write(&path, b"").unwrap();
    assert_eq!(problem(&Qcow2Options::new(&path)), Qcow2Problem::NotQcow2);
}

#[test]
fn tables_that_contradict_each_other_are_not_written_to() {
    let (_directory, path, bytes) = image("");
    let l1 = number(&bytes, 40);
    let reftable = number(&bytes, 48);
    let block = number(&bytes, reftable as usize);
    let l2 = number(&bytes, l1 as usize) & !(1 << 63);
    let data = number(&bytes, l2 as usize);
    let entry = |entry: u64| entry.to_be_bytes().to_vec();
    let copied = 1 << 63;
    let count = |cluster: u64, count: u16| (block + cluster * 2, count.to_be_bytes().to_vec());
    for (at, new) in [
        // Tables and data where other tables are, beyond the end, and in no cluster.
        (l1, entry(l1 | copied)),
        (l1, entry(block | copied)),
        (l1, entry(copied | 1 << 40)),
        (l1, entry(copied | 0x3_0200)),
        (l1, entry(copied | l2 | 1)),
        (l2, entry(copied | l2)),
        (l2, entry(copied)),
        (l2, entry(copied | 0x00ff_ffff_ffff_0000)),
        (l2, entry(data | 2)),
        (l2 + 8, entry(data)),
        (reftable, entry(0)),
        (reftable, entry(l2)),
        (reftable, entry(1 << 40)),
        (reftable, entry(block | 8)),
        (reftable + 8, entry(block)),
        // Compressed data where a table is, and beyond the end.
        (l2, entry(1 << 62 | l2)),
        (l2, entry(1 << 62 | 1 << 40)),
        (l2, entry(copied | 1 << 62 | data & !copied)),
        // In use, and counted as free; counted twice, and said to be nobody else's, and the other way round.
        count(0, 0),
        count(l1 >> 16, 0),
        count(l2 >> 16, 0),
        count((data & !copied) >> 16, 0),
        count((data & !copied) >> 16, 2),
        (l2, entry(data & !copied)),
        (l1, entry(l2)),
    ] {
        fs::write(&path, with(&bytes, at, &new)).unwrap();
        let problem = problem(&Qcow2Options::new(&path));
        assert!(
            matches!(problem, Qcow2Problem::Damaged(_)),
            "{at} {new:?}: {problem:?}"
        );
    }
    // What is only lost does no harm.
    for (at, new) in [(l2, entry(0)), count(1000, 1)] {
        fs::write(&path, with(&bytes, at, &new)).unwrap();
        open(&Qcow2Options::new(&path));
    }
}

#[test]
fn a_file_that_says_it_is_huge_is_not_read_for_long() {
    let (_directory, path, _) = image("cluster_size=512");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1 << 42).unwrap();
    assert_eq!(problem(&Qcow2Options::new(&path)), Qcow2Problem::TooLarge);
    file.write_all_at(&21_u32.to_be_bytes(), 20).unwrap();
    let problem = problem(&Qcow2Options::new(&path));
    assert!(matches!(problem, Qcow2Problem::Damaged(_)), "{problem:?}");
}

/// Reads and writes all over a disk, whatever comes of it.
fn use_it(options: &Qcow2Options) {
    let Ok(disk) = Qcow2Disk::open(options) else {
        return;
    };
    let size = disk.size();
    let mut queue = disk.open_queue(4).unwrap();
    for part in 0..16 {
        let offset = (size / 16 * part) & !511;
        let buffer = Buffer::zeroed(4096);
        let _ = run(&mut *queue, Operation::Read { offset, buffer });
        let _ = write(&mut *queue, offset + 4096, &[part as u8; 1024]);
        let length = 65_536;
        let _ = run(&mut *queue, Operation::Discard { offset, length });
    }
    let _ = run(&mut *queue, Operation::Flush);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn no_bytes_make_the_header_s_reader_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..2000),
        version in 0..5_u8,
        bits in 0..70_u8,
        file_size in any::<u64>(),
    ) {
        for (at, byte) in [(0, b'Q'), (1, b'F'), (2, b'I'), (3, 0xfb), (4, 0), (5, 0), (6, 0), (7, version), (23, bits)] {
            if let Some(there) = bytes.get_mut(at) {
                *there = byte;
            }
        }
        let _ = Header::parse(&bytes, file_size);
    }

    /// Changes a sound image's tables at random: it is refused, or works without harm to the process.
    #[test]
    fn no_image_makes_a_disk_panic(
        small in any::<bool>(),
        changes in prop::collection::vec((0..6_usize, 0..64_u64, prop_oneof![
            any::<u64>(),
            (0..64_u64, 0..16_u64).prop_map(|(cluster, flags)| cluster << 16 | flags >> 2 << 62 | flags & 3),
            (0..300_u64, 0..16_u64).prop_map(|(cluster, flags)| cluster << 9 | flags >> 2 << 62 | flags & 3),
        ]), 1..5),
        write in any::<bool>(),
    ) {
        let (_directory, path, mut bytes) = image(if small { "cluster_size=512" } else { "" });
        let l1 = number(&bytes, 40) as usize;
        let reftable = number(&bytes, 48) as usize;
        let block = number(&bytes, reftable) as usize;
        let l2 = (number(&bytes, l1) & !(1 << 63)) as usize;
        for (place, index, value) in changes {
            let at = [0, 96, l1, l2, reftable, block][place] + index as usize * 8;
            if at + 8 <= bytes.len() {
                bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
            }
        }
        fs::write(&path, &bytes).unwrap();
        use_it(&Qcow2Options { read_only: !write, ..Qcow2Options::new(&path) });
    }
}
