//! Firmware: what VMs that boot by themselves need of KVM, and which image they get where none is named.
//!
//! The descriptors and the image are read as a VM reads them. They are files of the host, in directories that its administrator chose.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kvm_bindings::KVM_CAP_READONLY_MEM;

use super::chain;
use super::kvm;
use super::patience::within;
use super::report::{Check, Fix, Group};
use crate::firmware::descriptors::{self, Descriptors};
use crate::firmware::image::FirmwareImage;

/// What is asked of KVM.
pub const CAPABILITIES: [u32; 1] = [KVM_CAP_READONLY_MEM];

/// How long the files may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Reasons that are told; a host has one or two dozen descriptors.
const REASONS_MAX: usize = 4;
const NOT_NAMED: &str =
    "VMs that boot by firmware must name an image; those that boot a kernel need none.";

/// What the host's files offer.
#[derive(Debug)]
pub struct Facts {
    /// The image that a VM gets; why there is none.
    pub uefi: Result<Uefi, NoUefi>,
}

/// An image that a VM gets where none is named.
#[derive(Debug, Clone)]
pub struct Uefi {
    /// The descriptor that names it.
    pub descriptor: PathBuf,
    /// The image.
    pub image: PathBuf,
    /// Whether it has Secure Boot.
    pub secure_boot: bool,
    /// What is wrong with the image or with the template for its variables.
    pub broken: Option<String>,
}

/// Why there is none.
#[derive(Debug, Clone)]
pub enum NoUefi {
    /// No descriptor names one that would do: which were passed over, and why.
    PassedOver(Vec<(PathBuf, String)>),
    /// The files could not be read in time.
    NoAnswer(String),
}

impl Facts {
    /// Reads the descriptors and the image.
    #[must_use]
    pub fn gather() -> Self {
        let found = within(PATIENCE, || {
            look(&Descriptors::read(&descriptors::directories()))
        });
        Self {
            uefi: found.unwrap_or_else(|error| Err(NoUefi::NoAnswer(chain(&error)))),
        }
    }
}

fn look(descriptors: &Descriptors) -> Result<Uefi, NoUefi> {
    let Ok(offer) = descriptors.uefi() else {
        return Err(NoUefi::PassedOver(descriptors.passed_over().to_vec()));
    };
    let image = FirmwareImage::load(&offer.executable);
    let complete = image.and_then(|image| image.template(offer.template.as_deref()));
    Ok(Uefi {
        descriptor: offer.descriptor.clone(),
        image: offer.executable.clone(),
        secure_boot: offer.features.contains("secure-boot"),
        broken: complete.err().map(|error| chain(&error)),
    })
}

/// Looks at what KVM answered and what was found.
#[must_use]
pub fn examine(kvm: &kvm::Facts, facts: &Facts) -> Group {
    Group {
        name: "firmware",
        title: "Firmware, for VMs that boot from their disks",
        checks: vec![flash(kvm), uefi(&facts.uefi)],
    }
}

fn flash(kvm: &kvm::Facts) -> Check {
    const NAME: &str = "flash";
    let Ok(offer) = &kvm.offer else {
        return Check::unknown(
            NAME,
            "KVM cannot be asked",
            "What keeps it from being asked is told under KVM; look again when that is mended.",
        );
    };
    let there = offer.capabilities.has(KVM_CAP_READONLY_MEM);
    let check = if there {
        Check::ok(
            NAME,
            "KVM has memory that guests can only read, for firmware",
        )
    } else {
        Check::missing(
            NAME,
            "missing: KVM_CAP_READONLY_MEM",
            "VMs that boot by firmware are refused; those that boot a kernel run.",
        )
        .fix(Fix::text(
            "Boot a newer kernel: Linux 3.7 has it on ordinary hardware. Under another hypervisor it must not be switched off there.",
        ))
    };
    check.fact("read_only_memory", there)
}

