//! Direct boot against synthetic kernels: good ones land where they should, bad ones give the right error, and random
//! damage never panics.

mod kernels;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use linux_loader::bootparam::{boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use proptest::prelude::*;
use vm_memory::{ByteValued, Bytes as _, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::memory::e820;
use kernels::{bzimage, elf};

const RAM: u64 = 64 << 20;
const RSDP: u64 = layout::ACPI_TABLES;
const LOAD: u64 = 16 << 20;

fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(RAM).unwrap())]).unwrap()
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn boot(
    kernel: &Path,
    initramfs: Option<&Path>,
    cmdline: &str,
    memory: &GuestMemoryMmap,
) -> Result<BootEntry, BootError> {
    let e820 = e820(RAM, None);
    load(
        &mut BootFiles::open(kernel, initramfs.map(BootSource::from))?,
        &BootRequest {
            cmdline,
            e820: &e820,
            rsdp: RSDP,
        },
        memory,
    )
}

fn read(memory: &GuestMemoryMmap, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

#[test]
fn files_that_somebody_else_opened_serve_for_every_boot() {
    let files = Files::new();
    let image = bzimage(100_000);
    let paths = [
        files.put("vmlinuz", &image),
        files.put("initrd", [0xCD; 5000]),
    ];
    let [kernel, initramfs] = paths.each_ref().map(|path| {
        let mut file = File::open(path).unwrap();
        // Wherever whoever opened it left off.
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).unwrap();
        fs::remove_file(path).unwrap();
        BootSource {
            path: Path::new("fd:3"),
            file: Some(file),
        }
    });
    let mut files = BootFiles::open(kernel, Some(initramfs)).unwrap();
    let e820 = e820(RAM, None);
    let request = BootRequest {
        cmdline: "",
        e820: &e820,
        rsdp: RSDP,
    };
    for _ in 0..2 {
        let memory = ram();
        load(&mut files, &request, &memory).unwrap();
        assert_eq!(read(&memory, LOAD, 100_000), image[5 * 512..]);
        let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        let ramdisk = u64::from(params.hdr.ramdisk_image);
        assert_eq!(read(&memory, ramdisk, 5000), [0xCD; 5000]);
    }
    let (pipe, _writer) = std::io::pipe().unwrap();
    let pipe = BootSource {
        path: Path::new("fd:3"),
        file: Some(File::from(std::os::fd::OwnedFd::from(pipe))),
    };
    let error = BootFiles::open(pipe, None).unwrap_err().to_string();
    assert!(error.contains("fd:3"), "{error}");
}

