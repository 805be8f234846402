//! Interrupts through KVM: GSI routes, irqfds for messages, and the wires of the legacy devices.
//!
//! The kernel's routing table is replaced as a whole, so one owner keeps it. Workers never come here: they write the
//! event of their line, and KVM does the rest.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi,
};
use kvm_ioctls::VmFd;
use paddock_devices::interrupt::{IrqLine, MsiAllocator, MsiLine, MsiMessage};
use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::KvmError;
use crate::layout::{IOAPIC_PINS, MSI_GSI, PIT_GSI, PIT_PIN};

/// KVM's table has 4096 entries.
const MAX_GSI: u32 = 4096;
/// Where interrupt messages are written to, with the destination in bits 12 to 19.
const MSI_ADDRESS: u32 = 0xfee0_0000;
/// All local APICs, as a destination.
const EVERY_APIC: u32 = 0xff;
/// The delivery mode of an NMI, bits 8 to 10 of a message.
const DELIVER_NMI: u32 = 4;
/// Pins of each of the two PICs.
const PIC_PINS: u32 = 8;

/// The interrupt routes of one VM.
pub struct Interrupts {
    vm: Arc<VmFd>,
    /// GSI → message; `None` is allocated but not set.
    messages: Mutex<BTreeMap<u32, Option<MsiMessage>>>,
}

impl std::fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupts")
            .field("messages", &self.messages.lock().len())
            .finish_non_exhaustive()
    }
}

impl Interrupts {
    /// Routes the pins of PICs and I/O APIC as on a PC.
    pub(super) fn new(vm: Arc<VmFd>) -> Result<Arc<Self>, KvmError> {
        let this = Arc::new(Self {
            vm,
            messages: Mutex::new(BTreeMap::new()),
        });
        let messages = this.messages.lock();
        this.apply(&messages).map_err(|source| KvmError::Call {
            action: "routing interrupts",
            source,
        })?;
        drop(messages);
        Ok(this)
    }

    /// The wire to `gsi` (below 24).
    #[must_use]
    pub fn wire(self: &Arc<Self>, gsi: u32) -> Arc<WiredLine> {
        Arc::new(WiredLine {
            owner: Arc::clone(self),
            gsi,
        })
    }

    /// Gives every vCPU a non-maskable interrupt, as a message to all local APICs. (KVM_NMI would have to wait for the vCPUs' own threads.)
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn inject_nmi(&self) -> io::Result<()> {
        let message = kvm_msi {
            address_lo: MSI_ADDRESS | EVERY_APIC << 12,
            data: DELIVER_NMI << 8,
            ..Default::default()
        };
        self.vm.signal_msi(message).map_err(errno)?;
        Ok(())
    }

    fn apply(&self, messages: &BTreeMap<u32, Option<MsiMessage>>) -> io::Result<()> {
        let mut entries = pin_routes();
        entries.extend(
            messages
                .iter()
                .filter_map(|(gsi, message)| Some(message_route(*gsi, (*message)?))),
        );
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::other("too many interrupt routes"))?;
        self.vm.set_gsi_routing(&table).map_err(errno)
    }

    fn set_message(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut messages = self.messages.lock();
        let before = messages.insert(gsi, Some(message));
        if before == Some(Some(message)) {
            return Ok(());
        }
        self.apply(&messages).inspect_err(|_| {
            messages.insert(gsi, before.flatten());
        })
    }
}

#[derive(Debug)]
struct KvmMsiLine {
    owner: Arc<Interrupts>,
    gsi: u32,
    event: EventFd,
    connected: Mutex<bool>,
}

/// Hands out message lines of a VM.
#[derive(Debug, Clone)]
pub struct MessageLines(pub Arc<Interrupts>);

impl MsiAllocator for MessageLines {
    fn allocate(&self) -> io::Result<Box<dyn MsiLine>> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let mut messages = self.0.messages.lock();
        let gsi = (MSI_GSI..MAX_GSI)
            .find(|gsi| !messages.contains_key(gsi))
            .ok_or_else(|| io::Error::other("no interrupt routes left in KVM's table"))?;
        messages.insert(gsi, None);
        Ok(Box::new(KvmMsiLine {
            owner: Arc::clone(&self.0),
            gsi,
            event,
            connected: Mutex::new(false),
        }))
    }
}

impl MsiLine for KvmMsiLine {
    fn event(&self) -> &EventFd {
        &self.event
    }

    fn set(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut connected = self.connected.lock();
        if let Some(message) = message {
            self.owner.set_message(self.gsi, message)?;
            if !*connected {
                // An event that is already set is delivered by this call: a pending interrupt is not lost.
                self.owner
                    .vm
                    .register_irqfd(&self.event, self.gsi)
                    .map_err(errno)?;
                *connected = true;
            }
        } else if *connected {
            self.owner
                .vm
                .unregister_irqfd(&self.event, self.gsi)
                .map_err(errno)?;
            *connected = false;
        }
        Ok(())
    }
}

impl Drop for KvmMsiLine {
    fn drop(&mut self) {
        if let Err(error) = self.set(None) {
            tracing::debug!(gsi = self.gsi, "irqfd not removed: {error}");
        }
        // The kernel's table may keep the stale route until it is next replaced: nothing signals it.
        self.owner.messages.lock().remove(&self.gsi);
    }
}

/// A wire to a pin of the interrupt controllers.
#[derive(Debug)]
pub struct WiredLine {
    owner: Arc<Interrupts>,
    gsi: u32,
}

impl IrqLine for WiredLine {
    fn set_level(&self, high: bool) -> io::Result<()> {
        self.owner.vm.set_irq_line(self.gsi, high).map_err(errno)
    }
}

fn errno(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// ISA interrupts go to both PIC and I/O APIC; the PIT's arrives at pin 2 of the latter, as the MADT says.
fn pin_routes() -> Vec<kvm_irq_routing_entry> {
    let mut routes = Vec::new();
    for gsi in 0..2 * PIC_PINS {
        let (chip, pin) = if gsi < PIC_PINS {
            (KVM_IRQCHIP_PIC_MASTER, gsi)
        } else {
            (KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_PINS)
        };
        routes.push(pin_route(gsi, chip, pin));
    }
    for gsi in 0..IOAPIC_PINS {
        let pin = if gsi == PIT_GSI { PIT_PIN } else { gsi };
        // The pin that the PIT takes has no wire of its own.
        if gsi != PIT_PIN {
            routes.push(pin_route(gsi, KVM_IRQCHIP_IOAPIC, pin));
        }
    }
    routes
}

fn pin_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

fn message_route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
    entry.u.msi.address_lo = u32::from_le_bytes([a, b, c, d]);
    entry.u.msi.address_hi = u32::from_le_bytes([e, f, g, h]);
    entry.u.msi.data = message.data;
    entry
}

#[cfg(test)]
mod tests {
    use super::pin_routes;

    #[test]
    fn every_wire_has_a_route_and_the_pit_moves_to_pin_two() {
        let routes = pin_routes();
        let gsis: std::collections::BTreeSet<u32> = routes.iter().map(|r| r.gsi).collect();
        assert_eq!(gsis, (0..24).collect());
        assert_eq!(routes.len(), 16 + 23);
    }
}
