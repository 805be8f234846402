//! The files as firmware reads them: through fw_cfg itself, the script run as edk2 runs it, SMBIOS walked as a kernel walks it.

use std::collections::BTreeMap;

use paddock_devices::bus::BusDevice;
use paddock_devices::firmware::fw_cfg::FwCfg;
use paddock_devices::pci::DeviceFunction;
use paddock_devices::virtio::{GuestMap, GuestRam};
use parking_lot::Mutex;
use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::smbios::{Processors, SmbiosInput};
use super::*;
use crate::acpi::{AcpiTables, TablesInput};

fn shape(ecam: u64) -> TablesInput {
    TablesInput {
        apic_ids: vec![0, 1],
        present: None,
        ecam: ecam..ecam + layout::ECAM_SIZE,
        mmio32: 0xC000_0000..0xE000_0000,
        mmio64: 0xE0_0000_0000..0x100_0000_0000,
        pm_base: 0x600,
    }
}

#[derive(Debug)]
struct Shape(Mutex<TablesInput>);

impl MachineShape for Shape {
    fn tables_input(&self) -> TablesInput {
        self.0.lock().clone()
    }
}

fn machine() -> Arc<Shape> {
    Arc::new(Shape(Mutex::new(shape(0xE000_0000))))
}

const STRINGS: [&str; 2] = ["io.systemd.credential:vmm.notify_socket=x", "second"];

fn smbios_input<'a>(oem_strings: &'a [String]) -> SmbiosInput<'a> {
    SmbiosInput {
        uefi: true,
        uuid: *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
        serial: "ds=nocloud;s=/x",
        asset_tag: "rack 7",
        oem_strings,
        version: "0.1.0",
        processors: Processors {
            sockets: 2,
            cores: 4,
            threads: 2,
            vendor: "AuthenticAMD",
            brand: "  AMD EPYC 7763 64-Core Processor ",
            signature: (0x00a0_0f11, 0x178b_fbff),
        },
        ram_size: 3 << 30,
    }
}

fn smbios() -> Smbios {
    let strings = STRINGS.map(str::to_owned);
    Smbios::new(&smbios_input(&strings)).unwrap()
}

/// All files, read through the device's ports.
struct Reader(FwCfg);

impl Reader {
    fn new(items: FwCfgItems) -> Self {
        let map = GuestMap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        Self(FwCfg::new(items, GuestRam::new(map)))
    }

    fn item(&self, key: u16, size: usize) -> Vec<u8> {
        self.0.write(0, &key.to_le_bytes());
        let mut bytes = vec![0; size];
        for byte in &mut bytes {
            self.0.read(1, std::slice::from_mut(byte));
        }
        bytes
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let count = u32::from_be_bytes(self.item(0x19, 4).try_into().unwrap());
        let directory = self.item(0x19, 4 + 64 * usize::try_from(count).unwrap());
        let entries = directory[4..].chunks_exact(64).map(|entry| {
            let name = entry[8..].split(|byte| *byte == 0).next().unwrap();
            let size = u32::from_be_bytes(entry[..4].try_into().unwrap());
            let key = u16::from_be_bytes([entry[4], entry[5]]);
            let contents = self.item(key, usize::try_from(size).unwrap());
            (String::from_utf8(name.to_vec()).unwrap(), contents)
        });
        entries.collect()
    }
}

fn input<'a>(machine: &Arc<Shape>, smbios: &'a Smbios) -> FilesInput<'a> {
    FilesInput {
        kind: FirmwareKind::Uefi,
        ram_size: 3 << 30,
        memory_max: 0,
        cpus: (2, 4),
        shape: Arc::clone(machine) as _,
        boot_order: &[],
        smbios,
    }
}

/// Runs the script as firmware does: files to addresses, pointers, sums. Gives what is in memory then.
fn run(files: &BTreeMap<String, Vec<u8>>, addresses: &[(&str, u64)]) -> BTreeMap<String, Vec<u8>> {
    let mut memory: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let script = &files["etc/table-loader"];
    assert_eq!(script.len() % 128, 0);
    for command in script.chunks_exact(128) {
        let name = |at: usize| {
            let field = command[at..at + 56].split(|byte| *byte == 0).next();
            String::from_utf8(field.unwrap().to_vec()).unwrap()
        };
        let number = |at: usize| {
            let field = u32::from_le_bytes(command[at..at + 4].try_into().unwrap());
            usize::try_from(field).unwrap()
        };
        let end_of_fields = match number(0) {
            1 => {
                let (alignment, zone) = (number(60) as u64, command[64]);
                let (_, address) = addresses.iter().find(|(file, _)| *file == name(4)).unwrap();
                assert!(alignment.is_power_of_two() && address % alignment == 0);
                assert!((1..=2).contains(&zone));
                assert!(memory.insert(name(4), files[&name(4)].clone()).is_none());
                65
            }
            2 => {
                let (_, base) = addresses
                    .iter()
                    .find(|(file, _)| *file == name(60))
                    .unwrap();
                assert!(memory.contains_key(&name(60)));
                let target = memory[&name(60)].len() as u64;
                let (at, size) = (number(116), usize::from(command[120]));
                let field = &mut memory.get_mut(&name(4)).unwrap()[at..at + size];
                let mut value = [0; 8];
                value[..size].copy_from_slice(field);
                let value = u64::from_le_bytes(value);
                assert!(value < target);
                field.copy_from_slice(&(value + base).to_le_bytes()[..size]);
                121
            }
            3 => {
                let (at, start, length) = (number(60), number(64), number(68));
                let file = memory.get_mut(&name(4)).unwrap();
                let sum = file[start..start + length]
                    .iter()
                    .fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
                file[at] = file[at].wrapping_add(sum);
                72
            }
            other => panic!("command {other}"),
        };
        assert!(command[end_of_fields..].iter().all(|byte| *byte == 0));
    }
    memory
}

