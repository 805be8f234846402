//! Whatever mixes of features qemu-img offers: random operations, compared with a model and with what qemu-img sees afterwards.

use super::*;
use proptest::test_runner::{Config, TestRunner};

/// Not a multiple of any cluster's size, so that the last is cut.
const SIZE: u64 = (9 << 20) + 3 * 512;
const SECTORS: u64 = SIZE / 512;

#[derive(Debug, Clone)]
enum Op {
    Read,
    Write(u8),
    Zero { unmap: bool },
    Discard,
    Flush,
}

/// Operations on ranges of sectors, from single ones to those that take several steps.
fn operations() -> impl Strategy<Value = Vec<(u64, u64, Op)>> {
    let length = prop_oneof![3 => 1..20_u64, 2 => 1..300_u64, 1 => 1..3000_u64];
    let range = (0..SECTORS, length).prop_map(|(start, n)| (start, n.min(SECTORS - start)));
    let op = prop_oneof![
        3 => Just(Op::Read),
        5 => any::<u8>().prop_map(Op::Write),
        1 => any::<bool>().prop_map(|unmap| Op::Zero { unmap }),
        1 => Just(Op::Discard),
        1 => Just(Op::Flush),
    ];
    let one = (range, op).prop_map(|((start, sectors), op)| (start, sectors, op));
    prop::collection::vec(one, 1..60)
}

/// What the disk must have. Sectors that were discarded may have anything.
struct Model {
    bytes: Vec<u8>,
    unknown: Vec<bool>,
}

impl Model {
    fn set(&mut self, start: u64, bytes: &[u8]) {
        let at = start as usize * 512;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.unknown[start as usize..start as usize + bytes.len() / 512].fill(false);
    }

    fn compare(&self, start: u64, bytes: &[u8]) {
        for (sector, bytes) in (start as usize..).zip(bytes.chunks(512)) {
            let same = self.bytes[sector * 512..(sector + 1) * 512] == *bytes;
            assert!(same || self.unknown[sector], "sector {sector} differs");
        }
    }
}

fn perform(disk: &Qcow2Disk, model: &mut Model, operations: &[(u64, u64, Op)]) {
    let capabilities = disk.capabilities();
    let mut queue = disk.open_queue(4).unwrap();
    for &(start, sectors, ref op) in operations {
        let (offset, length) = (start * 512, sectors * 512);
        match *op {
            Op::Read => {
                let bytes = read(&mut *queue, offset, &[length as usize], 1);
                model.compare(start, &bytes);
            }
            Op::Write(seed) => {
                let bytes = pattern(seed, length);
                write(&mut *queue, offset, &bytes).unwrap();
                model.set(start, &bytes);
            }
            Op::Zero { unmap } => {
                let may_unmap = unmap;
                let zero = Operation::WriteZeroes {
                    offset,
                    length,
                    may_unmap,
                };
                run(&mut *queue, zero).unwrap();
                model.set(start, &vec![0; length as usize]);
            }
            Op::Discard => {
                let result = run(&mut *queue, Operation::Discard { offset, length });
                if capabilities.discard {
                    result.unwrap();
                    model.unknown[start as usize..(start + sectors) as usize].fill(true);
                } else {
                    assert_eq!(result, Err(IoError::Unsupported));
                }
            }
            Op::Flush => run(&mut *queue, Operation::Flush).unwrap(),
        }
    }
}

/// Makes an image, works on it in two goes, and has qemu look at it.
fn check(options: &str, direct: Direct, operations: &[(u64, u64, Op)]) {
    let directory = TempDir::new_in("/var/tmp").unwrap();
    let path = directory.path().join("image");
    create(&path, options, SIZE);
    let mut model = Model {
        bytes: vec![0; SIZE as usize],
        unknown: vec![false; SECTORS as usize],
    };
    let image = Qcow2Options {
        direct,
        ..Qcow2Options::new(&path)
    };
    let (first, second) = operations.split_at(operations.len() / 2);
    for operations in [first, second] {
        let disk = open(&image);
        assert_eq!(disk.size(), SIZE);
        perform(&disk, &mut model, operations);
    }
    assert_sound(&path);
    let seen = seen_by_qemu(&path);
    model.compare(0, &seen);
    let again = contents(&open(&read_only(&path)));
    assert!(again == seen, "qemu sees something else");
}

