//! Where a function's memory BARs are on the MMIO bus, kept in step with its configuration space.
//!
//! The guest may point a BAR anywhere at any time. A place that is taken leaves the BAR unmapped, as on a PC where two
//! decoders fight, until it is moved somewhere sane; RAM always wins, for the CPU never leaves the guest for it.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::config::ConfigSpace;
use crate::bus::{Bus, BusDevice};

/// Called when a BAR appears at an address, or (with `None`) before it disappears: for doorbells and the like.
pub type OnMove = Box<dyn Fn(Option<u64>) + Send + Sync>;

struct Region {
    index: u8,
    length: u64,
    device: Arc<dyn BusDevice>,
    on_move: OnMove,
    mapped: Option<u64>,
}

/// The mapped BARs of one function.
pub struct BarMap {
    bus: Arc<Bus>,
    regions: Mutex<Vec<Region>>,
}

impl fmt::Debug for BarMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regions = self.regions.lock();
        f.debug_list()
            .entries(regions.iter().map(|r| (r.index, r.mapped, r.length)))
            .finish()
    }
}

impl BarMap {
    /// No BARs yet.
    #[must_use]
    pub fn new(bus: Arc<Bus>) -> Self {
        Self {
            bus,
            regions: Mutex::new(Vec::new()),
        }
    }

    /// Serves the 64-bit memory BAR `index`, `length` bytes, by `device`.
    pub fn add(&self, index: u8, length: u64, device: Arc<dyn BusDevice>, on_move: OnMove) {
        self.regions.lock().push(Region {
            index,
            length,
            device,
            on_move,
            mapped: None,
        });
    }

    /// Brings the bus in step after the command register or a BAR changed.
    pub fn update(&self, config: &ConfigSpace) {
        let enabled = config.memory_enabled();
        for region in self.regions.lock().iter_mut() {
            let wanted = enabled.then(|| config.bar(region.index));
            if wanted != region.mapped {
                region.unmap(&self.bus);
                if let Some(address) = wanted {
                    region.map(&self.bus, address);
                }
            }
        }
    }

    /// Takes every BAR off the bus for good: the function is going away, and a vCPU that is still in its configuration space must
    /// not bring one back.
    pub fn unmap_all(&self) {
        for mut region in self.regions.lock().drain(..) {
            region.unmap(&self.bus);
        }
    }
}

impl Region {
    fn map(&mut self, bus: &Bus, address: u64) {
        match bus.insert(address, self.length, Arc::clone(&self.device)) {
            Ok(()) => {
                self.mapped = Some(address);
                (self.on_move)(Some(address));
            }
            Err(error) => {
                tracing::debug!(
                    device = self.device.name(),
                    bar = self.index,
                    "BAR stays unmapped: {error}"
                );
            }
        }
    }

    fn unmap(&mut self, bus: &Bus) {
        if let Some(address) = self.mapped.take() {
            (self.on_move)(None);
            let removed = bus.remove(address);
            debug_assert!(removed.is_ok(), "a mapped BAR is on the bus");
        }
    }
}
