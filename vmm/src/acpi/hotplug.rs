//! Hot-plug in the DSDT: a device for each slot of bus 0 that can be filled and emptied, and the event behind which the guest looks
//! at the hot-plug registers (`paddock_devices::pci::hotplug`).
//!
//! ```text
//! \_GPE ── _E01  calls HPLG, and what else has to look
//! \_SB.PCI0 ── HPLG  acknowledges and notifies: 1 (look again), 3 (let go)
//!           ├─ S01_ … S1E_  _ADR _SUN _EJ0
//!           └─ HPRG  the registers
//! ```

use acpi_tables::aml::{
    And, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local,
    Method, MethodCall, Notify, OpRegion, OpRegionSpace, Path, Scope, Store, ZERO,
};
use paddock_devices::pci::hotplug::{self, HOT_PLUG_EVENT, HOT_PLUG_PORTS};

use super::dsdt::{Raw, name};
use crate::layout;

/// Slots that can be filled while the guest runs: all but the host bridge's and the LPC bridge's.
pub(super) const SLOTS: std::ops::Range<u8> = 1..31;

/// Notification values (ACPI 6.5 §5.6.6).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

const REGION: &str = "HPRG";
const ADDED: &str = "HPAD";
const WANTED: &str = "HPWB";
const EJECT: &str = "HPEJ";
const LOOK: &str = "HPLG";

/// Where the event finds what to call.
pub(super) const LOOK_PATH: &str = "\\_SB_.PCI0.HPLG";

// The field below has them in this order, 32 bits each.
const _: () = assert!(hotplug::ADDED == 0 && hotplug::WANTED == 4 && hotplug::EJECT == 8);

/// What belongs inside `PCI0`.
pub(super) fn slots() -> Vec<Raw> {
    let (base, length) = (layout::HOT_PLUG_PORTS.start, HOT_PLUG_PORTS);
    let region = OpRegion::new(REGION.into(), OpRegionSpace::SystemIO, &base, &length);
    let registers = [ADDED, WANTED, EJECT].map(|register| {
        let mut name = [0; 4];
        name.copy_from_slice(register.as_bytes());
        FieldEntry::Named(name, 32)
    });
    let field = Field::new(
        REGION.into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        registers.into(),
    );
    let mut all = vec![Raw::new(&region), Raw::new(&field)];
    all.extend(SLOTS.map(slot));
    all.push(look());
    all
}

fn slot_name(slot: u8) -> String {
    format!("S{slot:02X}_")
}

fn slot(slot: u8) -> Raw {
    let (bit, register) = (1u32 << slot, Path::new(EJECT));
    let eject = Store::new(&register, &bit);
    Raw::new(&Device::new(
        slot_name(slot).as_str().into(),
        vec![
            &name("_ADR", &(u32::from(slot) << 16)),
            &name("_SUN", &slot),
            &Method::new("_EJ0".into(), 1, true, vec![&eject]),
        ],
    ))
}

/// Acknowledged first and acted on then, so that what changes meanwhile raises the event again.
fn look() -> Raw {
    let (added, wanted) = (Path::new(ADDED), Path::new(WANTED));
    let mut steps = vec![
        Raw::new(&Store::new(&Local(0), &added)),
        Raw::new(&Store::new(&added, &Local(0))),
        Raw::new(&Store::new(&Local(1), &wanted)),
        Raw::new(&Store::new(&wanted, &Local(1))),
    ];
    for (slots, value) in [(Local(0), DEVICE_CHECK), (Local(1), EJECT_REQUEST)] {
        for slot in SLOTS {
            let (bit, device) = (1u32 << slot, Path::new(&slot_name(slot)));
            steps.push(Raw::new(&If::new(
                &And::new(&ZERO, &slots, &bit),
                vec![&Notify::new(&device, &value)],
            )));
        }
    }
    let steps = steps.iter().map(|step| step as _).collect();
    Raw::new(&Method::new(LOOK.into(), 0, true, steps))
}

/// The event, at the root of the namespace: what is to be called when it comes.
pub(super) fn event(looks: &[&str]) -> Raw {
    let looks = looks
        .iter()
        .map(|path| MethodCall::new(Path::new(path), vec![]));
    let looks: Vec<_> = looks.map(|look| Raw::new(&look)).collect();
    let looks = looks.iter().map(|look| look as _).collect();
    let name = format!("_E{HOT_PLUG_EVENT:02X}");
    let method = Method::new(name.as_str().into(), 0, true, looks);
    Raw::new(&Scope::new("_GPE".into(), vec![&method]))
}
