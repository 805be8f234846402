//! Hot-plug in the DSDT, as far as it is the same whatever comes and goes: the event, the registers, the notifications. What it is that comes
//! and goes: [`super::slots`], [`super::processors`].
//!
//! ```text
//! \_GPE ── _E01  calls whatever has to look at its registers
//! ```

use std::ops::Range;

use acpi_tables::aml::{
    Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, MethodCall, OpRegion,
    OpRegionSpace, Path, Scope,
};
use paddock_devices::pci::hotplug::HOT_PLUG_EVENT;

use super::aml::{Raw, method};

/// Notification values (ACPI 6.5 §5.6.6).
pub(super) const DEVICE_CHECK: u8 = 1;
pub(super) const EJECT_REQUEST: u8 = 3;

/// Registers of 32 bits each, one after the other from the first of `ports` on: the region, and a field for each name of four letters.
pub(super) fn registers(region: &str, ports: &Range<u16>, names: &[&str]) -> [Raw; 2] {
    let length = ports.end - ports.start;
    let fields = names.iter().map(|register| {
        let mut name = [0; 4];
        name.copy_from_slice(register.as_bytes());
        FieldEntry::Named(name, 32)
    });
    let field = Field::new(
        region.into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        fields.collect(),
    );
    let space = OpRegionSpace::SystemIO;
    let region = OpRegion::new(region.into(), space, &ports.start, &length);
    [Raw::new(&region), Raw::new(&field)]
}

/// The event, at the root of the namespace: what is to be called when it comes.
pub(super) fn event(looks: &[&str]) -> Raw {
    let looks = looks
        .iter()
        .map(|path| Raw::new(&MethodCall::new(Path::new(path), vec![])));
    let looks: Vec<_> = looks.collect();
    let method = method(&format!("_E{HOT_PLUG_EVENT:02X}"), 0, &looks);
    Raw::new(&Scope::new("_GPE".into(), vec![&method]))
}
