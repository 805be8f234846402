//! What the commands print: on standard output, and how far they are on standard error.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::rc::Rc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::render::{Page, harmless};
use crate::cli::colours;

/// Standard output, or what stands for it in tests.
#[derive(Clone)]
pub struct Output {
    stdout: Rc<RefCell<dyn Write>>,
    /// With ANSI colours.
    pub colours: bool,
    /// JSON instead of text.
    pub json: bool,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}

impl Output {
    /// Standard output.
    pub fn standard(json: bool) -> Self {
        let stdout = io::stdout();
        let colours = stdout.is_terminal() && colours::wanted();
        Self::to(Rc::new(RefCell::new(stdout)), colours, json)
    }

    /// To somewhere else.
    pub fn to(stdout: Rc<RefCell<dyn Write>>, colours: bool, json: bool) -> Self {
        Self {
            stdout,
            colours,
            json,
        }
    }

    /// Prints text as it is, and a newline unless it ends in one.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn print(&self, text: &str) -> io::Result<()> {
        let mut stdout = self.stdout.borrow_mut();
        stdout.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            stdout.write_all(b"\n")?;
        }
        stdout.flush()
    }

    /// A page to be filled and printed.
    pub fn page(&self) -> Page {
        Page::new(self.colours)
    }
}

/// A line on a terminal that tells what is waited for. Elsewhere it is not to be seen.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Begins. Standard error is where it is seen: standard output may be read by a program.
    pub fn start() -> Self {
        let target = if colours::capable() {
            // Hides itself where that is no terminal.
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        // The template is right, and there is a style by default.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// Tells this from now on.
    pub fn tell(&self, text: &str) {
        self.0.set_message(harmless(text));
        self.0.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