/// Each mix, with so many different sequences of operations.
fn check_all(cases: u32, mixes: impl IntoIterator<Item = String>) {
    for (index, options) in mixes.into_iter().enumerate() {
        let direct = [Direct::Auto, Direct::Off][index % 2];
        let config = Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        };
        let result = TestRunner::new(config).run(&operations(), |operations| {
            check(&options, direct, &operations);
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{options}, {direct:?}: {error}"));
    }
}

const CLUSTERS: [&str; 5] = ["512", "4k", "64k", "256k", "2M"];
const PREALLOCATIONS: [&str; 4] = ["off", "metadata", "falloc", "full"];
const REFERENCE_COUNT_BITS: [&str; 7] = ["1", "2", "4", "8", "16", "32", "64"];

#[test]
fn images_of_version_2() {
    check_all(
        2,
        CLUSTERS.iter().flat_map(|cluster| {
            PREALLOCATIONS.map(|preallocation| {
                format!("compat=0.10,cluster_size={cluster},preallocation={preallocation}")
            })
        }),
    );
}

#[test]
fn images_of_version_3() {
    check_all(
        2,
        CLUSTERS.iter().flat_map(|cluster| {
            PREALLOCATIONS.map(|preallocation| {
                format!("compat=1.1,cluster_size={cluster},preallocation={preallocation}")
            })
        }),
    );
}

#[test]
fn reference_counts_of_all_widths() {
    let clusters = ["512", "64k", "2M"];
    check_all(
        2,
        clusters.into_iter().flat_map(|cluster| {
            REFERENCE_COUNT_BITS.map(|bits| format!("cluster_size={cluster},refcount_bits={bits}"))
        }),
    );
}

/// Each of these three with each; the sizes of clusters take turns, as all of them with all would take too long.
#[test]
fn reference_counts_lazy_and_preallocated() {
    let mut clusters = CLUSTERS.into_iter().cycle();
    let mut mixes = Vec::new();
    for lazy in ["on", "off"] {
        for preallocation in PREALLOCATIONS {
            for bits in REFERENCE_COUNT_BITS {
                let cluster = clusters.next().unwrap();
                mixes.push(format!("cluster_size={cluster},refcount_bits={bits},lazy_refcounts={lazy},preallocation={preallocation}"));
            }
        }
    }
    check_all(1, mixes);
}

#[test]
fn what_is_not_supported_is_refused_with_a_way_out() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    let data = directory.path().join("data");
    let external = format!("data_file={}", data.display());
    for (options, feature, way) in [
        ("extended_l2=on", Feature::ExtendedL2, "extended_l2=off"),
        (
            "compression_type=zstd",
            Feature::Compression,
            "compression_type=zlib",
        ),
        (&external, Feature::ExternalData, "qemu-img convert"),
    ] {
        create(&path, options, 1 << 20);
        for image in [Qcow2Options::new(&path), read_only(&path)] {
            assert_eq!(problem(&image), Qcow2Problem::Unsupported(feature.clone()));
            let text = refused(&image).to_string();
            assert!(text.contains(way), "{text}");
        }
    }
    let secret = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        "secret,id=s,data=x",
    ];
    let luks = [
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
    ];
    let arguments = secret.into_iter().chain(luks).map(OsStr::new);
    qemu_img(arguments.chain([path.as_os_str(), "1M".as_ref()]));
    let encrypted = Qcow2Problem::Unsupported(Feature::Encryption);
    assert_eq!(problem(&Qcow2Options::new(&path)), encrypted);
}

#[test]
fn compressed_clusters_are_read_and_written_over() {
    let directory = TempDir::new().unwrap();
    let raw = directory.path().join("raw");
    // Half of it compresses well, and the other half not at all.
    let mut bytes = pattern(3, 4 << 20);
    let mut state = 1_u64;
    for byte in &mut bytes[2 << 20..] {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        *byte = (state >> 33) as u8;
    }
    fs::write(&raw, &bytes).unwrap();
    for options in [
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=64k",
        "cluster_size=2M",
    ] {
        let path = directory.path().join("image");
        let format = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options];
        let files = [raw.as_os_str(), path.as_os_str()];
        qemu_img(format.map(OsStr::new).into_iter().chain(files));
        let check = ["check", "--output=json"].map(OsStr::new);
        let output = try_qemu_img(check.into_iter().chain([path.as_os_str()]));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("\"compressed-clusters\": "),
            "{options}: {text}"
        );
        assert!(contents(&open(&read_only(&path))) == bytes, "{options}");
        let mut now = bytes.clone();
        let disk = open(&Qcow2Options::new(&path));
        let mut queue = disk.open_queue(4).unwrap();
        for (seed, at) in (0..).zip([0, 3 * 512, 65536 + 512, (1 << 20) - 512, 3 << 20]) {
            let part = pattern(seed, 1024);
            write(&mut *queue, at, &part).unwrap();
            now[at as usize..at as usize + 1024].copy_from_slice(&part);
        }
        assert!(contents(&disk) == now, "{options}");
        drop(queue);
        drop(disk);
        assert_sound(&path);
        assert!(seen_by_qemu(&path) == now, "{options}");
    }
}

#[test]
fn snapshots_stay_as_they_are() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    for options in ["compat=0.10", "cluster_size=512", "cluster_size=64k"] {
        create(&path, options, 4 << 20);
        let before = pattern(1, 4 << 20);
        let disk = open(&Qcow2Options::new(&path));
        write(&mut *disk.open_queue(4).unwrap(), 0, &before).unwrap();
        drop(disk);
        let snapshot = |what: &str| {
            let arguments = ["snapshot", what, "s"].map(OsStr::new);
            qemu_img(arguments.into_iter().chain([path.as_os_str()]));
        };
        snapshot("-c");
        let disk = open(&Qcow2Options::new(&path));
        let mut queue = disk.open_queue(4).unwrap();
        let mut now = before.clone();
        for at in (0..4 << 20).step_by(300 * 512) {
            write(&mut *queue, at, &pattern(9, 512)).unwrap();
            now[at as usize..at as usize + 512].copy_from_slice(&pattern(9, 512));
        }
        drop(queue);
        drop(disk);
        assert_sound(&path);
        assert!(seen_by_qemu(&path) == now, "{options}");
        snapshot("-a");
        assert!(
            contents(&open(&Qcow2Options::new(&path))) == before,
            "{options}"
        );
        snapshot("-d");
        open(&Qcow2Options::new(&path));
    }
}
