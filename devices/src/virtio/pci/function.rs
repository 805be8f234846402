//! The PCI function that carries a virtio device: configuration space, capabilities, the BAR and its structures.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::common::{self, Selectors};
use super::interrupt::Interrupts;
use super::transport::Transport;
use super::{
    BAR, BAR_LENGTH, COMMON_LENGTH, COMMON_OFFSET, DEVICE_LENGTH, DEVICE_OFFSET, Doorbells,
    ISR_LENGTH, ISR_OFFSET, MAX_QUEUES, NOTIFY_LENGTH, NOTIFY_MULTIPLIER, NOTIFY_OFFSET,
    PENDING_LENGTH, PENDING_OFFSET, TABLE_LENGTH, TABLE_OFFSET,
};
use crate::bus::{Bus, BusDevice};
use crate::interrupt::MsiAllocator;
use crate::pci::PciFunction;
use crate::pci::bars::BarMap;
use crate::pci::config::{BAR0, COMMAND, ConfigSpace, Identity, touches};
use crate::pci::msix::{self, Msix};
use crate::virtio::{GuestRam, VirtioDevice};

/// Virtio's PCI vendor.
const VENDOR: u16 = 0x1af4;
/// Device id of device type 0 (§4.1.2).
const DEVICE_BASE: u16 = 0x1040;
/// Vendor-specific capability.
const CAPABILITY_VENDOR: u8 = 0x09;
/// Types of virtio capability (§4.1.4).
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;
/// Where in the PCI configuration access capability its fields are (§4.1.4.9).
const WINDOW_BAR: u16 = 4;
const WINDOW_OFFSET: u16 = 8;
const WINDOW_LENGTH: u16 = 12;
const WINDOW_DATA: u16 = 16;

/// A virtio device on PCI.
#[derive(Debug)]
pub struct VirtioPci {
    name: String,
    config: Mutex<ConfigSpace>,
    bars: BarMap,
    registers: Arc<Registers>,
    msix_capability: u16,
    window_capability: u16,
}

impl VirtioPci {
    /// Puts `device` behind a function whose BAR appears on `mmio`.
    ///
    /// # Errors
    /// When the host gives no events or interrupt lines, or the device has impossible queues.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        mmio: Arc<Bus>,
        interrupts: &dyn MsiAllocator,
        doorbells: Arc<dyn Doorbells>,
    ) -> io::Result<Arc<Self>> {
        Self::counting_in(Arc::default(), device, memory, mmio, interrupts, doorbells)
    }

    /// [`new`](Self::new), which counts in `broken` how often its driver breaks the device, so that it needs a reset.
    ///
    /// # Errors
    /// Likewise.
    pub fn counting_in(
        broken: Arc<AtomicU64>,
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        mmio: Arc<Bus>,
        interrupts: &dyn MsiAllocator,
        doorbells: Arc<dyn Doorbells>,
    ) -> io::Result<Arc<Self>> {
        let queues = device.queue_max_sizes().len();
        if queues > MAX_QUEUES {
            return Err(io::Error::other(format!("{queues} queues are too many")));
        }
        let name = format!("{} ({})", device.id(), type_name(device.device_type()));
        let vectors = u16::try_from(queues + 1).unwrap_or(msix::MAX_VECTORS);
        let msix = Arc::new(Msix::new(interrupts, vectors)?);
        let mut config = ConfigSpace::new(&identity(device.device_type()));
        config.add_memory_bar(BAR, BAR_LENGTH, true);
        let window_capability = add_capabilities(&mut config);
        let msix_capability = config.add_capability(
            msix::CAPABILITY_ID,
            &msix.capability(BAR, TABLE_OFFSET, PENDING_OFFSET),
        );
        config.allow(usize::from(msix_capability) + 2, &Msix::control_mask());
        let registers = Arc::new(Registers::new(name.clone(), device, memory, msix, broken)?);
        let bars = BarMap::new(mmio);
        bars.add(
            BAR,
            BAR_LENGTH,
            Arc::clone(&registers) as Arc<dyn BusDevice>,
            registers.doorbell_mover(doorbells),
        );
        Ok(Arc::new(Self {
            name,
            config: Mutex::new(config),
            bars,
            registers,
            msix_capability,
            window_capability,
        }))
    }

    /// Stops every queue and takes the function off the bus: the machine is going away, or the device is.
    pub fn shut_down(&self) {
        self.bars.unmap_all();
        self.registers.stop();
    }

    /// After [`shut_down`](Self::shut_down): whether nothing of the device's backend can touch guest RAM any more.
    pub fn is_quiet(&self) -> bool {
        self.registers.is_quiet()
    }

    /// Sets the BAR and switches memory decoding on, as firmware would.
    pub fn place(&self, address: u64) {
        self.write_config(BAR0, &address.to_le_bytes());
        let command = self.config.lock().read_u16(COMMAND);
        self.write_config(
            COMMAND,
            &(command | crate::pci::config::COMMAND_MEMORY).to_le_bytes(),
        );
    }

    /// What the driver reads or writes through the PCI configuration access capability: offset and width, if it is sane.
    fn window(&self, config: &ConfigSpace) -> Option<(u64, usize)> {
        let at = self.window_capability;
        let bar = config.read_u16(at + WINDOW_BAR) & 0xff;
        let offset = u64::from(config.read_u32(at + WINDOW_OFFSET));
        let length = config.read_u32(at + WINDOW_LENGTH);
        let fits =
            offset + u64::from(length) <= BAR_LENGTH && offset % u64::from(length.max(1)) == 0;
        (bar == u16::from(BAR) && matches!(length, 1 | 2 | 4) && fits)
            .then_some((offset, length as usize))
    }
}

