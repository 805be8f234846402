//! Hot-plug of bus 0's slots: the registers that the DSDT's methods read when the guest is told that something changed.
//!
//! ```text
//! host                              guest (AML)
//! added, wants_back ── GPE ───▶     reads ADDED and WANTED, writes both back, notifies its slots
//! take_released     ◀── EJECT ───   _EJ0: the driver has let go of the slot
//! ```
//!
//! Served on vCPU threads. The guest may read and write what it likes: a slot is pulled out only while the host wants it back.

use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::DeviceFunction;
use super::root::PciRoot;
use crate::bus::{BusDevice, read_bytes};
use crate::legacy::acpi_pm::AcpiPm;
use crate::throttle::Throttle;

/// Number of ports.
pub const HOT_PLUG_PORTS: u64 = 12;
/// Offset of the register of slots that were filled (4 bytes, a bit each; writing ones clears), for the DSDT.
pub const ADDED: u16 = 0;
/// Offset of the register of slots that the host wants back (4 bytes, a bit each; writing ones clears), for the DSDT.
pub const WANTED: u16 = 4;
/// Offset of the register that a slot's bit is written to when the guest has let go of it (4 bytes, reads as zero), for the DSDT.
pub const EJECT: u16 = 8;
/// The general-purpose event behind which the DSDT looks at the registers.
pub const HOT_PLUG_EVENT: u8 = 1;

/// Told on a vCPU thread that a slot may be taken out: leaves a note and returns at once.
pub trait SlotEvents: Send + Sync + fmt::Debug {
    /// [`HotPlug::take_released`] has something.
    fn slot_released(&self);
}

#[derive(Debug, Default)]
struct State {
    /// Not seen by the guest yet.
    added: u32,
    /// Not seen by the guest yet.
    wanted: u32,
    /// The host waits for these.
    pending: u32,
    /// Let go of, and not taken by the host yet.
    released: u32,
}

/// The registers.
#[derive(Debug)]
pub struct HotPlug {
    root: Weak<PciRoot>,
    pm: Arc<AcpiPm>,
    events: Arc<dyn SlotEvents>,
    state: Mutex<State>,
    log: Throttle,
}

impl HotPlug {
    /// Registers for the slots of `root`, whose event goes through `pm`.
    #[must_use]
    pub fn new(root: &Arc<PciRoot>, pm: Arc<AcpiPm>, events: Arc<dyn SlotEvents>) -> Self {
        Self {
            root: Arc::downgrade(root),
            pm,
            events,
            state: Mutex::default(),
            log: Throttle::new(),
        }
    }

    /// Tells the guest that a function is in `slot` now.
    pub fn added(&self, slot: DeviceFunction) {
        self.state.lock().added |= bit(slot);
        self.pm.raise_gpe(HOT_PLUG_EVENT);
    }

    /// Asks the guest to let go of `slot`; asks again if it was asked before.
    pub fn want_back(&self, slot: DeviceFunction) {
        let mut state = self.state.lock();
        state.wanted |= bit(slot);
        state.pending |= bit(slot);
        drop(state);
        self.pm.raise_gpe(HOT_PLUG_EVENT);
    }

    /// Does not want `slot` back any more. Too late (`false`) when the guest has let go of it.
    #[must_use]
    pub fn keep(&self, slot: DeviceFunction) -> bool {
        let mut state = self.state.lock();
        state.wanted &= !bit(slot);
        state.pending &= !bit(slot);
        state.released & bit(slot) == 0
    }

    /// Raises the event again if the guest has not looked since: one that is just starting may have dropped it.
    pub fn remind(&self) {
        let state = self.state.lock();
        let unseen = state.added | state.wanted;
        drop(state);
        if unseen != 0 {
            self.pm.raise_gpe(HOT_PLUG_EVENT);
        }
    }

    /// The slots that the guest has let go of since the last call. Their functions are off the bus's configuration space.
    #[must_use]
    pub fn take_released(&self) -> Vec<DeviceFunction> {
        let released = std::mem::take(&mut self.state.lock().released);
        slots(released).collect()
    }

    fn eject(&self, slots_written: u32) {
        let mut state = self.state.lock();
        let released = slots_written & state.pending;
        state.pending &= !released;
        state.wanted &= !released;
        state.added &= !released;
        state.released |= released;
        // Under the lock: whoever takes the slot as released may fill it again.
        if let Some(root) = self.root.upgrade() {
            for slot in slots(released) {
                root.remove(slot);
            }
        }
        drop(state);
        if released != 0 {
            self.events.slot_released();
        }
        if slots_written != released {
            if let Some(held_back) = self.log.pass() {
                let slots = slots_written & !released;
                tracing::info!(
                    slots = format_args!("{slots:#010x}"),
                    held_back,
                    "guest lets go of PCI slots that nobody wants back; they stay"
                );
            }
        }
    }
}

fn bit(slot: DeviceFunction) -> u32 {
    1 << slot.device()
}

fn slots(bits: u32) -> impl Iterator<Item = DeviceFunction> {
    (0..32)
        .filter(move |device| bits & 1 << device != 0)
        .filter_map(|device| DeviceFunction::new(device, 0))
}

