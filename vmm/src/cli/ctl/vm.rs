//! The VM: created, shown, deleted, its buttons pressed.

use std::fmt::Write;

use hyper::Method;
use paddock_api::resource::{Action, Vm};
use serde::Deserialize;

use super::CtlError;
use super::args::{CreateArgs, Patience, PowerButtonArgs, VmCommand};
use super::client::{Answer, Call};
use super::ending::Ending;
use super::paths::make_all_absolute;
use super::progress::Progress;
use super::render;
use super::session::{Pace, Session};
use crate::cli::spec::{SpecInput, assemble_for_api};

/// `paddock ctl vm`
pub async fn execute(session: &Session, command: &VmCommand) -> Result<(), CtlError> {
    match command {
        VmCommand::Create(args) => create(session, args).await,
        VmCommand::Show => {
            let vm = |page: &mut _, vm: &Vm| render::vm(page, vm);
            session.show(read(), vm).await
        }
        VmCommand::Delete => {
            let mut progress = Progress::start();
            progress.tell("stopping the VM", "", None);
            let call = Call::new(Method::DELETE, &["vm"]);
            session.client.call(call).await?;
            drop(progress);
            session.say("the VM is gone")
        }
        VmCommand::PowerButton(args) => press_power_button(session, args).await,
        VmCommand::Reset => act(session, Action::Reset, "the VM is being reset").await,
        VmCommand::Nmi => act(session, Action::Nmi, "the NMI line was pulled").await,
        VmCommand::Pause => act(session, Action::Pause, "the VM is being paused").await,
        VmCommand::Resume => act(session, Action::Resume, "the VM goes on").await,
    }
}

fn read() -> Call {
    Call::get(&["vm"])
}

async fn act(session: &Session, action: Action, told: &str) -> Result<(), CtlError> {
    let call = Call::new(Method::POST, &["vm", "actions", &action.to_string()]);
    let answer = session.client.call(call).await?;
    session.print_json(&answer.text)?;
    session.say(told)
}

/// So much of a VM, or of the event of its end, as is needed to wait for it. Words, because a newer process may have more of them.
#[derive(Debug, Deserialize)]
pub struct Life {
    #[serde(default = "ended")]
    state: String,
    #[serde(default)]
    end: Option<End>,
}

/// The event is about nothing else.
fn ended() -> String {
    "ended".to_owned()
}

#[derive(Debug, Deserialize)]
struct End {
    reason: String,
    #[serde(default)]
    detail: Option<String>,
    #[serde(default)]
    pointer: Option<String>,
}

impl Life {
    /// Whether it will soon be known how the start went.
    fn is_under_way(&self) -> bool {
        matches!(self.state.as_str(), "starting" | "stopping")
    }

    /// That the VM ended as it should, or how it did not.
    fn outcome(&self) -> Result<String, CtlError> {
        let Some(end) = &self.end else {
            return Ok(format!("the VM is {}", self.state));
        };
        let mut text = match end.reason.as_str() {
            "powered-off" => return Ok("the VM ended: its guest powered off".to_owned()),
            reason @ ("stopped" | "reset") => return Ok(format!("the VM ended: {reason}")),
            "failed" => "the VM could not be built".to_owned(),
            "crashed" => "the guest crashed".to_owned(),
            reason => format!("the VM ended: {reason}"),
        };
        for more in [&end.pointer, &end.detail].into_iter().flatten() {
            let _ = write!(text, ": {}", more.trim_end());
        }
        Err(CtlError::Failed(text))
    }
}

async fn create(session: &Session, args: &CreateArgs) -> Result<(), CtlError> {
    let mut config = assemble_for_api(&args.vm)?;
    make_all_absolute(&mut config);
    let body = serde_json::to_string(&config).map_err(|_| SpecInput::NotText)?;
    let call = Call::new(Method::PUT, &["vm"]).body(body);
    let answer = session.client.call(call).await?;
    let Patience::UpTo(limit) = args.wait.into() else {
        session.print_json(&answer.text)?;
        return session.say("the VM is being started");
    };
    let advice = || {
        let ctl = session.command();
        format!("the VM is still being started\n  to see how it is: {ctl} vm show")
    };
    let started = watch(session, answer, |life| !life.is_under_way());
    let (life, answer) = session.wait_for(limit, advice, started).await?;
    session.print_json(&answer.text)?;
    session.say(&life.outcome()?)
}

async fn press_power_button(session: &Session, args: &PowerButtonArgs) -> Result<(), CtlError> {
    let told = "the power button was pressed";
    if !args.wait {
        return act(session, Action::PowerButton, told).await;
    }
    let mut ending = Ending::follow(session).await?;
    act(session, Action::PowerButton, told).await?;
    let limit = args.max_wait.map(std::time::Duration::from_secs);
    let advice = || {
        let ctl = session.command();
        format!("the guest has not powered off\n  to stop it at once: {ctl} vm delete")
    };
    let mut progress = Progress::start();
    let ended = progress.during("the guest is to power off", ending.wait());
    match session.wait_for(limit, advice, ended).await? {
        Some((life, event)) => {
            session.print_json(&event)?;
            session.say(&life.outcome()?)
        }
        None => session.say("the VM is gone"),
    }
}

/// Looks at the VM until it is as wanted. Each look is a connection of its own, which is for a process that has just been asked to make
/// the VM: one that is started anew instead has none, and says so.
async fn watch(
    session: &Session,
    mut answer: Answer,
    wanted: impl Fn(&Life) -> bool,
) -> Result<(Life, Answer), CtlError> {
    let mut progress = Progress::start();
    let started = std::time::Instant::now();
    let mut pace = Pace::default();
    loop {
        let life: Life = answer.parse()?;
        if wanted(&life) {
            return Ok((life, answer));
        }
        let waited = render::duration(started.elapsed());
        progress.tell(&format!("the VM is {}", life.state), &waited, None);
        pace.pause().await;
        answer = session.client.call(read()).await?;
    }
}