fn uefi(found: &Result<Uefi, NoUefi>) -> Check {
    const NAME: &str = "uefi";
    let install = |text: &str| Fix::commands(text, ["apt-get install ovmf"]);
    match found {
        Err(NoUefi::NoAnswer(why)) => Check::unknown(NAME, why, NOT_NAMED),
        Err(NoUefi::PassedOver(files)) => {
            let found = match reasons(files) {
                None => "no firmware descriptor of QEMU's names an image".to_owned(),
                Some(reasons) => format!("no image would do: {reasons}"),
            };
            Check::missing(NAME, found, NOT_NAMED).fix(install("As root, install OVMF:"))
        }
        Ok(uefi) => {
            let check = match &uefi.broken {
                None => Check::ok(
                    NAME,
                    format!("{}, by {}", uefi.image.display(), name(&uefi.descriptor)),
                ),
                Some(error) => Check::missing(
                    NAME,
                    format!(
                        "{} names what cannot be used: {error}",
                        uefi.descriptor.display()
                    ),
                    NOT_NAMED,
                )
                .fix(Fix::commands(
                    "As root, install OVMF again, or hide the descriptor by an empty one:",
                    [
                        "apt-get install --reinstall ovmf".to_owned(),
                        format!(
                            "install -D /dev/null /etc/qemu/firmware/{}",
                            name(&uefi.descriptor)
                        ),
                    ],
                )),
            };
            check
                .fact("image", uefi.image.to_string_lossy())
                .fact("descriptor", uefi.descriptor.to_string_lossy())
                .fact("secure_boot", uefi.secure_boot)
        }
    }
}

/// The first of them, in words.
fn reasons(files: &[(PathBuf, String)]) -> Option<String> {
    let mut told: Vec<_> = files
        .iter()
        .take(REASONS_MAX)
        .map(|(path, reason)| format!("{} {reason}", name(path)))
        .collect();
    if let Some(more @ 1..) = files.len().checked_sub(told.len()) {
        told.push(format!("and {more} more"));
    }
    (!told.is_empty()).then(|| told.join("; "))
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use paddock_devices::firmware::volume::VolumeKind;
    use paddock_devices::firmware::volume::double::volume;
    use serde_json::json;

    use super::*;
    use crate::firmware::image::tests::code;

    /// A host with one descriptor, and what its files hold.
    fn found(features: &[&str], code: &[u8], variables: &[u8]) -> Result<Uefi, NoUefi> {
        let host = tempfile::tempdir().unwrap();
        let image = |name: &str, contents: &[u8]| {
            let path = host.path().join(name);
            std::fs::write(&path, contents).unwrap();
            json!({"filename": path, "format": "raw"})
        };
        let descriptor = json!({
            "interface-types": ["uefi"], "features": features,
            "mapping": {
                "device": "flash",
                "executable": image("CODE.fd", code), "nvram-template": image("VARS.fd", variables),
            },
            "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        });
        std::fs::write(host.path().join("60-test.json"), descriptor.to_string()).unwrap();
        look(&Descriptors::read(&[host.path().to_owned()]))
    }

    fn good() -> [Vec<u8>; 2] {
        [code(0x37_c000), volume(VolumeKind::Variables, 0x8_4000)]
    }

    #[test]
    fn the_image_that_a_vm_would_get_is_told() {
        let [code, variables] = good();
        let found = found(&["secure-boot"], &code, &variables);
        let check = uefi(&found);
        assert!(
            check.found.ends_with("CODE.fd, by 60-test.json"),
            "{check:?}"
        );
        assert_eq!(check.facts["secure_boot"], true);
        assert!(check.fix.is_none());
    }

    #[test]
    fn what_cannot_be_used_is_told_with_the_reason() {
        let [code, variables] = good();
        let smm = uefi(&found(&["requires-smm"], &code, &variables));
        let wanted = "no image would do: 60-test.json needs system management mode";
        assert_eq!(smm.found, wanted);
        let broken = uefi(&found(&[], b"#!/bin/sh\n", &variables));
        assert!(broken.found.contains("neither a UEFI image"), "{broken:?}");
        let other = uefi(&found(&[], &code, &variables[..0x2_0000]));
        assert!(other.found.contains("VARS.fd"), "{other:?}");
        for check in [smm, broken, other] {
            let commands = check.fix.unwrap().commands;
            assert!(commands[0].ends_with("ovmf"), "{commands:?}");
            assert!(!check.blocks && check.means.is_some());
        }
    }

    #[test]
    fn many_reasons_are_cut() {
        let file = |number| (PathBuf::from(format!("{number}.json")), "is odd".to_owned());
        let files: Vec<_> = (0..9).map(file).collect();
        let text = reasons(&files).unwrap();
        assert!(text.starts_with("0.json is odd; "), "{text}");
        assert!(text.ends_with("3.json is odd; and 5 more"), "{text}");
        assert_eq!(reasons(&[]), None);
    }
}
