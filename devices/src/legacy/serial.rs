//! A 16550 serial port: `vm_superio`'s register model between a bus, an interrupt line, a [`ConsoleSink`] and the host's input.
//!
//! Registers are served on vCPU threads, input comes from any. The guest can write and poll as fast as it exits: output goes
//! byte by byte to a sink that never blocks, and polling the line status costs an uncontended lock. Input that the guest does not
//! read waits in the FIFO (64 bytes) and a backlog; when both are full, [`ConsoleInput::enqueue`] takes no more.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::console::{ConsoleInput, ConsoleSink};
use crate::interrupt::IrqLine;
use crate::throttle::Throttle;

/// Number of ports.
pub const SERIAL_PORTS: u64 = 8;
/// Port of the first serial port; its interrupt is [`COM1_IRQ`].
pub const COM1_PORT: u64 = 0x3f8;
/// ISA interrupt of COM1.
pub const COM1_IRQ: u32 = 4;
/// Port of the second serial port; its interrupt is [`COM2_IRQ`].
pub const COM2_PORT: u64 = 0x2f8;
/// ISA interrupt of COM2.
pub const COM2_IRQ: u32 = 3;

/// Input that waits for space in the FIFO, at most: a generous paste.
const BACKLOG: usize = 4096;
/// Receive buffer, and its line status.
const DATA: u8 = 0;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const DATA_READY: u8 = 1 << 0;

/// A serial port.
#[derive(Debug)]
pub struct Serial {
    name: String,
    state: Mutex<State>,
    space: EventFd,
    log: Throttle,
}

#[derive(Debug)]
struct State {
    uart: Uart<Edge, NoEvents, Output>,
    backlog: VecDeque<u8>,
    /// Someone was told that there is no space.
    short: bool,
}

/// ISA interrupts are edges: up and down again.
#[derive(Debug)]
struct Edge(Arc<dyn IrqLine>);

impl Trigger for Edge {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.set_level(true)?;
        self.0.set_level(false)
    }
}

