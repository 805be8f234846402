//! Which image and which variables a VM gets, what it boots from, and what its tables say as firmware goes along.

use std::fs;
use std::path::PathBuf;

use paddock_api::spec::Boot;
use paddock_devices::bus::{Bus, BusDevice};
use paddock_devices::firmware::volume::VolumeKind;
use paddock_devices::firmware::volume::double::volume;
use paddock_devices::pci::root::{Ecam, PciRoot};
use paddock_devices::pci::{DeviceFunction, PciFunction};
use paddock_devices::virtio::scsi::CdromHandle;
use serde_json::{Value, json};

use super::*;
use crate::firmware::image::tests::code;
use crate::layout;

const CODE: usize = 0x1e_0000;
const VARIABLES: usize = 0x2_0000;

/// A directory with firmware.
struct Host(tempfile::TempDir);

impl Host {
    /// With code, and the template beside it.
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.put("CODE.fd", &code(CODE));
        host.put("VARS.fd", &variables(VARIABLES));
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Opens what a spec names, by names in this directory.
    fn open(&self, names: &[(&str, &str)]) -> Result<OpenFirmware, Error> {
        let paths = names
            .iter()
            .map(|(key, name)| ((*key).to_owned(), json!(self.path(name))));
        let firmware = Value::Object(paths.collect());
        OpenFirmware::open(&boot(&json!({"boot": {"firmware": firmware}})))
    }

    #[track_caller]
    fn refuses(&self, names: &[(&str, &str)], pointer: &str) {
        let error = self.open(names).unwrap_err();
        assert_eq!(error.pointer(), Some(pointer), "{error:?}");
    }
}

fn variables(size: usize) -> Vec<u8> {
    volume(VolumeKind::Variables, size)
}

fn boot(spec: &Value) -> FirmwareBoot {
    match VmSpec::from_json(&spec.to_string()).unwrap().boot {
        Boot::Firmware(firmware) => firmware,
        other => panic!("{other:?}"),
    }
}

#[test]
fn variables_without_a_file_are_the_templates() {
    let host = Host::new();
    let open = host.open(&[("path", "CODE.fd")]).unwrap();
    let Some(Variables::Fleeting(memory)) = &open.variables else {
        panic!("{open:?}");
    };
    assert_eq!(memory.snapshot(), variables(VARIABLES));
    assert_eq!(open.code.snapshot(), code(CODE));
    open.save();
    assert_eq!(
        fs::read_dir(host.0.path()).unwrap().count(),
        2,
        "no new file"
    );
}

#[test]
fn variables_are_made_once_and_then_need_no_template() {
    let host = Host::new();
    let names = [("path", "CODE.fd"), ("variables", "vm.fd")];
    let open = host.open(&names).unwrap();
    assert!(matches!(open.variables, Some(Variables::Kept(_))));
    open.save();
    drop(open);
    assert_eq!(fs::read(host.path("vm.fd")).unwrap(), variables(VARIABLES));
    fs::remove_file(host.path("VARS.fd")).unwrap();
    assert!(host.open(&names).is_ok());
    host.refuses(&[names[0], ("variables", "other.fd")], AT_FIRMWARE);
    host.refuses(&[names[0]], AT_FIRMWARE);
}

#[test]
fn what_does_not_fit_is_refused_where_it_is_named() {
    let host = Host::new();
    let image = ("path", "CODE.fd");
    host.put("large.fd", &variables(2 * VARIABLES));
    host.put("text", b"text");
    host.refuses(&[("path", "absent.fd")], AT_PATH);
    host.refuses(&[("path", "text")], AT_PATH);
    host.refuses(&[image, ("template", "large.fd")], AT_TEMPLATE);
    host.refuses(&[image, ("variables", "large.fd")], AT_VARIABLES);
    host.refuses(&[image, ("variables", "absent/vm.fd")], AT_VARIABLES);
    let both = [image, ("variables", "vm.fd"), ("template", "text")];
    host.refuses(&both, AT_TEMPLATE);
    assert!(!host.path("vm.fd").exists());
    host.put("code-only.fd", &code(0x20_0000));
    let alone = host.open(&[("path", "code-only.fd")]).unwrap();
    assert!(alone.variables.is_none());
    host.refuses(
        &[("path", "code-only.fd"), ("variables", "vm.fd")],
        AT_FIRMWARE,
    );
}

