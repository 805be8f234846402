//! Which of a host's descriptors wins, and why the others do not.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::*;

struct Host(tempfile::TempDir);

impl Host {
    /// With Debian's three descriptors and their images.
    fn debian() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        for directory in ["etc", "share", "fw"] {
            fs::create_dir(this.0.path().join(directory)).unwrap();
        }
        for image in ["CODE.fd", "CODE.secboot.fd", "VARS.fd", "VARS.ms.fd"] {
            fs::write(this.image(image), "").unwrap();
        }
        symlink("CODE.secboot.fd", this.image("CODE.ms.fd")).unwrap();
        let smm = json!(["acpi-s3", "requires-smm", "secure-boot"]);
        this.put(
            "share/40-enrolled.json",
            &this.flash("CODE.ms.fd", "VARS.ms.fd", &smm),
        );
        this.put(
            "share/50-secure.json",
            &this.flash("CODE.secboot.fd", "VARS.fd", &smm),
        );
        let plain = this.flash("CODE.fd", "VARS.fd", &json!(["acpi-s3"]));
        this.put("share/60-plain.json", &plain);
        this
    }

    fn image(&self, name: &str) -> PathBuf {
        self.0.path().join("fw").join(name)
    }

    fn flash(&self, code: &str, vars: &str, features: &Value) -> Value {
        let image = |name| json!({ "filename": self.image(name), "format": "raw" });
        json!({
            "description": "some firmware",
            "interface-types": ["uefi"],
            "mapping": { "device": "flash", "executable": image(code), "nvram-template": image(vars) },
            "targets": [{ "architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"] }],
            "features": features,
            "tags": []
        })
    }

    fn put(&self, name: &str, document: &Value) {
        fs::write(self.0.path().join(name), document.to_string()).unwrap();
    }

    fn read(&self) -> Descriptors {
        Descriptors::read(&["etc", "missing", "share"].map(|name| self.0.path().join(name)))
    }

    /// The name of the descriptor that wins.
    fn chosen(&self) -> String {
        let descriptors = self.read();
        let path = &descriptors.uefi().unwrap().descriptor;
        let path = path.strip_prefix(self.0.path()).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[test]
fn debians_plain_firmware_is_taken() {
    let host = Host::debian();
    let descriptors = host.read();
    let offer = descriptors.uefi().unwrap();
    assert_eq!(offer.executable, host.image("CODE.fd"));
    assert_eq!(offer.template, Some(host.image("VARS.fd")));
    assert!(offer.features.contains("acpi-s3"));
    assert_eq!(descriptors.offers().len(), 1);
    let template = descriptors.template_of(&host.image("../fw/CODE.fd"));
    assert_eq!(template, Some(&*host.image("VARS.fd")));
    assert_eq!(descriptors.template_of(&host.image("CODE.ms.fd")), None);
    descriptors.check(&host.image("CODE.fd")).unwrap();
    for image in ["CODE.ms.fd", "CODE.secboot.fd"] {
        let error = descriptors.check(&host.image(image)).unwrap_err();
        assert_eq!(error.kind(), FirmwareErrorKind::NeedsSmm);
    }
}

#[test]
fn names_and_directories_have_their_order() {
    let host = Host::debian();
    let plain = host.flash("CODE.fd", "VARS.fd", &json!([]));
    host.put("share/55-newer.json", &plain);
    assert_eq!(host.chosen(), "share/55-newer.json");
    host.put("etc/55-newer.json", &plain);
    assert_eq!(host.chosen(), "etc/55-newer.json", "the administrator's");
    fs::write(host.0.path().join("etc/55-newer.json"), "").unwrap();
    assert_eq!(
        host.chosen(),
        "share/60-plain.json",
        "hidden by an empty one"
    );
    host.put("etc/99-mine.json", &plain);
    assert_eq!(host.chosen(), "share/60-plain.json", "names come first");
    host.put("etc/.00-hidden.json", &plain);
    host.put("etc/00-backup.json~", &plain);
    assert_eq!(host.chosen(), "share/60-plain.json");
    symlink("/dev/null", host.0.path().join("etc/60-plain.json")).unwrap();
    assert_eq!(host.chosen(), "etc/99-mine.json", "no file hides as well");
}

#[test]
fn why_each_will_not_do_is_told() {
    let host = Host::debian();
    let good = host.flash("CODE.fd", "VARS.fd", &json!([]));
    let with = |pointer: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        changed
    };
    let combined = json!({ "device": "flash", "mode": "combined",
        "executable": { "filename": host.image("CODE.fd"), "format": "raw" } });
    host.put("share/60-plain.json", &with("/mapping", combined));
    assert_eq!(host.read().uefi().unwrap().template, None);
    for (document, reason) in [
        (json!([1, 2]), "is no firmware descriptor"),
        (
            with("/targets/0/architecture", json!("aarch64")),
            "is for other machines",
        ),
        (
            with(
                "/targets/0/machines",
                json!(["pc-i440fx-*", "pc-q350", "microvm"]),
            ),
            "is for other machines",
        ),
        (
            with("/interface-types", json!(["openfirmware"])),
            "is neither UEFI nor a BIOS (openfirmware)",
        ),
        (
            with("/mapping/executable/format", json!("qcow2")),
            "is in the format qcow2",
        ),
        (
            with("/mapping/nvram-template/filename", json!("/nowhere.fd")),
            "/nowhere.fd is not there",
        ),
        (
            with("/mapping", json!({ "device": "memory", "filename": "/x" })),
            "for memory rather than flash",
        ),
        (
            with("/mapping", json!({ "device": "kernel", "filename": "/x" })),
            "a device that this platform has not",
        ),
        (
            with("/features", json!(["requires-smm"])),
            "needs system management mode",
        ),
    ] {
        host.put("share/60-plain.json", &document);
        let error = host.read().uefi().unwrap_err();
        assert_eq!(error.kind(), FirmwareErrorKind::NoneFound);
        let text = error.to_string();
        let expected = format!("share/60-plain.json {reason}");
        let described = text.contains("60-plain.json") && text.contains(reason);
        assert!(
            described && text.contains("package ovmf"),
            "{expected}: {text}"
        );
    }
    for machines in [
        json!(["q35"]),
        json!(["pc-q35-9.2"]),
        json!(["*"]),
        json!(["q35*"]),
    ] {
        host.put(
            "share/60-plain.json",
            &with("/targets/0/machines", machines),
        );
        assert_eq!(host.chosen(), "share/60-plain.json");
    }
}

#[test]
fn files_that_are_none_are_passed_over() {
    let host = Host::debian();
    fs::create_dir(host.0.path().join("share/10-directory.json")).unwrap();
    fs::write(
        host.0.path().join("share/20-large.json"),
        vec![b' '; (1 << 20) + 1],
    )
    .unwrap();
    fs::write(host.0.path().join("share/30-bytes.json"), [0xff; 99]).unwrap();
    assert_eq!(host.chosen(), "share/60-plain.json");
    let nothing = Descriptors::read(&[]);
    assert!(nothing.uefi().is_err() && nothing.offers().is_empty());
}

#[test]
fn a_bios_is_found_by_its_descriptor() {
    let host = Host::debian();
    let mut bios = host.flash("CODE.fd", "VARS.fd", &json!([]));
    bios["interface-types"] = json!(["bios"]);
    bios["mapping"] = json!({ "device": "memory", "filename": host.image("CODE.fd") });
    host.put("etc/30-bios.json", &bios);
    let descriptors = host.read();
    assert_eq!(descriptors.bios().unwrap(), host.image("CODE.fd"));
    assert_eq!(host.chosen(), "share/60-plain.json");
}
