//! The files as firmware reads them: through fw_cfg itself, the script run as edk2 runs it.

use std::collections::BTreeMap;

use paddock_devices::bus::BusDevice;
use paddock_devices::firmware::fw_cfg::FwCfg;
use paddock_devices::pci::DeviceFunction;
use paddock_devices::virtio::{GuestMap, GuestRam};
use parking_lot::Mutex;
use vm_memory::GuestAddress;

use super::*;
use crate::acpi::{AcpiTables, TablesInput};
use crate::smbios;

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

fn smbios() -> Smbios {
    Smbios::new(&smbios::double::input(&[])).unwrap()
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