impl PciFunction for VirtioPci {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let mut config = self.config.lock();
        let field = self.window_capability + WINDOW_DATA;
        if touches(offset, data.len(), field, 4) {
            if let Some((target, width)) = self.window(&config) {
                let mut value = [0; 4];
                self.registers.read(target, &mut value[..width]);
                config.set(usize::from(field), &value);
            }
        }
        config.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut config = self.config.lock();
        config.write(offset, data);
        if touches(offset, data.len(), COMMAND, 2) || touches(offset, data.len(), BAR0, 8) {
            self.bars.update(&config);
        }
        if touches(offset, data.len(), self.msix_capability + 2, 2) {
            let control = config.read_u16(self.msix_capability + 2);
            self.registers.msix.set_control(control);
        }
        let field = self.window_capability + WINDOW_DATA;
        if touches(offset, data.len(), field, 4) {
            if let Some((target, width)) = self.window(&config) {
                let value = config.read_u32(field).to_le_bytes();
                self.registers.write(target, &value[..width]);
            }
        }
    }
}

/// What lies behind the BAR.
#[derive(Debug)]
struct Registers {
    name: String,
    msix: Arc<Msix>,
    interrupts: Arc<Interrupts>,
    kicks: Vec<Arc<EventFd>>,
    state: Mutex<(Selectors, Transport)>,
}

impl Registers {
    fn new(
        name: String,
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        msix: Arc<Msix>,
        broken: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        let queues = device.queue_max_sizes().len();
        let interrupts = Interrupts::new(name.clone(), Arc::clone(&msix), queues, broken);
        let interrupts = Arc::new(interrupts);
        let kicks = (0..queues)
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new))
            .collect::<io::Result<Vec<_>>>()?;
        let transport = Transport::new(device, memory, Arc::clone(&interrupts), kicks.clone())
            .map_err(io::Error::other)?;
        Ok(Self {
            name,
            msix,
            interrupts,
            kicks,
            state: Mutex::new((Selectors::default(), transport)),
        })
    }

    /// Resets the device, so that nothing of the guest's is left in it.
    fn stop(&self) {
        self.state.lock().1.reset();
    }

    fn is_quiet(&self) -> bool {
        self.state.lock().1.is_quiet()
    }

    /// Connects the doorbells wherever the BAR goes.
    fn doorbell_mover(&self, doorbells: Arc<dyn Doorbells>) -> crate::pci::bars::OnMove {
        let kicks = self.kicks.clone();
        let name = self.name.clone();
        // Where each connected doorbell is now.
        let connected: Mutex<Vec<(u64, Arc<EventFd>)>> = Mutex::new(Vec::new());
        Box::new(move |address| {
            let mut connected = connected.lock();
            for (at, kick) in connected.drain(..) {
                doorbells.disconnect(at, &kick);
            }
            let Some(address) = address else { return };
            for (index, kick) in kicks.iter().enumerate() {
                let at = address + NOTIFY_OFFSET + index as u64 * u64::from(NOTIFY_MULTIPLIER);
                match doorbells.connect(at, kick) {
                    Ok(()) => connected.push((at, Arc::clone(kick))),
                    Err(error) => {
                        tracing::debug!(device = name, "doorbell stays in user space: {error}");
                    }
                }
            }
        })
    }
}

