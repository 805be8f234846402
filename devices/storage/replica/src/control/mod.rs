//! The control plane: gRPC on a runtime of one thread, and threads of its own for what waits for the disk. Clients are not trusted, but may do
//! all there is.

mod service;

pub use service::ReplicaControl;

use tonic::{Code, Status};

use crate::error::{Error, Result};

/// Does what may wait for the disk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> std::result::Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| status(&error)),
        Err(error) => Err(Status::internal(format!(
            "a call on the replica broke off: {error}"
        ))),
    }
}

/// An error as gRPC says it. Longhorn's replicas give no code to theirs, and its engine looks at the text.
pub(crate) fn status(error: &Error) -> Status {
    Status::new(Code::Unknown, error.text())
}
