//! The structures, walked as a kernel walks them.

use proptest::prelude::*;

use super::double::input;
use super::*;

const STRINGS: [&str; 2] = ["io.systemd.credential:vmm.notify_socket=x", "second"];

fn smbios() -> Smbios {
    let strings = STRINGS.map(str::to_owned);
    Smbios::new(&input(&strings)).unwrap()
}

/// A structure: type, handle, fields from offset 0 on, strings.
struct Structure {
    kind: u8,
    handle: u16,
    fields: Vec<u8>,
    strings: Vec<String>,
}

impl Structure {
    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.fields[at], self.fields[at + 1]])
    }

    fn dword(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.dword(at)) | u64::from(self.dword(at + 4)) << 32
    }

    /// The string that a field refers to.
    fn text(&self, at: usize) -> &str {
        match self.fields[at] {
            0 => "",
            number => &self.strings[usize::from(number) - 1],
        }
    }
}

/// Walks structures as Linux's `dmi_decode_table` does, to the end and no further.
fn walk(mut rest: &[u8]) -> Vec<Structure> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (fields, strings) = rest.split_at(rest[1].into());
        let end = strings.windows(2).position(|pair| pair == [0, 0]).unwrap();
        let strings_of = strings[..end]
            .split(|byte| *byte == 0)
            .filter(|text| !text.is_empty());
        all.push(Structure {
            kind: fields[0],
            handle: u16::from_le_bytes([fields[2], fields[3]]),
            fields: fields.to_vec(),
            strings: strings_of
                .map(|text| String::from_utf8(text.to_vec()).unwrap())
                .collect(),
        });
        rest = &strings[end + 2..];
    }
    all
}

/// Also leaves the structures in the file `$PADDOCK_SMBIOS_DUMP`, for `dmidecode --from-dump`.
#[test]
fn smbios_has_the_required_structures() {
    if let Some(path) = std::env::var_os("PADDOCK_SMBIOS_DUMP") {
        std::fs::write(path, smbios().at(0)).unwrap();
    }
    let all = walk(smbios().tables());
    let shape: Vec<_> = all.iter().map(|s| (s.kind, s.fields.len())).collect();
    // Lengths as DSP0134 3.0 has them.
    assert_eq!(
        shape,
        [
            (0, 0x18),
            (1, 0x1b),
            (3, 0x16),
            (4, 0x30),
            (4, 0x30),
            (11, 5),
            (16, 0x17),
            (17, 0x28),
            (19, 0x1f),
            (19, 0x1f),
            (32, 11),
            (127, 4),
        ]
    );
    let mut handles: Vec<_> = all.iter().map(|s| s.handle).collect();
    handles.dedup();
    assert_eq!(handles.len(), all.len());
    let one = |kind| all.iter().find(|s| s.kind == kind).unwrap();

    let firmware = one(0);
    assert_eq!(
        (firmware.text(4), firmware.text(8)),
        ("Paddock", "01/01/2026")
    );
    assert_eq!(firmware.fields[0x13] & 0x18, 0x18, "UEFI, in a VM");
    let system = one(1);
    let texts = [4, 5, 6, 7].map(|at| system.text(at));
    assert_eq!(
        texts,
        ["Paddock", "Virtual Machine", "0.1.0", "ds=nocloud;s=/x"]
    );
    assert_eq!(
        system.fields[8..24],
        *b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
    );
    assert_eq!(one(3).text(8), "rack 7");
    let processor = one(4);
    assert_eq!(
        (processor.text(4), processor.text(7)),
        ("CPU 0", "AuthenticAMD")
    );
    assert_eq!(processor.text(0x10), "AMD EPYC 7763 64-Core Processor");
    assert_eq!(processor.dword(8), 0x00a0_0f11);
    assert_eq!(processor.fields[0x18], 0x41);
    assert_eq!(processor.fields[0x23..0x26], [4, 4, 8]);
    assert_eq!([0x2a, 0x2c, 0x2e].map(|at| processor.word(at)), [4, 4, 8]);
    assert_eq!(
        (one(11).fields[4], &one(11).strings[..]),
        (2, &STRINGS.map(str::to_owned)[..])
    );

    let (array, module) = (one(16), one(17));
    assert_eq!((array.dword(7), array.word(0xd)), (3 << 20, 1));
    assert_eq!((module.word(4), module.word(0xc)), (array.handle, 3072));
    assert_eq!(module.text(0x10), "DIMM 0");
    let mapped: Vec<_> = all
        .iter()
        .filter(|s| s.kind == 19)
        .map(|s| (s.dword(4), s.dword(8)))
        .collect();
    assert_eq!(mapped, [(0, (2 << 20) - 1), (4 << 20, (5 << 20) - 1)]);
}

