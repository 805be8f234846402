//! The DSDT: what cannot be found by looking. Host bridge with its windows and interrupt wiring, the ISA devices behind the
//! LPC bridge, what the motherboard keeps for itself, the processors, and how to power off.
//!
//! ```text
//! \_S5
//! \_GPE ── _E01  hot-plug
//! \_SB ── PCI0  PNP0A08  _CRS _PRT _OSC
//!      │   ├─ S01_, S02_, …  the slots that can be filled and emptied
//!      │   └─ ISA_  1f.0 ── COM1  PNP0501
//!      │                 └─ RTC_  PNP0B00
//!      ├─ MBRD  PNP0C02  ECAM, PM block, hot-plug registers, KVM's pages
//!      └─ CPUS  ACPI0010 ── C000, C001, …  ACPI0007
//! ```

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    IO, If, Interrupt, Local, Memory32Fixed, Method, Name, NotEqual, ONE, Or, PackageBuilder, Path,
    ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};
use paddock_devices::legacy::acpi_pm;

use super::aml::{ALL_WELL, Raw, name};
use super::fixed::{bytes, table};
use super::processors::{self, processors};
use super::{TablesInput, hotplug, slots};
use crate::layout;

/// Slots of bus 0, and pins of a slot.
const SLOTS: u8 = 32;
const PINS: u8 = 4;

/// The whole table.
pub(super) fn dsdt(input: &TablesInput) -> Vec<u8> {
    let (pci, motherboard, processors) = (
        pci_root(input),
        motherboard(input),
        processors(&input.apic_ids, input.present.is_some()),
    );
    let system_bus = Raw::new(&Scope::new(
        "_SB_".into(),
        vec![&pci, &motherboard, &processors],
    ));
    let mut looks = vec![slots::LOOK_PATH];
    looks.extend(input.present.map(|_| processors::LOOK_PATH));
    let event = hotplug::event(&looks);
    let body = [bytes(&power_off()), bytes(&system_bus), bytes(&event)].concat();
    table(*b"DSDT", 2, &body)
}

/// `_S5`: what to write to SLP_TYP to power off.
fn power_off() -> Name {
    let mut package = PackageBuilder::new();
    package.add_element(&acpi_pm::S5_SLEEP_TYPE);
    for _ in 0..3 {
        package.add_element(&ZERO);
    }
    name("_S5_", &package)
}

fn pci_root(input: &TablesInput) -> Raw {
    let children = [
        Raw::new(&name("_HID", &EISAName::new("PNP0A08"))),
        Raw::new(&name("_CID", &EISAName::new("PNP0A03"))),
        Raw::new(&name("_UID", &ZERO)),
        Raw::new(&name("_SEG", &ZERO)),
        Raw::new(&name("_BBN", &ZERO)),
        Raw::new(&root_resources(input)),
        Raw::new(&interrupt_routes()),
        operating_system_capabilities(),
        isa_bridge(),
    ];
    let slots = slots::slots();
    let children = children.iter().chain(&slots).map(|child| child as _);
    Raw::new(&Device::new("PCI0".into(), children.collect()))
}

/// `_CRS` of the root: buses, and the addresses that PCI functions may have.
fn root_resources(input: &TablesInput) -> Name {
    const UNCACHED: AddressSpaceCacheable = AddressSpaceCacheable::NotCacheable;
    let config = layout::PCI_CONFIG_PORTS;
    // A range, first and last address, unless it is empty.
    let ends =
        |range: &std::ops::Range<u64>| (!range.is_empty()).then(|| (range.start, range.end - 1));
    let mmio32 = ends(&input.mmio32)
        .and_then(|(first, last)| Some((u32::try_from(first).ok()?, u32::try_from(last).ok()?)))
        .map(|(first, last)| AddressSpace::new_memory(UNCACHED, true, first, last, None));
    let mmio64 = ends(&input.mmio64)
        .map(|(first, last)| AddressSpace::new_memory(UNCACHED, true, first, last, None));
    let buses = AddressSpace::new_bus_number(0, u16::from(layout::PCI_LAST_BUS));
    let config_ports = IO::new(config.start, config.start, 1, 8);
    let (below, above) = (
        AddressSpace::new_io(0u16, config.start - 1, None),
        AddressSpace::new_io(config.end, 0xFFFF, None),
    );
    let mut resources: Vec<&dyn Aml> = vec![&buses, &config_ports, &below, &above];
    if let Some(window) = &mmio32 {
        resources.push(window);
    }
    if let Some(window) = &mmio64 {
        resources.push(window);
    }
    name("_CRS", &ResourceTemplate::new(resources))
}

