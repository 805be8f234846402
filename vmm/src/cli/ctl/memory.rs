//! The memory: shown and set.

use hyper::Method;
use paddock_api::memory::{Memory, MemoryRequest};
use serde_json::json;

use super::CtlError;
use super::args::MemoryCommand;
use super::client::Call;
use super::render;
use super::session::Session;

/// `paddock ctl memory`
pub async fn execute(session: &Session, command: &MemoryCommand) -> Result<(), CtlError> {
    let memory = |page: &mut _, memory: &Memory| render::memory(page, memory);
    match command {
        MemoryCommand::Show => session.show(Call::get(&["vm", "memory"]), memory).await,
        MemoryCommand::Set(args) => {
            let request = MemoryRequest {
                requested: args.requested,
            };
            let call = Call::new(Method::PUT, &["vm", "memory"]).body(json!(request).to_string());
            session.show(call, memory).await
        }
    }
}
