//! The platform without the virtio devices: buses, PCI root with host and LPC bridge, and the legacy devices.
//!
//! Built anew at every reset, on the thread that builds the machine.

use std::io;
use std::sync::Arc;

use paddock_devices::bus::{Bus, BusDevice, BusError};
use paddock_devices::console::ConsoleSink;
use paddock_devices::cpu_hotplug::{CPU_HOT_PLUG_PORTS, CpuEvents, CpuHotPlug};
use paddock_devices::legacy::PowerEvents;
use paddock_devices::legacy::acpi_pm::AcpiPm;
use paddock_devices::legacy::cmos::Cmos;
use paddock_devices::legacy::debug::PostCode;
use paddock_devices::legacy::reset::{ResetControl, SystemControlA};
use paddock_devices::legacy::serial::Serial;
use paddock_devices::pci::DeviceFunction;
use paddock_devices::pci::host_bridge::HostBridge;
use paddock_devices::pci::hotplug::{HOT_PLUG_PORTS, HotPlug, SlotEvents};
use paddock_devices::pci::lpc::LpcBridge;
use paddock_devices::pci::root::{ConfigPorts, Ecam, PciRoot};

use crate::kvm::Interrupts;
use crate::layout;
use crate::vcpu::Buses;

/// Ports of a device that has only a few.
const CMOS_PORTS: u64 = 2;
const SERIAL_PORTS: u64 = 8;
const SYSTEM_CONTROL_A: u64 = 0x92;
const POST_CODE: u64 = 0x80;
/// The LPC bridge's place.
const LPC_SLOT: u8 = 0x1f;

