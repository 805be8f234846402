//! The slots of PCI bus 0 in the DSDT that can be filled and emptied: a device for each, and the methods that ask the hot-plug registers
//! (`paddock_devices::pci::hotplug`) for them.
//!
//! ```text
//! \_GPE ── _E01  calls HPLG
//! \_SB.PCI0 ── HPLG  acknowledges and notifies: 1 (look again), 3 (let go)
//!           ├─ S01_ … S1E_  _ADR _SUN _EJ0
//!           └─ HPRG  the registers
//! ```

use acpi_tables::aml::{And, Device, If, Local, Method, Notify, Path, Store, ZERO};
use paddock_devices::pci::hotplug as registers;

use super::aml::{Raw, method, name};
use super::hotplug::{DEVICE_CHECK, EJECT_REQUEST, registers as hot_plug_registers};
use crate::layout;

/// Slots that can be filled while the guest runs: all but the host bridge's and the LPC bridge's.
pub(super) const SLOTS: std::ops::Range<u8> = 1..31;

const REGION: &str = "HPRG";
const ADDED: &str = "HPAD";
const WANTED: &str = "HPWB";
const EJECT: &str = "HPEJ";
const LOOK: &str = "HPLG";

/// Where the event finds what to call.
pub(super) const LOOK_PATH: &str = "\\_SB_.PCI0.HPLG";

// The field below has them in this order, 32 bits each.
const _: () = assert!(registers::ADDED == 0 && registers::WANTED == 4 && registers::EJECT == 8);

/// What belongs inside `PCI0`.
pub(super) fn slots() -> Vec<Raw> {
    let names = [ADDED, WANTED, EJECT];
    let mut all = Vec::from(hot_plug_registers(REGION, &layout::HOT_PLUG_PORTS, &names));
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
    method(LOOK, 0, &steps)
}
