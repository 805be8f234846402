//! Images by content and by name: Debian's layouts, and everything that is not one.

use std::os::unix::fs::symlink;

use paddock_devices::firmware::volume::double::volume;
use proptest::prelude::*;

use super::*;

/// UEFI code as edk2 builds it: a compressed volume, then one with the reset vector.
pub(crate) fn code(size: usize) -> Vec<u8> {
    const LAST: usize = 0x34000;
    let mut code = volume(VolumeKind::Files, size - LAST);
    code.extend(volume(VolumeKind::Files, LAST));
    let at = code.len() - RESET_VECTOR;
    code[at..].copy_from_slice(&[0x90, 0x90, 0xe9, 0x5b, 0xff, 0x90, 0x90, 0x90].repeat(2));
    code
}

fn bios(size: usize) -> Vec<u8> {
    let mut bios = vec![0; size];
    bios[size - RESET_VECTOR..].copy_from_slice(b"\xea\x5b\xe0\x00\xf006/23/99\0\xfc\0");
    bios
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

    fn load(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<FirmwareImage, FirmwareError> {
        FirmwareImage::load(&self.put(name, bytes))
    }
}

fn refusal(result: Result<FirmwareImage, FirmwareError>) -> (FirmwareErrorKind, String) {
    let error = result.unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn code_ends_at_4_gib_and_variables_end_where_it_begins() {
    let files = Files::new();
    for (name, size, code_at, variables_at) in [
        ("OVMF_CODE_4M.fd", 0x37_c000, 0xffc8_4000, 0xffc0_0000),
        ("OVMF_CODE.fd", 0x1e_0000, 0xffe2_0000, 0xffe0_0000),
    ] {
        let image = files.load(name, code(size)).unwrap();
        assert_eq!(image.kind(), FirmwareKind::Uefi);
        assert_eq!(image.code_place(), code_at..1 << 32);
        assert_eq!(image.variables_place(), Some(variables_at..code_at));
        assert_eq!(image.code(), code(size));
        assert_eq!((image.own_template(), image.low_copy()), (None, None));
    }
    let whole = files.load("code-only.fd", code(0x20_0000)).unwrap();
    assert_eq!(
        (whole.variables_size(), whole.variables_place()),
        (None, None)
    );
    assert!(whole.template(None).is_err());
}

#[test]
fn a_unified_image_is_taken_apart() {
    let files = Files::new();
    for (total, variables) in [(0x20_0000, 0x2_0000), (0x40_0000, 0x8_4000)] {
        let store = volume(VolumeKind::Variables, variables);
        let image = [store.clone(), code(total - variables)].concat();
        let image = files.load("OVMF.fd", image).unwrap();
        assert_eq!(image.own_template(), Some(&store[..]));
        assert_eq!(image.template(None).unwrap(), store);
        assert_eq!(image.code(), code(total - variables));
        let start = (1 << 32) - total as u64;
        let between = start + variables as u64;
        assert_eq!(image.variables_place(), Some(start..between));
        assert_eq!(image.code_place(), between..1 << 32);
    }
}

#[test]
fn a_bios_is_also_below_1_mib() {
    let files = Files::new();
    let mut rom = bios(256 << 10);
    rom[128 << 10] = 0x55;
    let image = files.load("bios-256k.bin", &rom).unwrap();
    assert_eq!(image.kind(), FirmwareKind::Bios);
    assert_eq!(image.code_place(), 0xfffc_0000..1 << 32);
    assert_eq!(image.variables_place(), None);
    let (at, low) = image.low_copy().unwrap();
    assert_eq!((at, low), (0xe_0000, &rom[128 << 10..]));
    let small = files.load("small.bin", bios(64 << 10)).unwrap();
    assert_eq!(small.low_copy().unwrap().0, 0xf_0000);
    let other = refusal(files.load("bios-microvm.bin", bios(128 << 10)));
    assert_eq!(other.0, FirmwareErrorKind::NotFirmware);
    assert!(other.1.contains("bios-256k.bin"), "{}", other.1);
}

#[test]
fn images_that_need_smm_are_refused_with_the_alternative() {
    let files = Files::new();
    for (name, alternative) in [
        ("OVMF_CODE_4M.secboot.fd", "use OVMF_CODE_4M.fd beside it"),
        ("OVMF_CODE_4M.ms.fd", "use OVMF_CODE_4M.fd beside it"),
        ("OVMF_CODE_4M.snakeoil.fd", "use OVMF_CODE_4M.fd beside it"),
        (
            "OVMF_CODE.secboot.strictnx.fd",
            "use OVMF_CODE.fd beside it",
        ),
        ("OVMF_CODE.secboot.4m.fd", "use OVMF_CODE.4m.fd beside it"),
        ("ovmf-x86_64-smm-ms-code.bin", "such as OVMF_CODE_4M.fd"),
    ] {
        let (kind, message) = refusal(files.load(name, code(0x37_c000)));
        assert_eq!(kind, FirmwareErrorKind::NeedsSmm);
        assert!(
            message.contains(alternative) && message.contains(name),
            "{message}"
        );
    }
    // Also by the name that a link stands for.
    let link = files.0.path().join("uefi.fd");
    symlink("OVMF_CODE_4M.secboot.fd", &link).unwrap();
    let (kind, _) = refusal(FirmwareImage::load(&link));
    assert_eq!(kind, FirmwareErrorKind::NeedsSmm);
}

#[test]
fn what_is_no_firmware_is_named() {
    use FirmwareErrorKind::{NotFirmware, TooBig, Truncated};
    let files = Files::new();
    let whole = code(0x37_c000);
    let unified = [volume(VolumeKind::Variables, 0x2_0000), code(0x1e_0000)].concat();
    let mut damaged = whole.clone();
    damaged[33] ^= 1;
    let mut no_vector = whole.clone();
    no_vector[0x37_c000 - RESET_VECTOR..].fill(0xff);
    let cases = [
        (
            "empty",
            Vec::new(),
            NotFirmware,
            "neither a UEFI image nor a BIOS",
        ),
        ("text", b"#!/bin/sh\n".repeat(7000), NotFirmware, "neither"),
        ("zeros", vec![0; 128 << 10], NotFirmware, "neither"),
        (
            "qcow2",
            b"QFI\xfb\0\0\0\x03".repeat(8192),
            NotFirmware,
            "qemu-img convert",
        ),
        (
            "elf",
            b"\x7fELF\x02\x01".to_vec(),
            NotFirmware,
            "boot it as a kernel",
        ),
        (
            "vars",
            volume(VolumeKind::Variables, 0x84000),
            NotFirmware,
            "without code",
        ),
        ("damaged", damaged, NotFirmware, "neither"),
        (
            "cut",
            whole[..0x37_b000].to_vec(),
            Truncated,
            "its headers promise 3653632",
        ),
        (
            "cut-odd",
            whole[..0x12345].to_vec(),
            Truncated,
            "its headers promise",
        ),
        (
            "cut-between",
            whole[..0x34_8000].to_vec(),
            Truncated,
            "no x86 reset vector",
        ),
        ("other-cpu", no_vector, Truncated, "another architecture"),
        (
            "cut-unified",
            unified[..0x2_0000 + 0x1000].to_vec(),
            Truncated,
            "promise",
        ),
        (
            "cut-vars",
            unified[..0x1_0000].to_vec(),
            Truncated,
            "promise 131072",
        ),
        (
            "text-behind",
            [&unified[..0x2_0000], &b"text".repeat(4096)].concat(),
            NotFirmware,
            "neither",
        ),
        (
            "large",
            vec![0xff; (4 << 20) + 1],
            TooBig,
            "larger than 4 MiB",
        ),
    ];
    for (name, bytes, expected, words) in cases {
        let (kind, message) = refusal(files.load(name, bytes));
        assert_eq!(kind, expected, "{name}: {message}");
        assert!(
            message.contains(words) && message.contains(name),
            "{message}"
        );
    }
    let directory = refusal(FirmwareImage::load(files.0.path()));
    assert_eq!(directory.0, FirmwareErrorKind::NotAFile);
    let missing = refusal(FirmwareImage::load(&files.0.path().join("missing")));
    assert_eq!(missing.0, FirmwareErrorKind::NotFound);
}

#[test]
fn a_pipe_does_not_hang() {
    let files = Files::new();
    let path = files.0.path().join("pipe");
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let (kind, _) = refusal(FirmwareImage::load(&path));
    assert_eq!(kind, FirmwareErrorKind::NotAFile);
}

#[test]
fn the_template_is_named_or_lies_beside_the_code() {
    let files = Files::new();
    let image = files.load("OVMF_CODE_4M.fd", code(0x37_c000)).unwrap();
    let error = image.template(None).unwrap_err();
    assert_eq!(error.kind(), FirmwareErrorKind::WrongVariables);
    assert!(error.to_string().contains("528 KiB"), "{error}");
    let store = volume(VolumeKind::Variables, 0x84000);
    let beside = files.put("OVMF_VARS_4M.fd", &store);
    assert_eq!(image.template(None).unwrap(), store);
    assert_eq!(image.template(Some(&beside)).unwrap(), store);
    let link = files.0.path().join("firmware");
    symlink("OVMF_CODE_4M.fd", &link).unwrap();
    let linked = FirmwareImage::load(&link).unwrap();
    assert_eq!(linked.template(None).unwrap(), store, "beside the real one");
    for (name, bytes, words) in [
        (
            "OVMF_VARS.fd",
            volume(VolumeKind::Variables, 0x2_0000),
            "of 128 KiB, this firmware has one of 528 KiB",
        ),
        ("notes.txt", b"text".to_vec(), "is no variable store"),
        (
            "cut.fd",
            store[..0x1000].to_vec(),
            "has 4096 bytes, while the variable store in it has 540672",
        ),
        ("code.fd", code(0x37_c000), "none with variables"),
    ] {
        let error = image.template(Some(&files.put(name, bytes))).unwrap_err();
        assert_eq!(error.kind(), FirmwareErrorKind::WrongVariables);
        let message = error.to_string();
        assert!(
            message.contains(words) && message.contains(name),
            "{message}"
        );
    }
}

/// With `$PADDOCK_FIRMWARE`, a directory with files of the packages ovmf and seabios: those.
#[test]
fn debians_files_are_recognized() {
    let Some(root) = std::env::var_os("PADDOCK_FIRMWARE").map(PathBuf::from) else {
        return;
    };
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !path.is_file() || !name.ends_with(".fd") && !name.ends_with(".bin") {
            continue;
        }
        let result = FirmwareImage::load(&path);
        let needs_smm = [".secboot.", ".ms.", ".snakeoil."].map(|part| name.contains(part));
        match (name.starts_with("OVMF_VARS"), needs_smm.contains(&true)) {
            (true, _) => assert!(refusal(result).1.contains("without code"), "{name}"),
            (_, true) => assert_eq!(refusal(result).0, FirmwareErrorKind::NeedsSmm, "{name}"),
            _ if name.contains("microvm") => assert!(result.is_err(), "{name}"),
            _ if name.starts_with("bios") => {
                let image = result.unwrap();
                assert_eq!(image.kind(), FirmwareKind::Bios);
                assert_eq!(image.low_copy().unwrap().0, 0xe_0000);
            }
            _ => {
                let image = result.unwrap();
                let variables = image.template(None).unwrap();
                assert_eq!(Some(variables.len()), image.variables_size(), "{name}");
                let start = image.variables_place().unwrap().start;
                assert!([0xffc0_0000, 0xffe0_0000].contains(&start), "{name}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn damage_never_panics_and_places_fit(
        unified in any::<bool>(),
        cut in prop_oneof![Just(0usize), 0usize..0x20_0000],
        damage in prop::collection::vec((0usize..0x100, any::<u8>()), 0..4),
    ) {
        let mut bytes = if unified {
            [volume(VolumeKind::Variables, 0x2_0000), code(0x1e_0000)].concat()
        } else {
            code(0x1e_0000)
        };
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Ok(image) = FirmwareImage::recognize(Path::new("x"), bytes) {
            let code = image.code_place();
            prop_assert!(code.start >= layout::FLASH_MIN && code.start < code.end);
            prop_assert_eq!(code.start % SECTOR as u64, 0);
            if let Some(variables) = image.variables_place() {
                prop_assert!(variables.start >= layout::FLASH_MIN && variables.start < code.start);
                prop_assert_eq!(variables.start % SECTOR as u64, 0);
            }
        }
    }
}
