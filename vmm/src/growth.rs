//! A VM's memory as others see it: what it started with, what it may grow to, what the guest is asked to have, and what it has.
//!
//! Made with the state driver, which alone changes what is asked, on request; lives through resets of the machine: what is asked stays,
//! and the guest starts with its first size again and plugs in the rest. Read on the control plane's thread, told news on the device's
//! threads, which wait for nobody here.
//!
//! The guest decides whether and when it does as it is asked.

use paddock_api::spec::{HugePageSize, VmSpec};
use paddock_devices::virtio::mem::MemHandle;
use tokio::sync::watch;

use crate::layout;
use crate::memory::Bytes;

pub use paddock_devices::virtio::mem::CounterValues;

/// What is plugged in and out at once, unless huge pages are larger: Linux's guests add no less than that anyway.
const BLOCK: u64 = 2 << 20;

/// Why a guest cannot be asked to have so much memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrowthError {
    /// The VM's memory does not change.
    #[error(
        "the memory stays at {}; the spec must tell its max when the VM is created", Bytes(*size)
    )]
    Fixed {
        /// What it is, in bytes.
        size: u64,
    },
    /// It can have more, or less.
    #[error("the memory can be {} to {}, not {}", Bytes(*size), Bytes(*max), Bytes(*requested))]
    OutOfRange {
        /// What was asked for, in bytes.
        requested: u64,
        /// What it started with.
        size: u64,
        /// What it may grow to.
        max: u64,
    },
    /// Memory comes in blocks.
    #[error("the memory must be a multiple of {}, not {}", Bytes(*block), Bytes(*requested))]
    Unaligned {
        /// What was asked for, in bytes.
        requested: u64,
        /// Bytes of a block.
        block: u64,
    },
}

/// A VM's memory at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStatus {
    /// What the VM started with.
    pub size: u64,
    /// What it may grow to.
    pub max: u64,
    /// What the guest is asked to have.
    pub requested: u64,
    /// What it has: the size it started with, and what is plugged in.
    pub plugged: u64,
    /// Whether the guest has a driver that plugs memory in and out.
    pub driver: bool,
    /// What the memory device did so far; `None` if there is none.
    pub counters: Option<CounterValues>,
}

/// A VM's memory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Growth {
    size: u64,
    device: Option<MemHandle>,
    changed: watch::Receiver<()>,
}

impl Growth {
    /// The memory of a VM.
    pub(crate) fn new(spec: &VmSpec) -> Self {
        let memory = &spec.memory;
        let size = memory.size.bytes();
        let region = layout::growth(size, memory.max.bytes());
        let pages = memory
            .hugepages
            .map_or(0, |pages: HugePageSize| pages.size().bytes());
        let (sender, changed) = watch::channel(());
        let device = (!region.is_empty()).then(|| {
            MemHandle::new(region, pages.max(BLOCK), move || {
                sender.send_replace(());
            })
        });
        let device = device.and_then(|made| {
            // A valid spec has memory in whole blocks.
            made.inspect_err(|error| tracing::error!(%error, "the memory cannot grow"))
                .ok()
        });
        Self {
            size,
            device,
            changed,
        }
    }

    /// The device's end, if the memory can change.
    pub(crate) fn handle(&self) -> Option<&MemHandle> {
        self.device.as_ref()
    }

    /// Whether the guest can be asked to have `requested` bytes of memory.
    ///
    /// # Errors
    /// When it is not what the VM may have.
    pub fn check(&self, requested: u64) -> Result<(), GrowthError> {
        let size = self.size;
        let device = self.device.as_ref();
        let device = device.ok_or(GrowthError::Fixed { size })?;
        let (max, block) = (self.max(), device.block_size());
        let more = requested.checked_sub(size);
        let Some(more) = more.filter(|_| requested <= max) else {
            return Err(GrowthError::OutOfRange {
                requested,
                size,
                max,
            });
        };
        if !more.is_multiple_of(block) {
            return Err(GrowthError::Unaligned { requested, block });
        }
        Ok(())
    }

    /// Asks the guest to have `requested` bytes of memory, which were checked.
    pub(crate) fn set(&self, requested: u64) {
        let more = requested.saturating_sub(self.size);
        match self
            .device
            .as_ref()
            .map(|device| device.set_requested(more))
        {
            Some(Ok(())) => tracing::info!(requested, "memory requested"),
            Some(Err(error)) => tracing::error!(%error, "memory requested"),
            None => {}
        }
    }

    fn max(&self) -> u64 {
        let region = self.device.as_ref().map(MemHandle::region);
        self.size + region.map_or(0, |region| region.end - region.start)
    }

    /// How it is now.
    #[must_use]
    pub fn status(&self) -> MemoryStatus {
        let device = self.device.as_ref().map(MemHandle::status);
        MemoryStatus {
            size: self.size,
            max: self.max(),
            requested: self.size + device.map_or(0, |device| device.requested),
            plugged: self.size + device.map_or(0, |device| device.plugged),
            driver: device.is_some_and(|device| device.driver),
            counters: device.map(|device| device.counters),
        }
    }

    /// Tells when [`status`](Self::status) has news, but for its counters.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn growth(memory: &str) -> Growth {
        let text = format!(r#"{{"boot": {{"kernel": "k"}}, "memory": {memory}}}"#);
        Growth::new(&VmSpec::from_json(&text).unwrap())
    }

    #[test]
    fn memory_without_max_stays_as_it_is() {
        for memory in [
            r#"{"size": "64MiB"}"#,
            r#"{"size": "64MiB", "max": "64MiB"}"#,
        ] {
            let growth = growth(memory);
            assert!(growth.handle().is_none());
            let error = growth.check(64 * MIB).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the memory stays at 64 MiB; the spec must tell its max when the VM is created"
            );
            growth.set(128 * MIB);
            let status = growth.status();
            assert_eq!(
                [status.size, status.max, status.requested, status.plugged],
                [64 * MIB; 4]
            );
            assert!(!status.driver);
        }
    }

    #[test]
    fn what_is_asked_lies_between_size_and_max_and_is_made_of_blocks() {
        let growth = growth(r#"{"size": "64MiB", "max": "1GiB"}"#);
        let news = growth.watch();
        for (requested, message) in [
            (0, "the memory can be 64 MiB to 1 GiB, not 0 bytes"),
            (62 * MIB, "the memory can be 64 MiB to 1 GiB, not 62 MiB"),
            (2 << 30, "the memory can be 64 MiB to 1 GiB, not 2 GiB"),
            (
                65 * MIB,
                "the memory must be a multiple of 2 MiB, not 65 MiB",
            ),
        ] {
            let error = growth.check(requested).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        for requested in [64 * MIB, 66 * MIB, 1 << 30] {
            growth.check(requested).unwrap();
            growth.set(requested);
            assert_eq!(growth.status().requested, requested);
        }
        assert!(news.has_changed().unwrap());
        let status = growth.status();
        assert_eq!(
            (status.size, status.max, status.plugged),
            (64 * MIB, 1 << 30, 64 * MIB)
        );
        let region = growth.handle().unwrap().region();
        assert_eq!(region, 4 << 30..(4 << 30) + 960 * MIB);
    }

    #[test]
    fn blocks_are_no_smaller_than_huge_pages() {
        let growth = growth(r#"{"size": "1GiB", "max": "4GiB", "hugepages": "1GiB"}"#);
        assert_eq!(growth.handle().unwrap().block_size(), 1 << 30);
        let requested = 1536 * MIB;
        let block = 1 << 30;
        assert_eq!(
            growth.check(requested),
            Err(GrowthError::Unaligned { requested, block })
        );
    }
}
