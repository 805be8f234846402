//! The tables as a guest's kernel finds them: by following pointers and summing bytes in guest RAM.

use std::collections::BTreeMap;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

fn input(cpus: u32) -> TablesInput {
    TablesInput {
        apic_ids: (0..cpus).collect(),
        present: None,
        ecam: layout::ECAM_BASE..layout::ECAM_BASE + layout::ECAM_SIZE,
        mmio32: layout::MMIO32,
        mmio64: 0xE0_0000_0000..0x100_0000_0000,
        pm_base: layout::PM_BASE,
    }
}

fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn read(memory: &GuestMemoryMmap, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

fn read_table(memory: &GuestMemoryMmap, address: u64) -> (String, Vec<u8>) {
    let length = u32_at(&read(memory, address, 8), 4);
    let table = read(memory, address, length as usize);
    (String::from_utf8(table[..4].to_vec()).unwrap(), table)
}

/// Follows RSDP → XSDT → tables → DSDT and FACS, checking sums, and returns all of them by signature.
fn walk(memory: &GuestMemoryMmap, rsdp: u64) -> BTreeMap<String, Vec<u8>> {
    assert_eq!(rsdp % 16, 0);
    let pointer = read(memory, rsdp, 36);
    assert_eq!(
        (&pointer[..8], pointer[15], u32_at(&pointer, 20)),
        (&b"RSD PTR "[..], 2, 36)
    );
    assert_eq!((sum(&pointer[..20]), sum(&pointer)), (0, 0));
    let (signature, xsdt) = read_table(memory, u64_at(&pointer, 24));
    assert_eq!((signature.as_str(), sum(&xsdt)), ("XSDT", 0));
    let mut found = BTreeMap::new();
    for entry in xsdt[36..].chunks_exact(8) {
        let (signature, table) = read_table(memory, u64_at(entry, 0));
        assert_eq!(sum(&table), 0, "{signature}");
        assert!(found.insert(signature, table).is_none());
    }
    let fadt = &found["FACP"];
    assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
    let (facs_at, dsdt_at) = (u32_at(fadt, 36), u64_at(fadt, 140));
    assert_eq!(facs_at % 64, 0);
    let (signature, dsdt) = read_table(memory, dsdt_at);
    assert_eq!((signature.as_str(), sum(&dsdt)), ("DSDT", 0));
    found.insert(signature, dsdt);
    let (signature, facs) = read_table(memory, facs_at.into());
    assert_eq!((signature.as_str(), facs.len()), ("FACS", 64));
    found.insert(signature, facs);
    found
}

/// Also leaves the tables in the directory `$PADDOCK_ACPI_DUMP`, for ACPICA's disassembler: `iasl -e *.dat -d dsdt.dat`.
#[test]
fn every_table_is_found_and_sums_to_zero() {
    for (cpus, present) in [
        (1, None),
        (2, None),
        (64, None),
        (254, None),
        (4, Some(1)),
        (254, Some(254)),
    ] {
        let memory = ram();
        let input = TablesInput {
            present,
            ..input(cpus)
        };
        let rsdp = write(&memory, &input).unwrap();
        let tables = walk(&memory, rsdp);
        let names: Vec<_> = tables.keys().map(String::as_str).collect();
        assert_eq!(names, ["APIC", "DSDT", "FACP", "FACS", "MCFG", "WAET"]);
        assert_eq!(
            read(&memory, layout::ACPI_TABLES_END, 64),
            [0; 64],
            "beyond the room"
        );
        if let Some(directory) = std::env::var_os("PADDOCK_ACPI_DUMP") {
            for (signature, table) in tables {
                let file = format!("{}.dat", signature.to_lowercase());
                std::fs::write(std::path::Path::new(&directory).join(file), table).unwrap();
            }
        }
    }
}

#[test]
fn fadt_describes_the_pm_block() {
    let memory = ram();
    let rsdp = write(
        &memory,
        &TablesInput {
            pm_base: 0xB000,
            ..input(1)
        },
    )
    .unwrap();
    let fadt = &walk(&memory, rsdp)["FACP"];
    assert_eq!((fadt[8], fadt.len()), (6, 276));
    // 32-bit fields, then the generic addresses that must agree with them: space, width in bits, offset, access, address.
    for (field, extended, port, width) in [
        (56, 148, 0xB000u32, 32),
        (64, 172, 0xB004, 16),
        (76, 208, 0xB008, 32),
        (80, 220, 0xB020, 128),
    ] {
        assert_eq!(u32_at(fadt, field), port);
        assert_eq!(fadt[extended..extended + 3], [1, width, 0]);
        assert_eq!(u64_at(fadt, extended + 4), u64::from(port));
    }
    assert_eq!((fadt[88], fadt[89], fadt[91], fadt[92]), (4, 2, 4, 16));
    // Reset register.
    assert_eq!((fadt[116], u64_at(fadt, 120), fadt[128]), (1, 0xCF9, 6));
    // Fixed power button, 24-bit timer, full hardware model.
    let flags = u32_at(fadt, 112);
    assert_eq!(flags & (1 << 4 | 1 << 8 | 1 << 20), 0);
    assert_ne!(flags & 1 << 10, 0);
    // SCI; no SMI command; neither 8042 nor VGA.
    assert_eq!(
        (fadt[46], u32_at(fadt, 48), fadt[109] & 0b111),
        (9, 0, 0b100)
    );
}

#[test]
fn madt_lists_every_processor_and_the_wiring() {
    let memory = ram();
    let apic_ids = vec![0, 1, 4, 5, 254, 255, 300];
    let rsdp = write(
        &memory,
        &TablesInput {
            apic_ids: apic_ids.clone(),
            ..input(1)
        },
    )
    .unwrap();
    let madt = &walk(&memory, rsdp)["APIC"];
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xFEE0_0000, 1));
    let (mut processors, mut others) = (Vec::new(), Vec::new());
    let mut rest = &madt[44..];
    while let [kind, length, ..] = *rest {
        let (entry, after) = rest.split_at(length.into());
        match kind {
            0 => processors.push((u32::from(entry[2]), u32::from(entry[3]))),
            9 => processors.push((u32_at(entry, 12), u32_at(entry, 4))),
            _ => others.push(entry),
        }
        rest = after;
    }
    assert_eq!(processors, (0..).zip(apic_ids).collect::<Vec<_>>());
    let expected: [&[u8]; 5] = [
        &[1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 13, 0],
        &[4, 6, 255, 0, 0, 1],
        &[10, 12, 0, 0, 255, 255, 255, 255, 1, 0, 0, 0],
    ];
    assert_eq!(others, expected);
}

