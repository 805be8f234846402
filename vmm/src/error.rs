//! Why a VM could not be built or run.

use std::io;

use crate::boot::BootError;
use crate::kvm::KvmError;
use crate::machine::chipset::ChipsetError;
use crate::memory::MemoryError;

/// An error of the machine. Messages name what failed and, where it comes from the spec, the JSON pointer of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// KVM is missing, lacks something, or refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest RAM cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel or initramfs cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The platform cannot be put together.
    #[error("building the platform")]
    Chipset(#[from] ChipsetError),
    /// A part of the VM that the spec asks for cannot be had.
    #[error("{pointer}")]
    Part {
        /// Where in the spec it is.
        pointer: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The vCPUs cannot be what the spec says.
    #[error("/cpus")]
    Cpus(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The host refused something every process should get.
    #[error("{action}")]
    Host {
        /// What was being done.
        action: &'static str,
        /// The answer.
        source: io::Error,
    },
    /// There are not enough places on the PCI bus.
    #[error("the VM has more devices than the {0} places on its PCI bus")]
    TooManyDevices(usize),
    /// The driver is gone, so nothing can be asked of the VM.
    #[error("the VM has ended")]
    Ended,
}

impl Error {
    /// A part of the spec at `pointer` that cannot be had.
    pub fn part(
        pointer: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Part {
            pointer: pointer.into(),
            source: source.into(),
        }
    }

    /// A host call that failed while doing `action`.
    pub fn host(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { action, source }
    }
}