#[test]
fn the_boot_order_is_one_of_places() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let spec = json!({
        "boot": {"firmware": {}, "order": ["b", "cd", "a"]},
        "disks": [{"id": "a", "path": image.path(), "read_only": true}, {"id": "b", "path": "absent"}],
        "cdroms": [{"id": "empty"}, {"id": "cd"}],
    });
    let order = boot(&spec).order;
    let spec = VmSpec::from_json(&spec.to_string()).unwrap();
    let mut disk =
        OpenDevice::disk("/disks/0", &spec.disks[0], &crate::disks::Disks::nowhere()).unwrap();
    disk.slot = DeviceFunction::new(3, 0);
    let cdrom = |id: &str, place| {
        let mut cdrom = OpenDevice::cdrom(id, CdromHandle::new(id, || ()));
        cdrom.slot = Some(place);
        cdrom
    };
    let [four, five] = [4, 5].map(|device| DeviceFunction::new(device, 1).unwrap());
    let places = [
        BootPlace::Scsi {
            controller: five,
            target: 0,
            lun: 0,
        },
        BootPlace::Disk(disk.slot.unwrap()),
    ];
    let devices = [
        OpenDevice::rng(),
        disk,
        cdrom("empty", four),
        cdrom("cd", five),
    ];
    assert_eq!(boot_places(&order, &devices), places);
    let lines = "/pci@i0cf8/scsi@5,1/channel@0/disk@0,0\n/pci@i0cf8/scsi@3/disk@0,0\0";
    assert_eq!(files::boot_order::list(&places), lines.as_bytes());
    assert_eq!(boot_places(&order, &[]), []);
}

#[test]
fn tables_follow_what_the_guest_moves() {
    let mmio = Arc::new(Bus::default());
    let device: Arc<dyn BusDevice> = Arc::new(Ecam::new(&Arc::new(PciRoot::default())));
    let bridge = Arc::new(HostBridge::new(mmio, Arc::clone(&device), None));
    let lpc = Arc::new(LpcBridge::new(Arc::default(), device, None));
    let first = TablesInput {
        apic_ids: vec![0],
        present: None,
        ecam: layout::ECAM_BASE..layout::ECAM_BASE + layout::ECAM_SIZE,
        mmio32: layout::MMIO32,
        mmio64: 0..0,
        pm_base: layout::PM_BASE,
    };
    let shape = Shape {
        bridge: Arc::clone(&bridge),
        lpc: Arc::clone(&lpc),
        ram_size: 1 << 30,
        first,
    };
    let now = || {
        let input = shape.tables_input();
        (input.ecam, input.mmio32, input.pm_base)
    };
    let at_first = (0xe000_0000..0xf000_0000, 0xc000_0000..0xe000_0000, 0x600);
    assert_eq!(now(), at_first);
    // As bookworm's firmware does it: PCIEXBAR, then PMBASE and its switch.
    bridge.write_config(0x60, &0xb000_0001_u32.to_le_bytes());
    lpc.write_config(0x40, &0x701_u32.to_le_bytes());
    lpc.write_config(0x44, &[0x80]);
    let moved = (0xb000_0000..0xc000_0000, 0xc000_0000..0xfc00_0000, 0x700);
    assert_eq!(now(), moved);
    bridge.write_config(0x60, &0_u32.to_le_bytes());
    lpc.write_config(0x44, &[0]);
    assert_eq!(now(), at_first);
}