#[test]
fn bzimage_lands_with_zero_page_initramfs_and_command_line() {
    let (files, memory) = (Files::new(), ram());
    let image = bzimage(100_000);
    // A Secure Boot signature follows the kernel.
    let kernel = files.put("vmlinuz", [&image[..], b"signature"].concat());
    let initramfs = files.put("initrd", vec![0xAB; 10_001]);
    let entry = boot(&kernel, Some(&initramfs), "console=ttyS0 -- x", &memory).unwrap();
    assert_eq!(
        entry,
        BootEntry {
            protocol: BootProtocol::Linux64,
            entry: LOAD + 0x200,
            argument: layout::ZERO_PAGE
        }
    );
    assert_eq!(read(&memory, LOAD, 100_000), image[5 * 512..]);
    assert_eq!(read(&memory, LOAD + 100_000, 9), [0; 9]);

    let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
    let header = params.hdr;
    let ramdisk = u64::from(header.ramdisk_image);
    assert_eq!(ramdisk, RAM - 12288);
    assert_eq!({ header.ramdisk_size }, 10_001);
    assert_eq!(read(&memory, ramdisk, 10_001), vec![0xAB; 10_001]);
    assert_eq!({ params.acpi_rsdp_addr }, RSDP);
    assert_eq!(
        (header.type_of_loader, { header.boot_flag }, {
            header.header
        }),
        (0xFF, 0xAA55, 0x5372_6448)
    );
    assert_eq!(params.sentinel, 0);
    assert_eq!(
        read(&memory, u64::from(header.cmd_line_ptr), 19),
        b"console=ttyS0 -- x\0"
    );
    let map = e820(RAM, None);
    assert_eq!(usize::from(params.e820_entries), map.len());
    let table = params.e820_table;
    for (entry, expected) in table.iter().zip(&map) {
        assert_eq!(
            ({ entry.addr }, { entry.size }, { entry.r#type }),
            (expected.base, expected.size, expected.kind as u32)
        );
    }
}

#[test]
fn setup_header_is_cut_where_it_says_it_ends() {
    let (files, memory) = (Files::new(), ram());
    let mut image = bzimage(8192);
    // Ends before `handover_offset` at 0x264; what is there is code.
    image[0x201] = 0x62;
    image[0x264..0x26C].fill(0x90);
    boot(&files.put("k", &image), None, "", &memory).unwrap();
    let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
    assert_eq!({ params.hdr.handover_offset }, 0);
    assert_eq!({ params.hdr.pref_address }, LOAD);
}

#[test]
fn elf_lands_with_start_info_and_cleared_bss_also_on_a_second_boot() {
    let (files, memory) = (Files::new(), ram());
    let image = elf(0x100_0040, 5000);
    let kernel = files.put("vmlinux", &image);
    let initramfs = files.put("initrd", b"init");
    memory
        .write_slice(&[0xEE; 16384], GuestAddress(LOAD))
        .unwrap();
    let entry = boot(&kernel, Some(&initramfs), "quiet", &memory).unwrap();
    assert_eq!(
        entry,
        BootEntry {
            protocol: BootProtocol::Pvh,
            entry: LOAD + 0x40,
            argument: layout::PVH_START_INFO
        }
    );
    assert_eq!(read(&memory, LOAD, 5000), image[image.len() - 5000..]);
    assert_eq!(read(&memory, LOAD + 5000, 8192), vec![0; 8192]);
    assert_eq!(read(&memory, LOAD + 5000 + 8192, 1), [0xEE]);

    let info: hvm_start_info = memory
        .read_obj(GuestAddress(layout::PVH_START_INFO))
        .unwrap();
    assert_eq!(
        (info.magic, info.version, info.rsdp_paddr, info.nr_modules),
        (0x336E_C578, 1, RSDP, 1)
    );
    assert_eq!(read(&memory, info.cmdline_paddr, 6), b"quiet\0");
    let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!(
        (module.size, read(&memory, module.paddr, 4)),
        (4, b"init".to_vec())
    );
    let map = e820(RAM, None);
    assert_eq!(info.memmap_entries as usize, map.len());
    for (i, expected) in map.iter().enumerate() {
        let entry: hvm_memmap_table_entry = memory
            .read_obj(GuestAddress(info.memmap_paddr + 24 * i as u64))
            .unwrap();
        assert_eq!(
            (entry.addr, entry.size, entry.type_),
            (expected.base, expected.size, expected.kind as u32)
        );
    }
    // Without an initramfs a reset leaves no trace of one.
    boot(&kernel, None, "", &memory).unwrap();
    let info: hvm_start_info = memory
        .read_obj(GuestAddress(layout::PVH_START_INFO))
        .unwrap();
    assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
}

/// Applies `change` to a good file and expects `kind`, with the path and `hint` in the message.
#[track_caller]
fn refused(mut image: Vec<u8>, change: impl FnOnce(&mut Vec<u8>), kind: BootErrorKind, hint: &str) {
    let (files, memory) = (Files::new(), ram());
    change(&mut image);
    let path = files.put("the-kernel", &image);
    let error = boot(&path, None, "", &memory).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert_eq!(error.path(), Some(&*path));
    assert!(text.contains("the-kernel") && text.contains(hint), "{text}");
    assert_eq!(
        read(&memory, layout::ZERO_PAGE, 4096),
        [0; 4096],
        "something was written"
    );
}

#[test]
fn files_that_are_no_files() {
    let (files, memory) = (Files::new(), ram());
    let good = files.put("good", bzimage(8192));
    let socket = files.0.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let pipe = files.0.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let cases = [
        (files.0.path().join("missing"), BootErrorKind::NotFound),
        (good.join("below-a-file"), BootErrorKind::NotFound),
        (files.0.path().to_path_buf(), BootErrorKind::NotAFile),
        (pipe, BootErrorKind::NotAFile),
        (PathBuf::from("/dev/null"), BootErrorKind::NotAFile),
        (socket, BootErrorKind::Unreadable),
        (files.put("empty", ""), BootErrorKind::Empty),
    ];
    for (path, kind) in cases {
        for (kernel, initramfs, subject) in
            [(&path, None, "kernel"), (&good, Some(&*path), "initramfs")]
        {
            let error = boot(kernel, initramfs, "", &memory).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("{subject} {}: ", path.display())),
                "{error}"
            );
        }
    }
}