#[test]
fn the_script_makes_what_direct_boot_makes() {
    let (machine, smbios) = (machine(), smbios());
    let reader = Reader::new(items(&input(&machine, &smbios)).unwrap());
    // Firmware moves ECAM after the script was made, and before it reads the tables.
    for ecam in [0xE000_0000, 0xB000_0000] {
        *machine.0.lock() = shape(ecam);
        let files = reader.files();
        let base = 0x7EB7_7000;
        let memory = run(
            &files,
            &[
                ("etc/acpi/tables", base.into()),
                ("etc/acpi/rsdp", 0xF_5A40),
            ],
        );
        let expected = AcpiTables::new(&shape(ecam));
        assert!(memory["etc/acpi/tables"] == expected.at(base), "{ecam:#x}");
        assert_eq!(memory["etc/acpi/rsdp"], expected.rsdp(base));
    }
}

#[test]
fn tables_keep_their_layout_whatever_the_guest_does() {
    let (machine, smbios) = (machine(), smbios());
    let reader = Reader::new(items(&input(&machine, &smbios)).unwrap());
    let before = reader.files();
    let mut odd = shape(0xE000_0000);
    odd.mmio64 = 0..0;
    *machine.0.lock() = odd;
    assert!(reader.files() == before, "as at power-on");
}

#[test]
fn uefi_is_told_what_it_looks_for() {
    let (machine, smbios) = (machine(), smbios());
    let place = |device, function| DeviceFunction::new(device, function).unwrap();
    let order = [BootPlace::Disk(place(4, 0))];
    let input = FilesInput {
        boot_order: &order,
        memory_max: 4 << 30,
        ..input(&machine, &smbios)
    };
    let reader = Reader::new(items(&input).unwrap());
    assert_eq!(reader.item(5, 4), [2, 0, 0, 0]);
    assert_eq!(reader.item(15, 2), [4, 0]);
    assert_eq!(reader.item(0x8002, 1), [0]);
    let files = reader.files();
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "bootorder",
            "etc/acpi/rsdp",
            "etc/acpi/tables",
            "etc/e820",
            "etc/reserved-memory-end",
            "etc/smbios/smbios-anchor",
            "etc/smbios/smbios-tables",
            "etc/table-loader",
        ]
    );
    assert_eq!(files["bootorder"], b"/pci@i0cf8/scsi@4/disk@0,0\0");
    // RAM ends at 5 GiB; what is added starts at the next multiple of 2 GiB.
    assert_eq!(files["etc/reserved-memory-end"], (7u64 << 30).to_le_bytes());
    assert_eq!(files["etc/smbios/smbios-tables"], smbios.tables());
    let entries: Vec<_> = files["etc/e820"]
        .chunks_exact(20)
        .map(|entry| {
            let long = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
            (
                long(0),
                long(8),
                u32::from_le_bytes(entry[16..].try_into().unwrap()),
            )
        })
        .collect();
    let expected = [
        (0, 2 << 30, 1),
        (4 << 30, 1 << 30, 1),
        (0xfeff_c000, 0x4000, 2),
    ];
    assert_eq!(entries, expected);
    assert_eq!(e820(1 << 30).len(), 40, "no high RAM");
}

#[test]
fn a_bios_gets_its_console() {
    let (machine, smbios) = (machine(), smbios());
    let input = FilesInput {
        kind: FirmwareKind::Bios,
        ..input(&machine, &smbios)
    };
    let reader = Reader::new(items(&input).unwrap());
    assert_eq!(reader.item(0x8002, 1), [1]);
    let files = reader.files();
    assert_eq!(files["etc/sercon-port"], [0xf8, 0x03]);
    assert!(!files.contains_key("bootorder") && !files.contains_key("etc/reserved-memory-end"));
}

#[test]
fn the_boot_order_names_devices_as_qemu_does() {
    let place = |device, function| DeviceFunction::new(device, function).unwrap();
    let order = [
        BootPlace::Disk(place(0x1e, 3)),
        BootPlace::Scsi {
            controller: place(3, 0),
            target: 0x10,
            lun: 0x4001,
        },
        BootPlace::Network(place(4, 0)),
    ];
    let expected = "/pci@i0cf8/scsi@1e,3/disk@0,0\n\
        /pci@i0cf8/scsi@3/channel@0/disk@10,4001\n\
        /pci@i0cf8/ethernet@4/ethernet-phy@0\0";
    assert_eq!(boot_order::list(&order), expected.as_bytes());
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
            ..smbios_input(&strings)
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

#[test]
fn texts_that_smbios_cannot_hold_are_refused() {
    let refusal = |serial: &str, strings: &[String]| {
        let input = SmbiosInput {
            serial,
            ..smbios_input(strings)
        };
        let error = Smbios::new(&input).unwrap_err();
        assert_eq!(error.kind(), super::super::FirmwareErrorKind::Text);
        error.to_string()
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
    let all = walk(Smbios::new(&smbios_input(&most)).unwrap().tables());
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
            ..smbios_input(&strings)
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
