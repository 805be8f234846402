//! The CPUs: shown and set.

use hyper::Method;
use paddock_api::cpus::{Cpus, CpusRequest};
use serde_json::json;

use super::CtlError;
use super::args::CpusCommand;
use super::client::Call;
use super::session::Session;
use super::{jobs, render};

/// `paddock ctl cpus`
pub async fn execute(session: &Session, command: &CpusCommand) -> Result<(), CtlError> {
    match command {
        CpusCommand::Show => {
            let cpus = |page: &mut _, cpus: &Cpus| render::cpus(page, cpus);
            session.show(Call::get(&["vm", "cpus"]), cpus).await
        }
        CpusCommand::Set(args) => {
            let request = CpusRequest {
                wanted: args.wanted,
            };
            let mut call = Call::new(Method::PUT, &["vm", "cpus"]).body(json!(request).to_string());
            if let Some(seconds) = args.deadline {
                call = call.with("deadline_ms", seconds.saturating_mul(1000));
            }
            let answer = session.client.call(call).await?;
            jobs::finish(session, answer, args.wait.into()).await
        }
    }
}
