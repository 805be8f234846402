//! What the commands print on standard output.
//!
//! This is where it is seen to that nothing a server sent does anything to a terminal: whatever is printed is a [`Page`], which is harmless
//! by itself, or is made so here.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::rc::Rc;

use super::harmless;
use super::render::Page;
use crate::cli::colours;

/// Standard output, or what stands for it in tests.
#[derive(Clone)]
pub struct Output {
    stdout: Rc<RefCell<dyn Write>>,
    /// Someone looks at it through a terminal.
    terminal: bool,
    /// With ANSI colours.
    colours: bool,
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
        let terminal = stdout.is_terminal();
        Self {
            terminal,
            colours: terminal && colours::wanted(),
            ..Self::to(Rc::new(RefCell::new(stdout)), json)
        }
    }

    /// To somewhere else, without colours.
    pub fn to(stdout: Rc<RefCell<dyn Write>>, json: bool) -> Self {
        Self {
            stdout,
            terminal: false,
            colours: false,
            json,
        }
    }

    /// The same as if it were a terminal, without colours.
    #[cfg(test)]
    pub fn on_terminal(self) -> Self {
        Self {
            terminal: true,
            ..self
        }
    }

    /// Prints a page.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn print_page(&self, page: Page) -> io::Result<()> {
        self.print(&page.into_text())
    }

    /// Prints a sentence, which may have words of a server.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn print_sentence(&self, text: &str) -> io::Result<()> {
        self.print(&harmless::line(text))
    }

    /// Prints a text as a server sent it; only a terminal gets it made harmless.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn print_foreign(&self, text: &str) -> io::Result<()> {
        if self.terminal {
            self.print(&harmless::lines(text))
        } else {
            self.print(text)
        }
    }

    /// Prints a text that is JSON, terminal or not, as the same JSON.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn print_json(&self, json: &str) -> io::Result<()> {
        self.print(&harmless::json(json))
    }

    /// Prints text as it is, and a newline unless it ends in one.
    fn print(&self, text: &str) -> io::Result<()> {
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