impl BusDevice for Registers {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match structure(offset) {
            Structure::Common(at) => {
                let state = &mut *self.state.lock();
                common::read(&state.0, &mut state.1, &self.interrupts, at, data);
            }
            Structure::Isr => {
                data.fill(0);
                if let Some(first) = data.first_mut() {
                    *first = self.interrupts.take_isr();
                }
            }
            Structure::Device(at) => self.state.lock().1.device().read_config(at, data),
            Structure::Table(at) => self.msix.read_table(at, data),
            Structure::Pending(at) => self.msix.read_pending(at, data),
            Structure::Doorbell(_) | Structure::Nothing => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match structure(offset) {
            Structure::Common(at) => {
                let state = &mut *self.state.lock();
                common::write(&mut state.0, &mut state.1, &self.interrupts, at, data);
            }
            Structure::Device(at) => self.state.lock().1.device().write_config(at, data),
            Structure::Table(at) => self.msix.write_table(at, data),
            Structure::Doorbell(queue) => {
                if let Some(kick) = self.kicks.get(queue) {
                    // A full counter means that the queue is kicked already.
                    let _ = kick.write(1);
                }
            }
            Structure::Isr | Structure::Pending(_) | Structure::Nothing => {}
        }
    }
}

enum Structure {
    Common(u64),
    Isr,
    Device(u64),
    Doorbell(usize),
    Table(u64),
    Pending(u64),
    Nothing,
}

fn structure(offset: u64) -> Structure {
    let within = |start: u64, length: u64| (start..start + length).contains(&offset);
    let (table, pending) = (u64::from(TABLE_OFFSET), u64::from(PENDING_OFFSET));
    if within(COMMON_OFFSET, COMMON_LENGTH) {
        Structure::Common(offset - COMMON_OFFSET)
    } else if within(ISR_OFFSET, ISR_LENGTH) {
        Structure::Isr
    } else if within(DEVICE_OFFSET, DEVICE_LENGTH) {
        Structure::Device(offset - DEVICE_OFFSET)
    } else if within(NOTIFY_OFFSET, NOTIFY_LENGTH) {
        let queue = (offset - NOTIFY_OFFSET) / u64::from(NOTIFY_MULTIPLIER);
        Structure::Doorbell(usize::try_from(queue).unwrap_or(usize::MAX))
    } else if within(table, TABLE_LENGTH) {
        Structure::Table(offset - table)
    } else if within(pending, PENDING_LENGTH) {
        Structure::Pending(offset - pending)
    } else {
        Structure::Nothing
    }
}

/// Class codes as other VMMs use them, so that guests name the devices rightly.
fn identity(device_type: u16) -> Identity {
    let class = match device_type {
        1 => 0x02_00_00,
        2 => 0x01_00_00,
        3 => 0x07_80_00,
        8 => 0x01_00_00,
        _ => 0x00_ff_00,
    };
    Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + device_type,
        revision: 1,
        class,
        subsystem_vendor: VENDOR,
        // At least 0x40, or drivers take the device for a transitional one (§4.1.2.1).
        subsystem: 0x1100,
        multi_function: false,
    }
}

fn type_name(device_type: u16) -> &'static str {
    match device_type {
        1 => "virtio-net",
        2 => "virtio-blk",
        3 => "virtio-console",
        4 => "virtio-rng",
        5 => "virtio-balloon",
        8 => "virtio-scsi",
        24 => "virtio-mem",
        _ => "virtio",
    }
}

/// Adds the virtio capabilities; returns where the PCI configuration access capability is.
fn add_capabilities(config: &mut ConfigSpace) -> u16 {
    let body = |kind: u8, offset: u64, length: u64, extra: &[u8]| {
        let length_byte = u8::try_from(16 + extra.len()).unwrap_or(16);
        let mut body = vec![length_byte, kind, BAR, 0, 0, 0];
        body.extend_from_slice(&u32::try_from(offset).unwrap_or(0).to_le_bytes());
        body.extend_from_slice(&u32::try_from(length).unwrap_or(0).to_le_bytes());
        body.extend_from_slice(extra);
        body
    };
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    for (kind, offset, length, extra) in [
        (CFG_COMMON, COMMON_OFFSET, COMMON_LENGTH, &[][..]),
        (CFG_NOTIFY, NOTIFY_OFFSET, NOTIFY_LENGTH, &multiplier[..]),
        (CFG_ISR, ISR_OFFSET, ISR_LENGTH, &[]),
        (CFG_DEVICE, DEVICE_OFFSET, DEVICE_LENGTH, &[]),
    ] {
        config.add_capability(CAPABILITY_VENDOR, &body(kind, offset, length, extra));
    }
    let window = config.add_capability(CAPABILITY_VENDOR, &body(CFG_PCI, 0, 0, &[0; 4]));
    let at = usize::from(window);
    config.allow(at + usize::from(WINDOW_BAR), &[0xff]);
    config.allow(at + usize::from(WINDOW_OFFSET), &[0xff; 12]);
    window
}