#[test]
fn files_that_are_no_kernels() {
    use BootErrorKind::{NotAKernel, Truncated, WrongArchitecture};
    let start = |magic: &[u8], at: usize| {
        let mut file = vec![0x01; 4096];
        file[at..at + magic.len()].copy_from_slice(magic);
        file
    };
    refused(
        b"#!/bin/sh\necho h\xc3\xa4llo\n".to_vec(),
        |_| (),
        NotAKernel,
        "text file",
    );
    refused(
        "ä".repeat(1000).into_bytes(),
        |f| f.rotate_left(1),
        NotAKernel,
        "neither",
    );
    refused(vec![0; 4096], |_| (), NotAKernel, "neither");
    refused(start(b"\x1f\x8b", 0), |_| (), NotAKernel, "gzip");
    refused(start(b"QFI\xfb", 0), |_| (), NotAKernel, "disk");
    refused(start(b"_FVH", 40), |_| (), NotAKernel, "firmware");
    refused(start(b"\x55\xaa", 0x1FE), |_| (), NotAKernel, "boot sector");
    refused(start(b"ARM\x64", 56), |_| (), WrongArchitecture, "Arm");
    refused(start(b"RSC\x05", 56), |_| (), WrongArchitecture, "RISC-V");
    refused(b"M".to_vec(), |_| (), NotAKernel, "text");
    refused(bzimage(8192), |f| f.truncate(300), Truncated, "300 bytes");
    let pe = |machine: [u8; 2]| {
        let mut file = start(b"MZ", 0);
        file[0x3C..0x3E].copy_from_slice(&[0x80, 0]);
        file[0x80..0x86].copy_from_slice(&[b'P', b'E', 0, 0, machine[0], machine[1]]);
        file
    };
    refused(pe([0x64, 0x86]), |_| (), NotAKernel, "EFI application");
    refused(
        pe([0x64, 0xAA]),
        |_| (),
        WrongArchitecture,
        "another architecture",
    );
    refused(start(b"MZ", 0), |_| (), NotAKernel, "not a kernel");
}