#[test]
fn madt_tells_processors_that_are_there_from_those_that_can_come() {
    let input = TablesInput {
        present: Some(2),
        ..input(4)
    };
    let memory = ram();
    let rsdp = write(&memory, &input).unwrap();
    let madt = &walk(&memory, rsdp)["APIC"];
    assert_eq!(madt[8], 5, "online-capable is known from revision 5 on");
    let entries: Vec<_> = madt[44..].chunks_exact(8).take(4).collect();
    let expected: [&[u8]; 4] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[0, 8, 2, 2, 2, 0, 0, 0],
        &[0, 8, 3, 3, 2, 0, 0, 0],
    ];
    assert_eq!(entries, expected);
}

#[test]
fn only_processors_that_come_and_go_have_methods() {
    let dsdt = |present| {
        let input = TablesInput {
            present,
            ..input(2)
        };
        let memory = ram();
        let rsdp = write(&memory, &input).unwrap();
        walk(&memory, rsdp).remove("DSDT").unwrap()
    };
    let has = |table: &[u8], text: &[u8]| table.windows(text.len()).any(|part| part == text);
    let (fixed, changing) = (dsdt(None), dsdt(Some(1)));
    for method in [&b"_OST"[..], b"_MAT", b"CPLG", b"CPRG"] {
        assert!(!has(&fixed, method));
        assert!(has(&changing, method));
    }
    // `_MAT` says that it is there: asked for only when it is.
    assert!(has(
        &changing,
        &[0x11, 0x0B, 0x0A, 8, 0, 8, 1, 1, 1, 0, 0, 0]
    ));
}

