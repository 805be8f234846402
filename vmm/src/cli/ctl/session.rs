//! What all commands share: the client, where answers are printed, and how to wait.

use std::env;
use std::future::Future;
use std::time::Duration;

use serde::de::{DeserializeOwned, IgnoredAny};

use super::CtlError;
use super::args::SOCKET_VARIABLE;
use super::client::{Answer, Call, Client};
use super::harmless;
use super::output::Output;
use super::render::Page;
use crate::cli::logging;
use crate::cli::options::shown;

/// A command under way.
#[derive(Debug)]
pub struct Session {
    /// The API.
    pub client: Client,
    output: Output,
}

impl Session {
    /// With the API and the place for its answers.
    pub fn new(client: Client, output: Output) -> Self {
        Self { client, output }
    }

    /// Whether answers are printed as JSON.
    pub fn json(&self) -> bool {
        self.output.json
    }

    /// Prints a text that is not JSON as it came.
    pub fn print_foreign(&self, text: &str) -> Result<(), CtlError> {
        self.output.print_foreign(text).map_err(CtlError::Print)
    }

    /// Prints a text that came and must be JSON.
    pub fn print_document(&self, text: &str) -> Result<(), CtlError> {
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| {
            let detail = format!("its answer is not understood: {error}");
            self.client.nonsense(&detail)
        })?;
        self.output.print_json(text).map_err(CtlError::Print)
    }

    /// Prints an answer's body where JSON is wanted, if there is one.
    pub fn print_json(&self, text: &str) -> Result<(), CtlError> {
        if self.json() && !text.is_empty() {
            self.print_document(text)?;
        }
        Ok(())
    }

    /// Prints a sentence where JSON is not wanted.
    pub fn say(&self, text: &str) -> Result<(), CtlError> {
        if self.json() {
            return Ok(());
        }
        self.output.print_sentence(text).map_err(CtlError::Print)
    }

    /// Makes a call and prints its answer.
    pub async fn show<T: DeserializeOwned>(
        &self,
        call: Call,
        render: impl FnOnce(&mut Page, &T),
    ) -> Result<(), CtlError> {
        let answer = self.client.call(call).await?;
        self.show_answer(&answer, render)
    }

    /// Prints an answer: as JSON where that is wanted, and where it is not what this program knows.
    pub fn show_answer<T: DeserializeOwned>(
        &self,
        answer: &Answer,
        render: impl FnOnce(&mut Page, &T),
    ) -> Result<(), CtlError> {
        if self.json() {
            return self.print_json(&answer.text);
        }
        match serde_json::from_str(&answer.text) {
            Ok(value) => self.print_page(|page| render(page, &value)),
            Err(error) => {
                // What is not even JSON is an error.
                let tree: serde_json::Value = answer.parse()?;
                let note = format!(
                    "the answer is as another version of Paddock has it ({error}); here it is"
                );
                logging::tell(&harmless::line(&note));
                self.print_document(&format!("{tree:#}"))
            }
        }
    }

    /// Prints a page.
    pub fn print_page(&self, render: impl FnOnce(&mut Page)) -> Result<(), CtlError> {
        let mut page = self.output.page();
        render(&mut page);
        self.output.print_page(page).map_err(CtlError::Print)
    }

    /// The command that calls the same API, for advice.
    pub fn command(&self) -> String {
        let socket = self.client.socket();
        if env::var_os(SOCKET_VARIABLE).is_some_and(|known| known == socket.as_os_str()) {
            return "paddock ctl".to_owned();
        }
        let socket = shown(&socket.to_string_lossy());
        format!("paddock ctl --api-socket {socket}")
    }

    /// Waits until `done`, but not longer than `limit` and not after Ctrl-C. What is waited for goes on; `advice` says how to come
    /// back to it.
    pub async fn wait_for<T>(
        &self,
        limit: Option<Duration>,
        advice: impl FnOnce() -> String,
        done: impl Future<Output = Result<T, CtlError>>,
    ) -> Result<T, CtlError> {
        let too_long = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let interrupted = async {
            // Without a handler the signal ends the process, which is an end too.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let why = tokio::select! {
            biased;
            () = interrupted => "interrupted",
            result = done => return result,
            () = too_long => "it takes longer than --max-wait",
        };
        Err(CtlError::Failed(format!("{why}: {}", advice())))
    }
}

/// The pauses between looks at something: short at first, for what is done at once.
#[derive(Debug)]
pub struct Pace(Duration);

impl Default for Pace {
    fn default() -> Self {
        Self(Duration::from_millis(10))
    }
}

impl Pace {
    const LONGEST: Duration = Duration::from_millis(200);

    /// The next pause.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}
