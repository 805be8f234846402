//! Why a VM could not be built or run.

use std::io;

use crate::boot::BootError;
use crate::console::ConsoleError;
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

impl From<ConsoleError> for Error {
    fn from(error: ConsoleError) -> Self {
        Self::part(format!("/console/{}", error.console), error.source)
    }
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

    /// The JSON pointer to the part of the spec that it is about, if it is about one.
    #[must_use]
    pub fn pointer(&self) -> Option<&str> {
        match self {
            Self::Part { pointer, .. } => Some(pointer),
            Self::Cpus(_) | Self::Kvm(KvmError::TooManyVcpus { .. }) => Some("/cpus"),
            Self::Memory(_) => Some("/memory"),
            Self::Boot(error) => error.pointer(),
            _ => None,
        }
    }

    /// What is wrong there, where the message begins with the pointer and leaves that to its source.
    #[must_use]
    pub fn at_pointer(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Part { source, .. } | Self::Cpus(source) => Some(source.as_ref()),
            _ => None,
        }
    }

    /// A host call that failed while doing `action`.
    pub fn host(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { action, source }
    }
}

/// An error and its sources, joined by colons. What a source says is not said twice.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !next.is_empty() && !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let mut layers = texts.iter().rev();
        let first = Layer {
            text: layers.next().unwrap(),
            source: None,
        };
        layers.fold(first, |source, text| Layer {
            text,
            source: Some(Box::new(source)),
        })
    }

    #[test]
    fn chains() {
        assert_eq!(chain(&layers(&["a"])), "a");
        assert_eq!(chain(&layers(&["a", "b", "c"])), "a: b: c");
        assert_eq!(chain(&layers(&["a: b", "b", "c"])), "a: b: c");
        assert_eq!(chain(&layers(&["a", "", "c"])), "a: c");
    }
}