#[test]
fn mcfg_and_dsdt_follow_ecam_and_windows_without_changing_size() {
    let here = AcpiTables::new(&input(4));
    let moved = TablesInput {
        ecam: 0xB000_0000..0xC000_0000,
        mmio32: 0xC000_0000..0xFC00_0000,
        mmio64: 0x38_0000_0000..0x40_0000_0000,
        pm_base: 0xB000,
        ..input(4)
    };
    let there = AcpiTables::new(&moved);
    assert_eq!(here.tables.len(), there.tables.len());
    assert_eq!(
        (&here.pointers, &here.checksums, here.xsdt),
        (&there.pointers, &there.checksums, there.xsdt)
    );

    let memory = ram();
    let rsdp = there.write(&memory).unwrap();
    let tables = walk(&memory, rsdp);
    let mcfg = &tables["MCFG"];
    assert_eq!(
        (mcfg.len(), u64_at(mcfg, 44), &mcfg[52..56]),
        (60, 0xB000_0000, &[0, 0, 0, layout::PCI_LAST_BUS][..])
    );
    let dsdt = &tables["DSDT"];
    let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
    // 32-bit window: first, last; 64-bit window: first, last; ECAM: base, length; PM block: minimum, maximum, alignment, length.
    assert!(has(&[0, 0, 0, 0xC0, 0xFF, 0xFF, 0xFF, 0xFB]));
    assert!(has(&[
        0, 0, 0, 0, 0x38, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x3F, 0, 0, 0
    ]));
    assert!(has(&[0, 0, 0, 0xB0, 0, 0, 0, 0x10]));
    assert!(has(&[0, 0xB0, 0, 0xB0, 1, 0x80]));
}

#[test]
fn windows_that_cannot_be_said_are_left_out() {
    let none = TablesInput {
        mmio32: 0..0,
        mmio64: 0..0,
        ecam: 1 << 40..(1 << 40) + (1 << 28),
        ..input(1)
    };
    let memory = ram();
    let rsdp = write(&memory, &none).unwrap();
    let tables = walk(&memory, rsdp);
    assert_eq!(u64_at(&tables["MCFG"], 44), 1 << 40);
    assert!(tables["DSDT"].len() < AcpiTables::new(&input(1)).tables.len());
}

#[test]
fn relocation_is_what_a_table_loader_does() {
    // fw_cfg's ADD_POINTER and ADD_CHECKSUM, by hand, at another address.
    let tables = AcpiTables::new(&input(2));
    let base = 0x7F00_0000;
    let mut by_hand = tables.tables.clone();
    for pointer in &tables.pointers {
        let field = &mut by_hand[pointer.offset..pointer.offset + pointer.size];
        let mut value = [0; 8];
        value[..pointer.size].copy_from_slice(field);
        let value = u64::from_le_bytes(value) + 0x7F00_0000;
        field.copy_from_slice(&value.to_le_bytes()[..pointer.size]);
    }
    for field in &tables.checksums {
        let total = sum(&by_hand[field.start..field.start + field.len]);
        by_hand[field.offset] = by_hand[field.offset].wrapping_sub(total);
    }
    assert_eq!(by_hand, tables.at(base));
}

#[test]
fn too_many_processors_give_an_error() {
    let memory = ram();
    let error = write(&memory, &input(4000)).unwrap_err();
    assert!(matches!(error, AcpiError::TooLarge { .. }), "{error}");
}