#[test]
fn much_memory_takes_the_extended_fields() {
    let strings = [];
    let make = |ram_size| {
        let input = SmbiosInput {
            ram_size,
            serial: "",
            ..input(&strings)
        };
        walk(Smbios::new(&input).unwrap().tables())
    };
    let all = make(8 << 40);
    let one = |kind, nth| all.iter().filter(|s| s.kind == kind).nth(nth).unwrap();
    assert!(all.iter().all(|s| s.kind != 11));
    assert_eq!(one(1, 0).text(7), "");
    assert_eq!(
        (one(16, 0).dword(7), one(16, 0).long(0xf)),
        (0x8000_0000, 8 << 40)
    );
    assert_eq!(
        (one(17, 0).word(0xc), one(17, 0).dword(0x1c)),
        (0x7fff, 8 << 20)
    );
    assert_eq!(one(19, 0).dword(8), (2 << 20) - 1);
    let high = one(19, 1);
    assert_eq!((high.dword(4), high.dword(8)), (u32::MAX, u32::MAX));
    assert_eq!(
        (high.long(0xf), high.long(0x17)),
        (4 << 30, (8 << 40) + (2 << 30) - 1)
    );
    let small = make(512 << 20);
    assert_eq!(small.iter().filter(|s| s.kind == 19).count(), 1);
}

#[test]
fn the_entry_point_is_firmwares_to_finish_or_whole() {
    let smbios = smbios();
    let anchor = smbios.anchor();
    assert_eq!((&anchor[..5], anchor[6]), (&b"_SM3_"[..], 24));
    assert_eq!(anchor[7..9], [3, 0]);
    let size = u32::from_le_bytes(anchor[12..16].try_into().unwrap());
    assert_eq!(usize::try_from(size).unwrap(), smbios.tables().len());
    assert_eq!((anchor[5], &anchor[16..]), (0, &[0; 8][..]));

    let base = layout::SMBIOS_TABLES;
    let whole = smbios.at(base);
    assert_eq!(
        whole[..24]
            .iter()
            .fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
    let tables = u64::from_le_bytes(whole[16..24].try_into().unwrap()) - base;
    assert_eq!(&whole[usize::try_from(tables).unwrap()..], smbios.tables());
}

/// As Linux scans: at each multiple of 16 from 0xF0000 to 1 MiB.
#[test]
fn under_direct_boot_a_kernel_finds_it() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    smbios().write(&memory).unwrap();
    let mut area = vec![0; 0x1_0000];
    memory
        .read_slice(&mut area, GuestAddress(0xf_0000))
        .unwrap();
    let places = (0..area.len()).step_by(16);
    let found: Vec<_> = places
        .filter(|at| area[*at..].starts_with(b"_SM3_"))
        .collect();
    let &[at] = &found[..] else {
        panic!("{found:?}");
    };
    let field = |from: usize, bytes: usize| {
        let field = area[at + from..at + from + bytes].iter().rev();
        field.fold(0, |all, byte| all << 8 | usize::from(*byte))
    };
    let tables = field(16, 8) - 0xf_0000;
    let all = walk(&area[tables..tables + field(12, 4)]);
    assert_eq!(all.last().unwrap().kind, 127);

    let little = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0xf_0000)]).unwrap();
    assert!(smbios().write(&little).is_err());
}

#[test]
fn texts_that_smbios_cannot_hold_are_refused() {
    let refusal = |serial: &str, strings: &[String]| {
        let input = SmbiosInput {
            serial,
            ..input(strings)
        };
        Smbios::new(&input).unwrap_err().to_string()
    };
    for serial in ["a\0b", "a\nb", "\u{85}"] {
        let message = refusal(serial, &[]);
        assert!(
            message.contains("serial number contains a control"),
            "{message}"
        );
    }
    for (strings, words) in [
        (vec![String::new()], "OEM string is empty"),
        (vec!["x".to_owned(); 256], "one too many"),
        (vec!["x".repeat(70_000)], "there is room for 65504"),
    ] {
        let message = refusal("1", &strings);
        assert!(message.contains(words), "{message}");
    }
    let most = vec!["x".to_owned(); 255];
    let all = walk(Smbios::new(&input(&most)).unwrap().tables());
    let strings = all.iter().find(|s| s.kind == 11).unwrap();
    assert_eq!((strings.fields[4], strings.strings.len()), (255, 255));
}

proptest! {
    #[test]
    fn any_texts_make_structures_that_can_be_walked(
        serial in ".{0,40}",
        tag in "[ -~]{0,40}",
        strings in prop::collection::vec("[ -~é]{0,80}", 0..20),
        ram_mib in 64u64..1 << 26,
    ) {
        let input = SmbiosInput {
            serial: &serial,
            asset_tag: &tag,
            ram_size: ram_mib << 20,
            ..input(&strings)
        };
        match Smbios::new(&input) {
            Ok(smbios) => {
                let all = walk(smbios.tables());
                prop_assert_eq!(all.last().unwrap().kind, 127);
                let system = all.iter().find(|s| s.kind == 1).unwrap();
                prop_assert_eq!(system.text(7), serial);
            }
            Err(_) => prop_assert!(
                serial.chars().any(char::is_control) || strings.iter().any(String::is_empty)
            ),
        }
    }
}
