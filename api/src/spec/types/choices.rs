//! The words that a field chooses from.

use std::borrow::Cow;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// Whether a disk bypasses the host's page cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DirectIo {
    /// Where the file or device allows it.
    #[default]
    Auto,
    /// Yes, or the VM does not start.
    On,
    /// No.
    Off,
}

/// How the host does a disk's I/O.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskEngine {
    /// io_uring where the host allows it, else threads.
    #[default]
    Auto,
    /// io_uring, or the VM does not start.
    IoUring,
    /// Blocking system calls on threads.
    Threads,
}

/// How a disk's content is laid out in its file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// Byte for byte.
    #[default]
    Raw,
    /// QEMU's.
    Qcow2,
}

/// What becomes of a request that has failed until the deadline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AfterRetry {
    /// The guest gets the error, and that of each further request, until one succeeds.
    #[default]
    Report,
    /// The VM is paused until it is resumed.
    Stop,
}

/// What happens when the guest asks for a reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnReset {
    /// The VM starts again in the same process.
    #[default]
    Reboot,
    /// The process ends, with an exit status of its own.
    Exit,
}

/// A path, in the OpenAPI document.
struct PathText;

impl PartialSchema for PathText {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String);
        text.description(Some("A path of the host's."))
            .min_length(Some(1))
            .into()
    }
}

impl ToSchema for PathText {
    fn name() -> Cow<'static, str> {
        "Path".into()
    }
}

/// Where a console's bytes go to and come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleTarget {
    /// The standard input and output of the process.
    Terminal,
    /// Nowhere: the guest finds no such console, or one on which nobody ever types. A log may still keep its output.
    Off,
    /// Output is appended to a file, which is made if need be; there is no input.
    #[schema(value_type = PathText)]
    File(PathBuf),
    /// A unix socket, made by Paddock, on which several viewers at once see the output and type.
    #[schema(value_type = PathText)]
    Socket(PathBuf),
}
