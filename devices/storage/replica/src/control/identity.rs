//! Whom a call is for: a client may say which volume and which process it means, and a wrong one is refused.

use paddock_longhorn::{INSTANCE_NAME, VOLUME_NAME};
use tonic::{Request, Status};

/// The names of a process; empty for one that does not know.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The volume.
    pub volume: String,
    /// The process.
    pub instance: String,
}

impl tonic::service::Interceptor for Identity {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        for (key, what, ours) in [
            (VOLUME_NAME, "volume", &self.volume),
            (INSTANCE_NAME, "instance", &self.instance),
        ] {
            let mut values = request.metadata().get_all(key).iter();
            let (Some(theirs), None) = (values.next(), values.next()) else {
                continue;
            };
            let theirs = theirs.to_str().unwrap_or("?");
            if !ours.is_empty() && !theirs.is_empty() && theirs != ours {
                let text = format!("incorrect {what} name {theirs}; check replica address");
                return Err(Status::failed_precondition(text));
            }
        }
        Ok(request)
    }
}
