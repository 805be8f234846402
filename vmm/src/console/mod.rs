//! Where consoles end outside the machine: a sink for what the guest prints and a switch for what is typed.
//!
//! - [`ConsoleEnds`]: all that a VM has, as its spec says.
//! - [`hub`]: a console on a unix socket, for several viewers, with a [`history`] for those who come late.
//! - [`log`]: a log of what a console prints, rotated.
//! - [`place`]: the files and sockets themselves, made or passed in.
//! - A console on the terminal is [`terminal`](crate::terminal)'s.
//!
//! Sinks and switch outlive a reset of the guest: the machine plugs its present device into the switch. Sinks are written on vCPU
//! threads and device workers and only append to bounded buffers; the switch is used by whoever reads the keyboard. The guest chooses
//! every byte and how fast.

mod ends;
pub mod history;
pub mod hub;
pub mod log;
pub mod place;
mod viewer;

use std::sync::Arc;

use paddock_devices::console::{ConsoleInput, ConsoleSink};
use parking_lot::Mutex;

pub use ends::{ConsoleEnds, ConsoleError};
pub use hub::Hub;
pub use log::RotatingLog;

/// The keyboard side of a console whatever device it has now.
#[derive(Debug, Default)]
pub struct InputSwitch {
    device: Mutex<Option<Arc<dyn ConsoleInput>>>,
}

impl InputSwitch {
    /// Plugs a device in, or unplugs it.
    pub fn connect(&self, device: Option<Arc<dyn ConsoleInput>>) {
        *self.device.lock() = device;
    }

    /// Takes as many bytes as the device has room for and says how many; with no device, all of them, to nowhere: nobody reads
    /// a keyboard while the machine resets.
    #[must_use]
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        match &*self.device.lock() {
            Some(device) => device.enqueue(bytes),
            None => bytes.len(),
        }
    }
}

/// A console as the machine sees it.
#[derive(Debug, Clone)]
pub struct ConsoleEnd {
    /// What the guest prints goes here.
    pub sink: Arc<dyn ConsoleSink>,
    /// What is typed comes through here.
    pub input: Arc<InputSwitch>,
}

impl ConsoleEnd {
    /// A console that prints to all of `sinks`, and gets its input through `input`.
    #[must_use]
    pub fn new(mut sinks: Vec<Arc<dyn ConsoleSink>>, input: Arc<InputSwitch>) -> Self {
        let sink = match sinks.len() {
            1 => sinks.remove(0),
            _ => Arc::new(Tee(sinks)),
        };
        Self { sink, input }
    }

    /// A console that prints nowhere.
    #[must_use]
    pub fn nowhere() -> Self {
        Self::new(Vec::new(), Arc::default())
    }
}

/// Prints to several sinks, or to none.
#[derive(Debug)]
struct Tee(Vec<Arc<dyn ConsoleSink>>);

impl ConsoleSink for Tee {
    fn write(&self, bytes: &[u8]) {
        for sink in &self.0 {
            sink.write(bytes);
        }
    }
}
