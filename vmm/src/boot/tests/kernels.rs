//! Kernels made for the tests: enough of a file to be booted, and nothing to run.

use super::*;

/// A bzImage with 4 setup sectors and a payload of `payload` bytes, as Linux 6.1 describes itself.
pub(super) fn bzimage(payload: usize) -> Vec<u8> {
    let header = setup_header {
        setup_sects: 4,
        syssize: u32::try_from(payload.div_ceil(16)).unwrap(),
        boot_flag: 0xAA55,
        jump: 0x6AEB,
        header: 0x5372_6448,
        version: 0x020F,
        loadflags: 1,
        code32_start: 0x10_0000,
        initrd_addr_max: 0x7FFF_FFFF,
        kernel_alignment: 0x20_0000,
        relocatable_kernel: 1,
        min_alignment: 21,
        xloadflags: 0x7F,
        cmdline_size: 2047,
        payload_offset: 0x300,
        payload_length: u32::try_from(payload - 0x300).unwrap(),
        pref_address: LOAD,
        init_size: 8 << 20,
        ..Default::default()
    };
    let mut file = vec![0xCC; 5 * 512 + payload];
    file[..2].copy_from_slice(b"MZ");
    file[0x1F1..0x1F1 + 123].copy_from_slice(header.as_slice());
    for (i, byte) in file[5 * 512..].iter_mut().enumerate() {
        *byte = u8::try_from(i % 251).unwrap();
    }
    file
}

/// An ELF64 with a note segment that leads to `entry`, and one segment at 16 MiB with 8 KiB of zeros after its bytes.
pub(super) fn elf(entry: u32, body: usize) -> Vec<u8> {
    let mut note = Vec::new();
    // A note of another kind comes first.
    for (kind, value) in [
        (1u32, &b"abcdefgh"[..]),
        (18, &u64::from(entry).to_le_bytes()[..]),
    ] {
        note.extend([4u32, 8, kind].iter().flat_map(|n| n.to_le_bytes()));
        note.extend(b"Xen\0");
        note.extend(value);
    }
    let mut file = vec![0; 64];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[32] = 64;
    file[54] = 56;
    file[56] = 2;
    let notes = 64 + 2 * 56;
    let mut header = |kind: u32, offset: usize, address: u64, size: usize, memory: usize| {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for field in [offset as u64, 0, address, size as u64, memory as u64, 4] {
            file.extend(field.to_le_bytes());
        }
    };
    header(1, notes + note.len(), LOAD, body, body + 8192);
    header(4, notes, 0, note.len(), note.len());
    file.extend(&note);
    file.extend((0..body).map(|i| u8::try_from(i % 251).unwrap()));
    file
}