#[test]
fn bzimages_that_cannot_be_booted() {
    use BootErrorKind::{Corrupt, NoEntryPoint, TooBig, Truncated, WrongArchitecture};
    fn with(change: impl FnOnce(&mut setup_header)) -> Vec<u8> {
        let mut image = bzimage(8192);
        let mut header = setup_header::default();
        header
            .as_mut_slice()
            .copy_from_slice(&image[0x1F1..0x1F1 + 123]);
        change(&mut header);
        image[0x1F1..0x1F1 + 123].copy_from_slice(header.as_slice());
        image
    }
    for length in [0x26B, 600, 5 * 512, 5 * 512 + 8000] {
        refused(
            bzimage(8192),
            |f| f.truncate(length),
            Truncated,
            &length.to_string(),
        );
    }
    refused(
        with(|h| h.xloadflags = 0),
        |_| (),
        WrongArchitecture,
        "32-bit",
    );
    refused(with(|h| h.version = 0x0209), |_| (), NoEntryPoint, "2.09");
    refused(with(|h| h.loadflags = 0), |_| (), NoEntryPoint, "zImage");
    refused(
        with(|h| h.payload_offset = u32::MAX),
        |_| (),
        Corrupt,
        "payload",
    );
    refused(with(|h| h.syssize = 0), |_| (), Corrupt, "payload");
    refused(
        with(|h| h.kernel_alignment = 3),
        |_| (),
        Corrupt,
        "alignment",
    );
    refused(
        with(|h| h.pref_address = u64::MAX),
        |_| (),
        Corrupt,
        "4 GiB",
    );
    refused(
        with(|h| h.init_size = 100 << 20),
        |_| (),
        TooBig,
        "116 MiB of RAM, the guest has 64 MiB",
    );
    refused(
        with(|h| h.init_size = u32::MAX),
        |_| (),
        TooBig,
        "2 GiB at most",
    );
}

#[test]
fn elf_files_that_cannot_be_booted() {
    use BootErrorKind::{Corrupt, NoEntryPoint, NotAKernel, TooBig, Truncated, WrongArchitecture};
    let good = || elf(0x100_0000, 5000);
    let set = |offset: usize, value: u8| move |f: &mut Vec<u8>| f[offset] = value;
    refused(good(), |f| f.truncate(40), Truncated, "40 bytes");
    refused(good(), |f| f.truncate(100), Truncated, "program headers");
    refused(good(), |f| f.truncate(f.len() - 1), Truncated, "segment");
    refused(good(), set(18, 183), WrongArchitecture, "Arm");
    refused(good(), set(18, 243), WrongArchitecture, "RISC-V");
    refused(good(), set(4, 1), WrongArchitecture, "32-bit");
    refused(good(), set(5, 2), WrongArchitecture, "big-endian");
    refused(good(), set(4, 9), Corrupt, "class");
    refused(good(), set(16, 1), NotAKernel, "module");
    refused(good(), set(56, 0), NotAKernel, "program headers");
    refused(good(), set(57, 1), Corrupt, "program headers");
    refused(good(), set(64, 2), NotAKernel, "nothing to load");
    refused(good(), set(120, 2), NoEntryPoint, "CONFIG_PVH");
    refused(elf(0x200_0000, 5000), |_| (), Corrupt, "0x2000000");
    // The address of the segment (at 88): into the first MiB, beyond RAM, around the end of the address space.
    refused(
        good(),
        |f| f[88..96].copy_from_slice(&0x8000u64.to_le_bytes()),
        Corrupt,
        "1 MiB",
    );
    refused(
        good(),
        |f| f[88..96].copy_from_slice(&u64::MAX.to_le_bytes()),
        Corrupt,
        "impossible size",
    );
    refused(
        good(),
        |f| f[104..112].copy_from_slice(&(90u64 << 20).to_le_bytes()),
        TooBig,
        "106 MiB",
    );
    refused(
        good(),
        |f| f[72..80].copy_from_slice(&u64::MAX.to_le_bytes()),
        Corrupt,
        "impossible place",
    );
    // The second header becomes a copy of the first, so that they overlap.
    refused(good(), |f| f.copy_within(64..120, 120), Corrupt, "overlap");
    // The descriptor of the PVH note: not a 32-bit address.
    refused(good(), |f| f[64 + 112 + 24 + 16 + 5] = 1, Corrupt, "note");
}

