//! CD-ROM drives: listed, shown, their media inserted and ejected.

use hyper::Method;
use paddock_api::cdrom::{Cdrom, Medium};

use super::CtlError;
use super::args::{CdromsCommand, ForceArgs};
use super::client::Call;
use super::paths::make_absolute;
use super::render;
use super::session::Session;
use crate::cli::spec::SpecInput;

/// `paddock ctl cdroms`
pub async fn execute(session: &Session, command: &CdromsCommand) -> Result<(), CtlError> {
    let one = |page: &mut _, drive: &Cdrom| render::cdroms(page, std::slice::from_ref(drive));
    let call = match command {
        CdromsCommand::List => {
            let call = Call::get(&["vm", "cdroms"]);
            let list = |page: &mut _, drives: &Vec<Cdrom>| render::cdroms(page, drives);
            return session.show(call, list).await;
        }
        CdromsCommand::Show(args) => Call::get(&["vm", "cdroms", &args.id]),
        CdromsCommand::Insert(args) => {
            let mut medium = Medium {
                path: args.path.clone(),
            };
            make_absolute(&mut medium.path);
            let body = serde_json::to_string(&medium).map_err(|_| SpecInput::NotText)?;
            let call = Call::new(Method::PUT, &["vm", "cdroms", &args.id, "medium"]);
            forced(call, &args.force).body(body)
        }
        CdromsCommand::Eject(args) => {
            let call = Call::new(Method::DELETE, &["vm", "cdroms", &args.id, "medium"]);
            forced(call, &args.force)
        }
    };
    session.show(call, one).await
}

fn forced(call: Call, args: &ForceArgs) -> Call {
    if args.force {
        call.with("force", true)
    } else {
        call
    }
}