/// `_PRT`: each pin of each slot is wired straight to a pin of the I/O APIC.
fn interrupt_routes() -> Name {
    let mut routes = PackageBuilder::new();
    for slot in 0..SLOTS {
        for pin in 0..PINS {
            let mut route = PackageBuilder::new();
            // All functions of the slot.
            route.add_element(&(u32::from(slot) << 16 | 0xFFFF));
            route.add_element(&pin);
            route.add_element(&ZERO);
            route.add_element(&layout::pci_intx_gsi(slot, pin));
            routes.add_element(&route);
        }
    }
    name("_PRT", &routes)
}

/// `_OSC` (PCI Firmware 3.3 §4.5): hands native PCIe hot-plug, PME, AER and the capability structure to the system. Without
/// it Linux leaves all of PCIe alone.
fn operating_system_capabilities() -> Raw {
    const GRANTED: u8 = 0b1_1101;
    const UNKNOWN_REVISION: u8 = 1 << 3;
    const UNKNOWN_UUID: u8 = 1 << 2;
    const MASKED: u8 = 1 << 4;
    let path = |name: &str| Path::new(name);
    let buffer = Arg(3);
    let uuid = Uuid::new("33db4d5b-1ff7-401c-9657-7441c03dd766");
    let flag = |bit: u8| Raw::new(&Or::new(&Path::new("CDW1"), &Path::new("CDW1"), &bit));
    let known = Raw::new(&If::new(
        &Equal::new(&Arg(0), &uuid),
        vec![
            &CreateDWordField::new(&path("CDW3"), &buffer, &8u8),
            &And::new(&Local(0), &path("CDW3"), &GRANTED),
            &If::new(&NotEqual::new(&Arg(1), &ONE), vec![&flag(UNKNOWN_REVISION)]),
            &If::new(
                &NotEqual::new(&path("CDW3"), &Local(0)),
                vec![&flag(MASKED)],
            ),
            &Store::new(&path("CDW3"), &Local(0)),
        ],
    ));
    Raw::new(&Method::new(
        "_OSC".into(),
        4,
        true,
        vec![
            &CreateDWordField::new(&path("CDW1"), &buffer, &ZERO),
            &known,
            &Else::new(vec![&flag(UNKNOWN_UUID)]),
            &Return::new(&buffer),
        ],
    ))
}

/// 1f.0 and the devices behind it. The clock has no interrupt.
fn isa_bridge() -> Raw {
    const LPC_ADDRESS: u32 = 0x001F_0000;
    let serial = Raw::new(&Device::new(
        "COM1".into(),
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &ONE),
            &name("_STA", &ALL_WELL),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![
                    &IO::new(layout::COM1_PORT, layout::COM1_PORT, 1, 8),
                    &Interrupt::new(true, true, false, false, layout::COM1_GSI),
                ]),
            ),
        ],
    ));
    let clock = Raw::new(&Device::new(
        "RTC_".into(),
        vec![
            &name("_HID", &EISAName::new("PNP0B00")),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![&IO::new(layout::RTC_PORT, layout::RTC_PORT, 1, 2)]),
            ),
        ],
    ));
    Raw::new(&Device::new(
        "ISA_".into(),
        vec![&name("_ADR", &LPC_ADDRESS), &serial, &clock],
    ))
}

/// What no PCI function or driver may take. Linux uses ECAM only where a table like this reserves it.
fn motherboard(input: &TablesInput) -> Raw {
    let fixed = |range: &std::ops::Range<u64>| {
        // An ECAM above 4 GiB cannot be said this way; a descriptor of no length keeps the layout.
        let (base, length) = match (
            u32::try_from(range.start),
            u32::try_from(range.end.saturating_sub(range.start)),
        ) {
            (Ok(base), Ok(length)) => (base, length),
            _ => (0, 0),
        };
        Memory32Fixed::new(true, base, length)
    };
    let hot_plug = layout::HOT_PLUG_PORTS;
    let hot_plug_length = u8::try_from(hot_plug.len()).unwrap_or(u8::MAX);
    let cpus = layout::CPU_HOT_PLUG_PORTS;
    let cpus_length = u8::try_from(cpus.len()).unwrap_or(u8::MAX);
    let pm_length = u8::try_from(layout::PM_SIZE).unwrap_or(u8::MAX);
    Raw::new(&Device::new(
        "MBRD".into(),
        vec![
            &name("_HID", &EISAName::new("PNP0C02")),
            &name("_UID", &ZERO),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![
                    &fixed(&input.ecam),
                    &fixed(&layout::KVM_RESERVED),
                    &IO::new(input.pm_base, input.pm_base, 1, pm_length),
                    &IO::new(hot_plug.start, hot_plug.start, 1, hot_plug_length),
                    &IO::new(cpus.start, cpus.start, 1, cpus_length),
                ]),
            ),
        ],
    ))
}