#[test]
fn initramfs_and_command_line_that_do_not_fit() {
    let (files, memory) = (Files::new(), ram());
    let sparse = files.0.path().join("huge");
    let size_to = |size| File::create(&sparse).unwrap().set_len(size).unwrap();
    for (kernel, end) in [
        (files.put("vmlinuz", bzimage(8192)), LOAD + (8 << 20)),
        (files.put("vmlinux", elf(0x100_0000, 4096)), LOAD + 12288),
    ] {
        size_to(RAM - end);
        boot(&kernel, Some(&sparse), "", &memory).unwrap();
        for size in [RAM - end + 1, RAM, RAM + 1, 1 << 40] {
            size_to(size);
            let error = boot(&kernel, Some(&sparse), "", &memory).unwrap_err();
            assert_eq!(error.kind(), BootErrorKind::TooBig, "{error}");
            assert!(error.to_string().contains("huge"), "{error}");
        }
        boot(&kernel, None, &"x".repeat(2047), &memory).unwrap();
        for (cmdline, hint) in [
            ("x".repeat(2048), "2048 bytes"),
            ("a\0b".into(), "offset 1"),
        ] {
            let error = boot(&kernel, None, &cmdline, &memory).unwrap_err();
            assert_eq!(error.kind(), BootErrorKind::CommandLine, "{error}");
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}

#[test]
fn initramfs_stays_below_what_an_old_kernel_accepts() {
    let (files, memory) = (Files::new(), ram());
    let mut image = bzimage(8192);
    image[0x22C..0x230].copy_from_slice(&0x0200_0FFFu32.to_le_bytes());
    let (kernel, initramfs) = (files.put("k", &image), files.put("i", [1; 100]));
    boot(&kernel, Some(&initramfs), "", &memory).unwrap();
    let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
    assert_eq!({ params.hdr.ramdisk_image }, 0x0200_0000);
    let initramfs = files.put("i", vec![1; 10 << 20]);
    let error = boot(&kernel, Some(&initramfs), "", &memory).unwrap_err();
    assert!(error.to_string().contains("0x2001000"), "{error}");
}

/// A file in memory, so that many cases cost no disk.
fn image(bytes: &[u8]) -> Option<Image> {
    let mut file =
        File::from(rustix::fs::memfd_create("kernel", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    Image::from_file(file, Path::new("damaged"), Subject::Kernel).ok()
}

/// Damage: bytes to overwrite (mostly in the headers), then a length to cut to.
fn damage() -> impl Strategy<Value = (Vec<(usize, u8)>, Option<usize>)> {
    let place = prop_oneof![4 => 0..0x270usize, 1 => 0..12_000usize];
    let value = prop_oneof![
        Just(0u8),
        Just(1),
        Just(0x7F),
        Just(0x80),
        Just(0xFF),
        any::<u8>()
    ];
    (
        prop::collection::vec((place, value), 0..12),
        prop::option::weighted(0.2, 0..12_000usize),
    )
}

#[test]
fn damaged_kernels_load_within_ram_or_give_an_error() {
    let memory = ram();
    let map = e820(RAM, None);
    let request = BootRequest {
        cmdline: "quiet",
        e820: &map,
        rsdp: RSDP,
    };
    let kernels = [bzimage(8192), elf(0x100_0000, 8192)];
    let config = ProptestConfig {
        cases: 3000,
        failure_persistence: None,
        ..Default::default()
    };
    proptest!(config, |(which in 0..2usize, (bytes, cut) in damage())| {
        let mut file = kernels[which].clone();
        for (place, value) in bytes {
            if let Some(byte) = file.get_mut(place) {
                *byte = value;
            }
        }
        file.truncate(cut.unwrap_or(file.len()));
        if let Some(kernel) = image(&file) {
            let mut files = BootFiles { kernel, initramfs: None };
            match load(&mut files, &request, &memory) {
                Ok(entry) => prop_assert!((layout::HIGH_MEMORY..RAM).contains(&entry.entry)),
                Err(error) => prop_assert!(error.kind() != BootErrorKind::GuestMemory, "{error}"),
            }
        }
    });
}
