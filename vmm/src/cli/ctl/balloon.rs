//! The balloon: shown and set, and the guest's memory statistics.

use hyper::Method;
use paddock_api::balloon::{Balloon, BalloonTarget, MemoryStatistics};
use serde_json::json;

use super::CtlError;
use super::args::BalloonCommand;
use super::client::Call;
use super::render;
use super::session::Session;

/// `paddock ctl balloon`
pub async fn execute(session: &Session, command: &BalloonCommand) -> Result<(), CtlError> {
    let balloon = |page: &mut _, balloon: &Balloon| render::balloon(page, balloon);
    match command {
        BalloonCommand::Show => session.show(Call::get(&["vm", "balloon"]), balloon).await,
        BalloonCommand::Set(args) => {
            let target = BalloonTarget {
                target: args.target,
            };
            let call = Call::new(Method::PUT, &["vm", "balloon"]).body(json!(target).to_string());
            session.show(call, balloon).await
        }
        BalloonCommand::Statistics => {
            let call = Call::get(&["vm", "balloon", "statistics"]);
            let statistics = |page: &mut _, told: &MemoryStatistics| render::statistics(page, told);
            session.show(call, statistics).await
        }
    }
}