#[derive(Debug)]
struct Output(Arc<dyn ConsoleSink>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Serial {
    /// At power-on state. `name` is for logs, such as "com1".
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(
        name: impl Into<String>,
        irq: Arc<dyn IrqLine>,
        sink: Arc<dyn ConsoleSink>,
    ) -> io::Result<Self> {
        Ok(Self {
            name: name.into(),
            state: Mutex::new(State {
                uart: Uart::new(Edge(irq), Output(sink)),
                backlog: VecDeque::new(),
                short: false,
            }),
            space: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            log: Throttle::new(),
        })
    }

    /// Moves input from the backlog to the FIFO, once the guest has emptied that: one interrupt then serves 64 bytes.
    fn refill(&self, state: &mut State) {
        let State { uart, backlog, .. } = state;
        if backlog.is_empty() || uart.read(LINE_STATUS) & DATA_READY != 0 {
            return;
        }
        let room = uart.fifo_capacity().min(backlog.len());
        let batch: Vec<u8> = backlog.iter().take(room).copied().collect();
        // In loopback mode the port takes nothing from outside: the batch stays for later. A failed interrupt, on the other hand,
        // comes after the bytes went in, which is why the result cannot be asked.
        let before = uart.fifo_capacity();
        let result = uart.enqueue_raw_bytes(&batch);
        let taken = before.saturating_sub(uart.fifo_capacity());
        backlog.drain(..taken);
        self.check(result.map(drop));
        if state.short && state.backlog.len() <= BACKLOG / 2 {
            state.short = false;
            // Fails only when the counter is full, and then it is readable anyway.
            let _ = self.space.write(1);
        }
    }

    fn check(&self, result: Result<(), vm_superio::serial::Error<io::Error>>) {
        if let Err(error) = result {
            if let Some(held_back) = self.log.pass() {
                tracing::warn!(port = %self.name, held_back, %error, "serial port");
            }
        }
    }
}

/// The register at `offset` bytes, for the bytes of an access that are on the port.
fn register(offset: u64, byte: usize) -> Option<u8> {
    let register = u8::try_from(offset)
        .ok()?
        .checked_add(byte.try_into().ok()?)?;
    (u64::from(register) < SERIAL_PORTS).then_some(register)
}

impl BusDevice for Serial {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.state.lock();
        for (i, byte) in data.iter_mut().enumerate() {
            let Some(register) = register(offset, i) else {
                return;
            };
            *byte = state.uart.read(register);
            if register == DATA {
                self.refill(&mut state);
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state.lock();
        for (i, byte) in data.iter().enumerate() {
            let Some(register) = register(offset, i) else {
                return;
            };
            let result = state.uart.write(register, *byte);
            self.check(result);
            if register == MODEM_CONTROL {
                self.refill(&mut state);
            }
        }
    }
}

impl ConsoleInput for Serial {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut state = self.state.lock();
        let taken = bytes.len().min(BACKLOG - state.backlog.len());
        state.backlog.extend(bytes.iter().take(taken));
        state.short = taken < bytes.len();
        self.refill(&mut state);
        taken
    }

    fn space(&self) -> &EventFd {
        &self.space
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    const INTERRUPT_ENABLE: u64 = 1;

    /// A sink that keeps everything.
    #[derive(Debug, Default)]
    pub(crate) struct Collector(Mutex<Vec<u8>>);

    impl ConsoleSink for Collector {
        fn write(&self, bytes: &[u8]) {
            self.0.lock().extend_from_slice(bytes);
        }
    }

    impl Collector {
        pub(crate) fn take(&self) -> Vec<u8> {
            std::mem::take(&mut self.0.lock())
        }
    }

    #[derive(Debug, Default)]
    struct Pulses(AtomicUsize);

    impl IrqLine for Pulses {
        fn set_level(&self, high: bool) -> io::Result<()> {
            self.0.fetch_add(usize::from(high), Ordering::Relaxed);
            Ok(())
        }
    }

    fn port() -> (Serial, Arc<Pulses>, Arc<Collector>) {
        let (irq, sink) = (Arc::new(Pulses::default()), Arc::new(Collector::default()));
        let serial = Serial::new("com1", Arc::clone(&irq) as _, Arc::clone(&sink) as _).unwrap();
        (serial, irq, sink)
    }

    fn get(serial: &Serial, register: u64) -> u8 {
        let mut data = [0xff];
        serial.read(register, &mut data);
        data[0]
    }

    /// What a driver does: reads while there is data.
    fn drain(serial: &Serial) -> Vec<u8> {
        let mut out = Vec::new();
        while get(serial, 5) & DATA_READY != 0 {
            out.push(get(serial, 0));
        }
        out
    }

    #[test]
    fn output_reaches_the_sink() {
        let (serial, irq, sink) = port();
        assert_eq!(get(&serial, 5), 0x60, "always ready to send");
        for byte in b"hello" {
            serial.write(0, &[*byte]);
        }
        assert_eq!(sink.take(), b"hello");
        assert_eq!(irq.0.load(Ordering::Relaxed), 0);
        serial.write(INTERRUPT_ENABLE, &[2]);
        assert_eq!(irq.0.load(Ordering::Relaxed), 1, "transmitter empty");
    }

    #[test]
    fn wide_accesses_touch_one_register_a_byte() {
        let (serial, _, sink) = port();
        // Divisor latch: both bytes in one 16-bit write, as on ISA.
        serial.write(3, &[0x83]);
        serial.write(0, &[0x01, 0x02]);
        let mut data = [0; 2];
        serial.read(0, &mut data);
        assert_eq!(data, [1, 2]);
        serial.write(3, &[0x03]);
        let mut data = [0xff; 4];
        serial.write(6, &[0xaa, 0x55, 0x55]);
        serial.read(7, &mut data);
        assert_eq!(data, [0x55, 0xff, 0xff, 0xff]);
        assert_eq!(sink.take(), b"");
    }

    #[test]
    fn input_beyond_the_fifo_waits_and_is_told() {
        let (serial, irq, _) = port();
        serial.write(INTERRUPT_ENABLE, &[1]);
        let pulses = irq.0.load(Ordering::Relaxed);
        let input: Vec<u8> = (0..8000_u32).map(|i| i.to_le_bytes()[0]).collect();
        let taken = serial.enqueue(&input);
        assert_eq!(taken, BACKLOG);
        let more = serial.enqueue(&input[taken..]);
        assert_eq!(more, 64, "the FIFO made room");
        assert_eq!(serial.enqueue(b"x"), 0);
        assert!(irq.0.load(Ordering::Relaxed) > pulses);
        assert!(serial.space().read().is_err());
        let got = drain(&serial);
        assert_eq!(got, input[..taken + more]);
        assert_eq!(serial.space().read().unwrap(), 1);
        let pulses = irq.0.load(Ordering::Relaxed) - pulses;
        assert!(pulses <= 66, "{pulses} interrupts for {} bytes", got.len());
    }

    #[test]
    fn loopback_keeps_host_input_for_later() {
        let (serial, _, sink) = port();
        serial.write(4, &[0x10]);
        assert_eq!(serial.enqueue(b"later"), 5);
        serial.write(0, b"l");
        assert_eq!(drain(&serial), b"l");
        serial.write(4, &[0x0b]);
        assert_eq!(drain(&serial), b"later");
        assert_eq!(sink.take(), b"");
    }

    proptest! {
        #[test]
        fn no_input_is_lost_or_reordered(
            steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), 0usize..200, 1u64..8, any::<u8>()), 1..40),
        ) {
            let (serial, _, _) = port();
            let (mut sent, mut got) = (Vec::new(), Vec::new());
            for (input, reads, register, value) in steps {
                let taken = serial.enqueue(&input);
                sent.extend_from_slice(&input[..taken]);
                // Garbage into any register but data and the divisor latch switch.
                if register != 3 {
                    serial.write(register, &[value]);
                }
                for _ in 0..reads {
                    if get(&serial, 5) & DATA_READY != 0 {
                        got.push(get(&serial, 0));
                    }
                }
            }
            serial.write(4, &[0]);
            got.extend(drain(&serial));
            prop_assert_eq!(got, sent);
        }
    }
}