/// What can go wrong while the platform is put together.
#[derive(Debug, thiserror::Error)]
pub enum ChipsetError {
    /// The host gave no event.
    #[error("serial port")]
    Serial(#[source] io::Error),
    /// Two devices in one place: a mistake in the address map.
    #[error("address map")]
    Bus(#[from] BusError),
    /// Two functions in one PCI slot.
    #[error("PCI slot {0} is taken")]
    Slot(DeviceFunction),
}

/// What the platform is made with.
#[derive(Debug)]
pub struct ChipsetInputs<'a> {
    /// The VM's interrupt lines.
    pub interrupts: &'a Arc<Interrupts>,
    /// Where power-off and reset go.
    pub power: Arc<dyn PowerEvents>,
    /// Where it is told that the guest let go of a PCI slot.
    pub slots: Arc<dyn SlotEvents>,
    /// Where it is told that the guest let go of a CPU.
    pub cpus: Arc<dyn CpuEvents>,
    /// How many CPUs are there at first, and at most.
    pub cpu_count: (usize, usize),
    /// Where the serial port's output goes.
    pub serial_sink: Arc<dyn ConsoleSink>,
    /// Bytes of RAM in all.
    pub ram_size: u64,
    /// Guest time minus host time, in seconds, as the guest left it before the reset.
    pub clock_offset: i64,
    /// Whether firmware runs first: ECAM and the power-management ports are then nowhere until it places them.
    pub firmware: bool,
}

/// The platform.
#[derive(Debug)]
pub struct Chipset {
    /// Where vCPU exits end.
    pub buses: Buses,
    /// The PCI root bus.
    pub pci: Arc<PciRoot>,
    /// Its hot-plug registers.
    pub hot_plug: Arc<HotPlug>,
    /// The CPUs' hot-plug registers.
    pub cpu_hot_plug: Arc<CpuHotPlug>,
    /// The serial port, for its input.
    pub serial: Arc<Serial>,
    /// ACPI power management, for the power button.
    pub pm: Arc<AcpiPm>,
    /// The clock, for its offset.
    pub cmos: Arc<Cmos>,
    /// Knows where ECAM is.
    pub host_bridge: Arc<HostBridge>,
    /// Knows where the power-management ports are.
    pub lpc: Arc<LpcBridge>,
}

impl Chipset {
    /// Builds it, in its power-on state: for firmware, or as firmware leaves it for a kernel.
    ///
    /// # Errors
    /// When the host lacks something.
    pub fn build(inputs: ChipsetInputs<'_>) -> Result<Self, ChipsetError> {
        let ports = Arc::new(Bus::new());
        let mmio = Arc::new(Bus::new());
        let low = layout::low_ram_end(inputs.ram_size);
        let cmos = Arc::new(Cmos::new(low, inputs.ram_size - low, inputs.clock_offset));
        let serial = Serial::new(
            "com1",
            inputs.interrupts.wire(layout::COM1_GSI),
            inputs.serial_sink,
        )
        .map_err(ChipsetError::Serial)?;
        let serial = Arc::new(serial);
        let pm = Arc::new(AcpiPm::new(
            inputs.interrupts.wire(layout::SCI_GSI),
            Arc::clone(&inputs.power),
        ));
        let control_a = Arc::new(SystemControlA::new(Arc::clone(&inputs.power)));
        let legacy: [(u64, u64, Arc<dyn BusDevice>); 4] = [
            (layout::RTC_PORT.into(), CMOS_PORTS, Arc::clone(&cmos) as _),
            (
                layout::COM1_PORT.into(),
                SERIAL_PORTS,
                Arc::clone(&serial) as _,
            ),
            (SYSTEM_CONTROL_A, 1, control_a),
            (POST_CODE, 1, Arc::new(PostCode::default())),
        ];
        for (base, length, device) in legacy {
            ports.insert(base, length, device)?;
        }
        let reset = Arc::new(ResetControl::new(inputs.power));
        let Pci {
            root: pci,
            host_bridge,
            lpc,
        } = build_pci(&ports, &mmio, reset, Arc::clone(&pm) as _, inputs.firmware)?;
        let hot_plug = Arc::new(HotPlug::new(&pci, Arc::clone(&pm), inputs.slots));
        ports.insert(
            layout::HOT_PLUG_PORTS.start.into(),
            HOT_PLUG_PORTS,
            Arc::clone(&hot_plug) as _,
        )?;
        let (present, max) = inputs.cpu_count;
        let cpu_hot_plug = CpuHotPlug::new(present, max, Arc::clone(&pm), inputs.cpus);
        let cpu_hot_plug = Arc::new(cpu_hot_plug);
        ports.insert(
            layout::CPU_HOT_PLUG_PORTS.start.into(),
            CPU_HOT_PLUG_PORTS,
            Arc::clone(&cpu_hot_plug) as _,
        )?;
        Ok(Self {
            buses: Buses { ports, mmio },
            pci,
            hot_plug,
            cpu_hot_plug,
            serial,
            pm,
            cmos,
            host_bridge,
            lpc,
        })
    }
}

/// The root bus and the two chipset functions on it.
struct Pci {
    root: Arc<PciRoot>,
    host_bridge: Arc<HostBridge>,
    lpc: Arc<LpcBridge>,
}

/// The root bus with its ways in and the two chipset functions.
fn build_pci(
    ports: &Arc<Bus>,
    mmio: &Arc<Bus>,
    reset: Arc<dyn BusDevice>,
    pm: Arc<dyn BusDevice>,
    firmware: bool,
) -> Result<Pci, ChipsetError> {
    let root = Arc::new(PciRoot::default());
    let config = layout::PCI_CONFIG_PORTS;
    ports.insert(
        config.start.into(),
        (config.end - config.start).into(),
        Arc::new(ConfigPorts::new(&root, reset)),
    )?;
    let ecam = Arc::new(Ecam::new(&root));
    let (ecam_base, pm_base) = if firmware {
        (None, None)
    } else {
        (Some(layout::ECAM_BASE), Some(layout::PM_BASE))
    };
    let host_bridge = Arc::new(HostBridge::new(Arc::clone(mmio), ecam, ecam_base));
    let lpc = Arc::new(LpcBridge::new(Arc::clone(ports), pm, pm_base));
    plug(&root, 0, Arc::clone(&host_bridge) as _)?;
    plug(&root, LPC_SLOT, Arc::clone(&lpc) as _)?;
    Ok(Pci {
        root,
        host_bridge,
        lpc,
    })
}

fn plug(
    root: &PciRoot,
    device: u8,
    function: Arc<dyn paddock_devices::pci::PciFunction>,
) -> Result<(), ChipsetError> {
    let Some(at) = DeviceFunction::new(device, 0) else {
        return Ok(());
    };
    root.add(at, function).map_err(|_| ChipsetError::Slot(at))
}
