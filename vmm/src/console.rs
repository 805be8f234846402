//! Where consoles end outside the machine: a sink for what the guest prints and a switch for what is typed.
//!
//! Both outlive a reset of the guest: the machine plugs its present device into the switch. Sinks are written on vCPU
//! threads and device workers; the switch is used by whoever reads the keyboard.

use std::sync::Arc;

use paddock_devices::console::{ConsoleInput, ConsoleSink};
use parking_lot::Mutex;

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
    /// A console that prints to `sink`.
    #[must_use]
    pub fn new(sink: Arc<dyn ConsoleSink>) -> Self {
        Self {
            sink,
            input: Arc::default(),
        }
    }

    /// A console that prints nowhere.
    #[must_use]
    pub fn nowhere() -> Self {
        Self::new(Arc::new(Nowhere))
    }
}

#[derive(Debug)]
struct Nowhere;

impl ConsoleSink for Nowhere {
    fn write(&self, _bytes: &[u8]) {}
}
