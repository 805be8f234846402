//! `paddock ctl` as an operator or a script runs it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::files;
use crate::transcript::Transcript;

/// How long a command may take, with the guest's share of it.
const DEADLINE: Duration = Duration::from_secs(180);

/// The API at a socket.
#[derive(Debug, Clone)]
pub struct Ctl {
    socket: PathBuf,
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Done {
    /// Its exit status; none if it was killed.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Ctl {
    /// The API at `socket`.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Starts a command. The environment says where the API is.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(&self, words: &[&str]) -> Running {
        let mut child = Command::new(files::paddock())
            .arg("ctl")
            .args(words)
            .env("PADDOCK_API_SOCKET", &self.socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", files::paddock().display()));
        Running {
            what: words.join(" "),
            stdout: Transcript::follow(child.stdout.take()),
            stderr: Transcript::follow(child.stderr.take()),
            child,
        }
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it does not end in time.
    #[must_use]
    pub fn run(&self, words: &[&str]) -> Done {
        self.start(words).finish()
    }

    /// Runs a command that is to be done, and returns what it printed.
    ///
    /// # Panics
    /// When it is not done.
    #[track_caller]
    pub fn well(&self, words: &[&str]) -> String {
        let done = self.run(words);
        assert_eq!(done.code, Some(0), "{words:?}: {done:?}");
        done.stdout
    }

    /// The same with `--json`.
    ///
    /// # Panics
    /// When it is not done, or prints something else.
    #[track_caller]
    #[must_use]
    pub fn json(&self, words: &[&str]) -> Value {
        let printed = self.well(&[&["--json"], words].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{printed:?}: {error}"))
    }

    /// Runs a command that is to fail, and returns what it complained of.
    ///
    /// # Panics
    /// When it ends otherwise.
    #[track_caller]
    #[must_use]
    pub fn fails(&self, words: &[&str]) -> String {
        let done = self.run(words);
        assert_eq!(done.code, Some(1), "{words:?}: {done:?}");
        done.stderr
    }
}

/// A command under way.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    stdout: Transcript,
    stderr: Transcript,
}

impl Running {
    /// Interrupts it, as Ctrl-C does.
    pub fn interrupt(&self) {
        crate::host::run(&format!("kill -s INT {}", self.child.id()));
    }

    /// Waits until it has printed this.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_for(&self, text: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.stdout.text().contains(text) {
            assert!(Instant::now() < end, "{text:?} is not printed: {self:?}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not come in time.
    #[must_use]
    pub fn finish(mut self) -> Done {
        let end = Instant::now() + DEADLINE;
        let code = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status.code(),
                Ok(None) if Instant::now() < end => sleep(Duration::from_millis(20)),
                other => panic!("paddock ctl {}: {other:?}; {self:?}", self.what),
            }
        };
        // The readers see the ends of the pipes just after the process is gone.
        while !(self.stdout.is_complete() && self.stderr.is_complete()) && Instant::now() < end {
            sleep(Duration::from_millis(5));
        }
        Done {
            code,
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing of a test outlives it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
