//! The end of a VM, waited for on one connection.
//!
//! Where the service manager holds the socket, a connection made after the process has ended starts the process anew, and the VM with it:
//! who only looked whether it is gone would wait for ever. So the events are followed from before the VM is asked to end, and after that no
//! connection is made: when they end, so has the process.

use serde::Deserialize;

use super::CtlError;
use super::client::{Call, ClientError};
use super::session::Session;
use super::stream::Messages;
use super::vm::Life;

/// Where the events are from which the end will be seen.
#[derive(Debug)]
pub struct Ending<'a> {
    session: &'a Session,
    messages: Messages,
    /// What came until then is of no matter, and may be another VM's.
    after: u64,
}

/// So much of a VM as is needed.
#[derive(Debug, Deserialize)]
struct Present {
    last_event: u64,
}

impl<'a> Ending<'a> {
    /// Begins with the VM as it is now.
    ///
    /// # Errors
    /// When there is none, or no stream of events.
    pub async fn follow(session: &'a Session) -> Result<Self, CtlError> {
        let messages = Messages::follow(&session.client, Call::get(&["events"])).await?;
        let vm: Present = session.client.call(Call::get(&["vm"])).await?.parse()?;
        Ok(Self {
            session,
            messages,
            after: vm.last_event,
        })
    }

    /// Waits for the VM's end, and returns it with the event that told it; `None` if the VM is gone without one.
    ///
    /// # Errors
    /// When it is not known any more whether the VM has ended.
    pub async fn wait(&mut self) -> Result<Option<(Life, String)>, CtlError> {
        loop {
            let message = match self.messages.next().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(None),
                Err(ClientError::Cut { .. }) => return Err(self.lost("the connection was lost")),
                Err(error) => return Err(error.into()),
            };
            if message.id.is_some_and(|id| id <= self.after) {
                continue;
            }
            match message.name.as_str() {
                "ended" => {
                    let life = serde_json::from_str(&message.data).map_err(|error| {
                        let detail = format!("the VM's end is not understood: {error}");
                        self.session.client.nonsense(&detail)
                    })?;
                    return Ok(Some((life, message.data)));
                }
                // Another client was faster, and there may be another VM by now.
                "deleted" | "created" => return Ok(None),
                "gap" => return Err(self.lost("events were lost")),
                _ => {}
            }
        }
    }

    fn lost(&self, why: &str) -> CtlError {
        let ctl = self.session.command();
        CtlError::Failed(format!(
            "{why}: the process was killed, or this client did not keep up, and how the VM ended is not known\n  \
             to see how it is (which may start it, where the service manager holds the socket): {ctl} vm show"
        ))
    }
}
