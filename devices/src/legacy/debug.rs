//! Debug ports: POST codes (0x80) and the firmware debug console (0x402), for crash reports and firmware logs.
//!
//! Runs on vCPU threads. The guest chooses every byte; one is kept, the others go to a sink that never blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::BusDevice;
use crate::console::ConsoleSink;

/// Port of [`PostCode`].
pub const POST_CODE_PORT: u64 = 0x80;
/// Port of [`DebugConsole`].
pub const DEBUG_CONSOLE_PORT: u64 = 0x402;
/// What the debug console reads as, so that firmware knows it is there.
const PRESENT: u8 = 0xe9;

/// Remembers the last POST code. Reads as all-ones, like the empty port it stands on.
#[derive(Debug, Default)]
pub struct PostCode {
    last: AtomicU8,
}

impl PostCode {
    /// The last code written, for a crash report.
    #[must_use]
    pub fn last(&self) -> u8 {
        self.last.load(Ordering::Relaxed)
    }
}

impl BusDevice for PostCode {
    fn name(&self) -> &str {
        "post-code"
    }

    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        if let Some(code) = data.first() {
            self.last.store(*code, Ordering::Relaxed);
        }
    }
}

/// Firmware's debug console, as SeaBIOS and debug builds of OVMF write it.
#[derive(Debug)]
pub struct DebugConsole {
    sink: Arc<dyn ConsoleSink>,
}

impl DebugConsole {
    /// Passes what firmware writes on to `sink`.
    #[must_use]
    pub fn new(sink: Arc<dyn ConsoleSink>) -> Self {
        Self { sink }
    }
}

impl BusDevice for DebugConsole {
    fn name(&self) -> &str {
        "debug-console"
    }

    fn read(&self, _offset: u64, data: &mut [u8]) {
        if let Some(byte) = data.first_mut() {
            *byte = PRESENT;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.sink.write(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::serial::tests::Collector;

    #[test]
    fn ports_answer_and_remember() {
        let post = PostCode::default();
        post.write(0, &[0x42]);
        assert_eq!(post.last(), 0x42);
        let sink = Arc::new(Collector::default());
        let console = DebugConsole::new(Arc::clone(&sink) as _);
        let mut data = [0xff, 0xff];
        console.read(0, &mut data);
        assert_eq!(data, [0xe9, 0xff]);
        console.write(0, b"S");
        console.write(0, b"B");
        assert_eq!(sink.take(), b"SB");
    }
}