impl BusDevice for HotPlug {
    fn name(&self) -> &str {
        "pci-hot-plug"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock();
        let registers = [state.added, state.wanted, 0].map(u32::to_le_bytes);
        drop(state);
        read_bytes(registers.as_flattened(), offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // The DSDT writes whole registers; nothing else means anything.
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else {
            return;
        };
        match u16::try_from(offset) {
            Ok(ADDED) => self.state.lock().added &= !value,
            Ok(WANTED) => self.state.lock().wanted &= !value,
            Ok(EJECT) => self.eject(value),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::bus::Bus;
    use crate::legacy::acpi_pm::tests::{block, gpe_is_pending};
    use crate::pci::host_bridge::HostBridge;
    use crate::pci::root::Ecam;

    /// How often the host was told that the guest let go of slots.
    #[derive(Debug, Default)]
    struct Released(AtomicUsize);

    impl SlotEvents for Released {
        fn slot_released(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Setup {
        root: Arc<PciRoot>,
        pm: Arc<AcpiPm>,
        released: Arc<Released>,
        registers: HotPlug,
    }

    fn setup() -> Setup {
        let (root, released) = (Arc::<PciRoot>::default(), Arc::<Released>::default());
        let pm = Arc::new(block().0);
        let registers = HotPlug::new(&root, Arc::clone(&pm), Arc::clone(&released) as _);
        Setup {
            root,
            pm,
            released,
            registers,
        }
    }

    fn slot(device: u8) -> DeviceFunction {
        DeviceFunction::new(device, 0).unwrap()
    }

    fn plug(setup: &Setup, device: u8) {
        let ecam: Arc<dyn BusDevice> = Arc::new(Ecam::new(&setup.root));
        let function = HostBridge::new(Arc::new(Bus::default()), ecam, None);
        setup.root.add(slot(device), Arc::new(function)).unwrap();
    }

    fn is_there(setup: &Setup, device: u8) -> bool {
        let mut id = [0; 4];
        setup.root.read(slot(device), 0, &mut id);
        id != [0xff; 4]
    }

    fn read(setup: &Setup, register: u16) -> u32 {
        let mut data = [0; 4];
        setup.registers.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(setup: &Setup, register: u16, value: u32) {
        setup.registers.write(register.into(), &value.to_le_bytes());
    }

    fn event_is_pending(setup: &Setup) -> bool {
        gpe_is_pending(&setup.pm, HOT_PLUG_EVENT)
    }

    #[test]
    fn the_guest_hears_of_a_new_slot_once() {
        let setup = setup();
        setup.registers.added(slot(5));
        assert!(event_is_pending(&setup));
        assert_eq!(read(&setup, ADDED), 1 << 5);
        setup.registers.added(slot(6));
        write(&setup, ADDED, 1 << 5);
        assert_eq!(read(&setup, ADDED), 1 << 6, "what it has not seen stays");
        setup.pm.write(0x20, &[0xff]);
        assert!(!event_is_pending(&setup));
        setup.registers.remind();
        assert!(event_is_pending(&setup));
        write(&setup, ADDED, 1 << 6);
        setup.pm.write(0x20, &[0xff]);
        setup.registers.remind();
        assert!(!event_is_pending(&setup), "it has seen all");
    }

    #[test]
    fn a_slot_goes_when_the_guest_lets_go() {
        let setup = setup();
        plug(&setup, 3);
        setup.registers.want_back(slot(3));
        assert_eq!(read(&setup, WANTED), 1 << 3);
        write(&setup, WANTED, 1 << 3);
        assert!(is_there(&setup, 3));
        write(&setup, EJECT, 1 << 3);
        assert!(!is_there(&setup, 3));
        assert_eq!(setup.released.0.load(Ordering::Relaxed), 1);
        assert!(!setup.registers.keep(slot(3)), "too late");
        assert_eq!(setup.registers.take_released(), [slot(3)]);
        assert!(setup.registers.take_released().is_empty());
    }

    #[test]
    fn what_nobody_wants_back_stays() {
        let setup = setup();
        plug(&setup, 3);
        write(&setup, EJECT, u32::MAX);
        assert!(is_there(&setup, 3));
        setup.registers.want_back(slot(3));
        assert!(setup.registers.keep(slot(3)));
        assert_eq!(read(&setup, WANTED), 0);
        write(&setup, EJECT, 1 << 3);
        assert!(is_there(&setup, 3));
        assert!(setup.registers.take_released().is_empty());
    }

    proptest! {
        #[test]
        fn only_wanted_slots_are_ever_released(
            steps in prop::collection::vec((0u8..3, 0u64..14, 1u8..31, prop::collection::vec(any::<u8>(), 1..9)), 0..64),
        ) {
            let setup = setup();
            let mut wanted = 0u32;
            for (what, offset, device, mut data) in steps {
                match what {
                    0 => setup.registers.write(offset, &data),
                    1 => setup.registers.read(offset, &mut data),
                    _ => {
                        setup.registers.want_back(slot(device));
                        wanted |= 1 << device;
                    }
                }
                for slot in setup.registers.take_released() {
                    prop_assert!(wanted & 1 << slot.device() != 0);
                    wanted &= !(1 << slot.device());
                }
            }
        }
    }
}
