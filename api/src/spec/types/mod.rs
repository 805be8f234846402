//! The values a spec is made of, each valid by construction: whoever holds one need not check it again.

mod byte_size;
mod choices;
mod mac;
mod number;
mod passed;
mod replica;
mod text;

pub use byte_size::{ByteSize, HugePageSize};
pub use choices::{AfterRetry, ConsoleTarget, DirectIo, DiskEngine, ImageFormat, OnReset};
pub use mac::MacAddr;
pub(crate) use number::in_range;
pub use number::{Mtu, QueueSize, VlanId};
pub use passed::{PassedFd, PassedTap};
pub use replica::ReplicaAddress;
pub use text::{DeviceId, DiskSerial, InterfaceName, PortName, VmName, VolumeName};
pub use uuid::Uuid;

use super::problem::ProblemCode;

/// Why a text or number is not a value of the type asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ValueError {
    /// The class of problem.
    pub code: ProblemCode,
    /// What is wrong and what would be right, in one line.
    pub detail: String,
}

impl ValueError {
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self {
            code: ProblemCode::Malformed,
            detail: detail.into(),
        }
    }

    pub(crate) fn out_of_range(detail: impl Into<String>) -> Self {
        Self {
            code: ProblemCode::OutOfRange,
            detail: detail.into(),
        }
    }
}
