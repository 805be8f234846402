//! Whom a call is for: a client may say which volume and which process it means, and a wrong one is refused.

use tonic::{Request, Status};

use crate::{INSTANCE_NAME, VOLUME_NAME};

/// The names of a process; empty for one that does not know.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The volume.
    pub volume: String,
    /// The process.
    pub instance: String,
    /// What it is, for those whom it refuses: `replica` or `controller`.
    pub role: &'static str,
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
                let role = self.role;
                let text = format!("incorrect {what} name {theirs}; check {role} address");
                return Err(Status::failed_precondition(text));
            }
        }
        Ok(request)
    }
}
