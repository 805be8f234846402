//! What a case works with: the device's driver, memory, and the ordinary request by which a device shows that it works.
//!
//! Each device has a main queue on which chains are broken: that of requests (blk, rng, mem, scsi), of frames to send (net), of control
//! messages (console, with the queue of the answers beside it), of pages that are given away (balloon).

use super::Kind;
use super::driver::{self, Driver, Piece, Ring, Used, poll};
use super::machine::{Machine, Ram};
use std::time::{Duration, Instant};

/// How long an ordinary request may take.
const SERVED: Duration = Duration::from_secs(15);
/// Descriptors of the rings.
const RING_SIZE: u16 = 64;
/// Bytes for the buffers of the ordinary request.
const BUFFERS: u64 = 0x4000;

const COMMAND: u16 = 0x04;
/// Memory decoding and bus mastering.
const COMMAND_ON: u32 = 0b110;
const COMMAND_MASK: u32 = 0b111;
const BAR0: u16 = 0x10;

/// An experimental ethertype: a frame nobody listens to, to everybody.
const FRAME: [u8; 14] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x00, 0x00, 0x01, 0x88, 0xb5,
];
/// Bytes of virtio-net's header.
pub(super) const NET_HEADER: u32 = 12;
/// Bytes of the frame of an ordinary request.
const FRAME_LENGTH: u32 = 60;
/// VIRTIO_NET_F_CTRL_VQ, _MQ left alone: the control queue is the third.
const NET_FEATURES: u64 = 1 << 17 | 1 << 23;
/// VIRTIO_CONSOLE_F_MULTIPORT.
const CONSOLE_FEATURES: u64 = 1 << 1;
/// VIRTIO_BLK_F_RO, _FLUSH, _DISCARD, _WRITE_ZEROES.
const BLK_FEATURES: u64 = 1 << 5 | 1 << 9 | 1 << 13 | 1 << 14;

/// VIRTIO_BALLOON_F_STATS_VQ, _PAGE_POISON, _PAGE_REPORTING.
const BALLOON_FEATURES: u64 = 1 << 1 | 1 << 4 | 1 << 5;
/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE.
const MEM_FEATURES: u64 = 1 << 1;

/// Bytes of a balloon's page.
pub(super) const PAGE: u64 = 4096;

/// A memory device's question for the state of one block: the address comes behind the first eight bytes.
const STATE: [u8; 8] = [3, 0, 0, 0, 0, 0, 0, 0];
/// Where struct virtio_mem_config has the region's address.
pub(super) const MEM_ADDRESS: u64 = 16;
/// Bytes of a memory device's answer.
pub(super) const MEM_ANSWER: u32 = 10;

/// Bytes of a command for a SCSI adapter, and of its answer before the data, with the sizes that it begins with.
pub(super) const SCSI_HEADER: u32 = 19 + 32;
pub(super) const SCSI_RESPONSE: u32 = 12 + 96;
/// Asks for 36 bytes of INQUIRY data.
const INQUIRY: [u8; 5] = [0x12, 0, 0, 0, 36];
/// The address of its first unit.
const FIRST_UNIT: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];

/// The console's queue of messages from the device.
const CONSOLE_CONTROL_RECEIVE: u16 = 2;
/// DEVICE_READY for "no port".
const DEVICE_READY: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0];
const PORT_ADD: u16 = 1;

/// A device under attack.
pub struct Rig<'a> {
    /// What the driver stands on.
    pub machine: &'a dyn Machine,
    /// The device's kind.
    pub kind: Kind,
    /// The raw driver.
    pub driver: Driver<'a>,
    /// The main queue.
    pub main: Ring,
    /// The queue of answers, for a console.
    pub aux: Option<Ring>,
    /// The features agreed upon.
    pub features: u64,
    /// Where BAR 0 belongs.
    pub home: u64,
    buffers: u64,
    next_free: u64,
}

impl<'a> Rig<'a> {
    /// Takes the device, whatever state it is in.
    ///
    /// # Errors
    /// When it is no modern virtio device, or there is no memory.
    pub fn new(machine: &'a dyn Machine, kind: Kind) -> Result<Self, String> {
        let driver = Driver::new(machine.function())?;
        let ram = machine.ram();
        let rings = Ring::footprint(RING_SIZE);
        let main = Ring::new(ram, main_queue(kind), RING_SIZE, ram.base());
        let aux = (kind == Kind::Console)
            .then(|| Ring::new(ram, CONSOLE_CONTROL_RECEIVE, RING_SIZE, ram.base() + rings));
        let home = u64::from(driver.function.read_config(BAR0 + 4, 4)) << 32
            | u64::from(driver.function.read_config(BAR0, 4) & !0xf);
        let buffers = ram.base() + 2 * rings;
        Ok(Self {
            machine,
            kind,
            driver,
            main,
            aux,
            features: 0,
            home,
            buffers,
            next_free: buffers + BUFFERS,
        })
    }

    /// Guest RAM for rings and buffers.
    #[must_use]
    pub fn ram(&self) -> &'a dyn Ram {
        self.machine.ram()
    }

    /// Memory for the rest of the case, zeroed; its physical address is a multiple of `align`.
    ///
    /// # Errors
    /// When there is not so much.
    pub fn allocate(&mut self, bytes: u64, align: u64) -> Result<u64, String> {
        let ram = self.ram();
        let address = self.next_free.next_multiple_of(align);
        let end = address + bytes;
        if end > ram.base() + ram.length() {
            return Err(format!("no memory left for {bytes} bytes"));
        }
        self.next_free = end;
        let zeros = vec![0; usize::try_from(bytes).unwrap_or(0)];
        ram.write(address, &zeros);
        Ok(address)
    }

    /// Memory with these bytes in it.
    ///
    /// # Errors
    /// When there is no more.
    pub fn place(&mut self, bytes: &[u8]) -> Result<u64, String> {
        let address = self.allocate(bytes.len() as u64, 16)?;
        self.ram().write(address, bytes);
        Ok(address)
    }

    /// All that was allocated may be had again.
    pub fn free(&mut self) {
        self.next_free = self.buffers + BUFFERS;
    }

    /// Resets the device.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn reset(&mut self) -> Result<(), String> {
        self.driver.reset()
    }

    /// Resets the device, agrees on features and empties the rings, which the device is not told of yet.
    ///
    /// # Errors
    /// When a step fails.
    pub fn prepare(&mut self) -> Result<(), String> {
        self.reset()?;
        self.features = self.driver.negotiate(wanted(self.kind))?;
        let ram = self.ram();
        for ring in self.aux.iter_mut().chain([&mut self.main]) {
            *ring = Ring::new(ram, ring.queue, ring.size, ring.descriptors);
        }
        Ok(())
    }

    /// Enables the queues and says that the driver is ready.
    pub fn start(&mut self) {
        self.driver.enable(&self.main);
        if let Some(aux) = &self.aux {
            self.driver.enable(aux);
        }
        self.ready();
    }

    /// Sets DRIVER_OK.
    pub fn ready(&self) {
        self.driver.set_status(
            driver::ACKNOWLEDGE | driver::DRIVER | driver::FEATURES_OK | driver::DRIVER_OK,
        );
    }

    /// From whatever state to a device that runs.
    ///
    /// # Errors
    /// When a step fails.
    pub fn bring_up(&mut self) -> Result<(), String> {
        self.prepare()?;
        self.start();
        let status = self.driver.status();
        if status & driver::NEEDS_RESET != 0 || status & driver::DRIVER_OK == 0 {
            return Err(format!("set up rightly, its status is {status:#x}"));
        }
        Ok(())
    }

    /// Puts the function's configuration right, resets the device, sets it up and has it serve.
    ///
    /// # Errors
    /// When that does not work: the attack has done harm.
    pub fn recover(&mut self) -> Result<(), String> {
        self.set_msix(0);
        self.set_decoding(true);
        self.move_bar(self.home);
        self.bring_up()?;
        self.serve()?;
        self.reset()
    }

    /// Points BAR 0 somewhere.
    pub fn move_bar(&self, address: u64) {
        move_bar(self.driver.function, address);
    }

    /// Switches memory decoding, with bus mastering, on or off.
    pub fn set_decoding(&self, on: bool) {
        let function = self.driver.function;
        let command = function.read_config(COMMAND, 2) & !COMMAND_MASK;
        let bits = if on { COMMAND_ON } else { 0 };
        function.write_config(COMMAND, 2, command | bits);
    }

    /// Writes MSI-X's message control: bit 15 enables, bit 14 masks the function.
    pub fn set_msix(&self, control: u16) {
        self.driver
            .function
            .write_config(self.driver.layout.msix + 2, 2, control.into());
    }

    /// The pieces of an ordinary request, with what they hold.
    #[must_use]
    pub fn request(&self) -> Vec<Piece> {
        let (ram, at) = (self.ram(), self.buffers);
        ram.write(at, &[0; 64]);
        match self.kind {
            Kind::Blk => {
                // A read (0) of sector 0; the status byte is none the device writes.
                ram.write(at + 0x20, &[0xff]);
                vec![
                    (at, 16, false),
                    (at + 0x1000, 512, true),
                    (at + 0x20, 1, true),
                ]
            }
            Kind::Net => {
                ram.write(at + u64::from(NET_HEADER), &FRAME);
                vec![
                    (at, NET_HEADER, false),
                    (at + u64::from(NET_HEADER), FRAME_LENGTH, false),
                ]
            }
            Kind::Console => {
                ram.write(at, &DEVICE_READY);
                vec![(at, 8, false)]
            }
            Kind::Rng => vec![(at, 64, true)],
            Kind::Balloon => {
                let page = self.page();
                ram.write(page, &[0x5a; 64]);
                ram.write(at, &page_number(page).to_le_bytes());
                vec![(at, 4, false)]
            }
            Kind::Mem => {
                let start = self.device_config(MEM_ADDRESS);
                ram.write(at, &STATE);
                ram.write(at + 8, &start.to_le_bytes());
                ram.write(at + 16, &1_u16.to_le_bytes());
                ram.write(at + 0x20, &[0xff; 16]);
                vec![(at, 24, false), (at + 0x20, MEM_ANSWER, true)]
            }
            Kind::Scsi => {
                ram.write(at, &scsi_command(FIRST_UNIT, &INQUIRY));
                ram.write(at + 0x1000, &[0xff; SCSI_RESPONSE as usize + 36]);
                vec![
                    (at, SCSI_HEADER, false),
                    (at + 0x1000, SCSI_RESPONSE + 36, true),
                ]
            }
        }
    }

    /// A page of the buffers of an ordinary request.
    fn page(&self) -> u64 {
        (self.buffers + 0x1000).next_multiple_of(PAGE)
    }

    /// Eight bytes of the device's configuration.
    #[must_use]
    pub fn device_config(&self, offset: u64) -> u64 {
        let at = self.driver.layout.device.0 + offset;
        self.driver.function.read_bar(at, 8)
    }

    /// Makes an ordinary request available and notifies the device; the chain's head.
    pub fn submit(&mut self) -> u16 {
        let pieces = self.request();
        if let Some(aux) = &mut self.aux {
            aux.submit(self.machine.ram(), &[(self.buffers + 0x2000, 256, true)]);
            self.driver.kick(aux.queue);
        }
        let head = self.main.submit(self.machine.ram(), &pieces);
        self.driver.kick(self.main.queue);
        head
    }

    /// Has the device serve an ordinary request.
    ///
    /// # Errors
    /// When it does not, or its answer is wrong.
    pub fn serve(&mut self) -> Result<(), String> {
        let head = self.submit();
        self.answered(head)
    }

    /// Waits for the answer to an ordinary request.
    ///
    /// # Errors
    /// When it does not come, or is wrong.
    pub fn answered(&mut self, head: u16) -> Result<(), String> {
        let ram = self.machine.ram();
        let Some(used) = self.main.wait_used(ram, head, SERVED) else {
            return Err(format!(
                "an ordinary request is not served within {SERVED:?}; the status is {:#x}",
                self.driver.status()
            ));
        };
        let wrong = |what: &str| Err(format!("an ordinary request: {what}, {used:?}"));
        match self.kind {
            Kind::Blk if used.length != 513 || self.byte(self.buffers + 0x20) != 0 => {
                wrong("the read fails")
            }
            Kind::Rng if used.length != 64 || self.bytes(self.buffers, 64) == [0; 64] => {
                wrong("no entropy")
            }
            Kind::Console => self.port_added(),
            Kind::Balloon if used.length != 0 || self.bytes(self.page(), 64) != [0; 64] => {
                wrong("the page is not taken")
            }
            Kind::Mem if used.length != MEM_ANSWER || self.half(self.buffers + 0x20) != 0 => {
                wrong("the state is not told")
            }
            Kind::Scsi if used.length != SCSI_RESPONSE + 36 || !self.is_cdrom() => {
                wrong("the INQUIRY fails")
            }
            _ => Ok(()),
        }
    }

    /// Whether the answer to an INQUIRY is that of a CD-ROM drive.
    fn is_cdrom(&self) -> bool {
        let answer = self.buffers + 0x1000;
        self.half(answer + 10) == 0 && self.byte(answer + u64::from(SCSI_RESPONSE)) == 5
    }

    /// Reads the console's messages until it tells of a port, which is what it does when it is told that the driver is ready.
    fn port_added(&mut self) -> Result<(), String> {
        let (ram, answer) = (self.machine.ram(), self.buffers + 0x2000);
        let end = Instant::now() + SERVED;
        let Some(aux) = &mut self.aux else {
            return Ok(());
        };
        while Instant::now() < end {
            let Some(used) = poll(SERVED, || aux.take_used(ram)) else {
                break;
            };
            let mut message = [0; 8];
            ram.read(answer, &mut message);
            if used.length == 8 && u16::from_le_bytes([message[4], message[5]]) == PORT_ADD {
                return Ok(());
            }
            // Something of before: the next, please.
            aux.submit(ram, &[(answer, 256, true)]);
            self.driver.kick(aux.queue);
        }
        Err("the console says nothing of its ports".to_owned())
    }

    /// A byte of RAM.
    #[must_use]
    pub fn byte(&self, address: u64) -> u8 {
        let mut byte = [0];
        self.ram().read(address, &mut byte);
        byte[0]
    }

    /// Two bytes of RAM.
    #[must_use]
    pub fn half(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.ram().read(address, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn bytes(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.ram().read(address, &mut bytes);
        bytes
    }

    /// Makes a chain available on the main queue, notifies the device, and waits until it is used.
    ///
    /// # Errors
    /// When it is not.
    pub fn exchange(&mut self, pieces: &[Piece]) -> Result<Used, String> {
        let ram = self.machine.ram();
        let head = self.main.submit(ram, pieces);
        self.driver.kick(self.main.queue);
        self.main.wait_used(ram, head, SERVED).ok_or_else(|| {
            format!(
                "the chain is not used within {SERVED:?}; the status is {:#x}",
                self.driver.status()
            )
        })
    }
}

/// Points BAR 0 of a function somewhere, upper half first.
pub(super) fn move_bar(function: &dyn super::machine::Function, address: u64) {
    function.write_config(BAR0 + 4, 4, high(address));
    function.write_config(BAR0, 4, low(address));
}

/// The number that a balloon knows a page by.
pub(super) fn page_number(address: u64) -> u32 {
    u32::try_from(address / PAGE).unwrap_or(u32::MAX)
}

/// A command for a SCSI adapter.
pub(super) fn scsi_command(unit: [u8; 8], cdb: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; SCSI_HEADER as usize];
    bytes[..8].copy_from_slice(&unit);
    for (slot, byte) in bytes[19..].iter_mut().zip(cdb) {
        *slot = *byte;
    }
    bytes
}

/// The lower half.
pub(super) fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or_default()
}

/// The upper half.
pub(super) fn high(value: u64) -> u32 {
    u32::try_from(value >> 32).unwrap_or_default()
}

fn main_queue(kind: Kind) -> u16 {
    match kind {
        Kind::Blk | Kind::Rng | Kind::Balloon | Kind::Mem => 0,
        Kind::Net => 1,
        Kind::Scsi => 2,
        Kind::Console => 3,
    }
}

fn wanted(kind: Kind) -> u64 {
    driver::INDIRECT_DESC
        | match kind {
            Kind::Blk => BLK_FEATURES,
            Kind::Net => NET_FEATURES,
            Kind::Console => CONSOLE_FEATURES,
            Kind::Rng | Kind::Scsi => 0,
            Kind::Balloon => BALLOON_FEATURES,
            Kind::Mem => MEM_FEATURES,
        }
}
