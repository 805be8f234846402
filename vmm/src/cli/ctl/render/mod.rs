//! Answers as people read them: small tables, aligned, coloured on a terminal.
//!
//! Texts come from a server and through it from guests and users: see [`harmless`].

mod balloon;
mod cdroms;
mod cpus;
mod devices;
mod events;
mod jobs;
mod memory;
mod vm;
mod volumes;

use serde::Serialize;
use serde_json::Value;

pub use balloon::{balloon, statistics};
pub use cdroms::cdroms;
pub use cpus::cpus;
pub use devices::{disks, nics};
pub use events::event;
pub use jobs::{description, duration, jobs, outcome, stage, time};
pub use memory::memory;
pub use vm::vm;
pub use volumes::{replicas, snapshot_taken, snapshots};

use super::harmless;

/// Between columns.
const GAP: usize = 2;

/// What a text says by its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Colour {
    /// Nothing.
    #[default]
    None,
    /// It is a heading.
    Bold,
    /// It matters less.
    Dim,
    /// All is well.
    Green,
    /// Something is under way.
    Yellow,
    /// Something went wrong.
    Red,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Bold => "\x1b[1m",
            Self::Dim => "\x1b[2m",
            Self::Green => "\x1b[32m",
            Self::Yellow => "\x1b[33m",
            Self::Red => "\x1b[31m",
        }
    }

    /// Of a state, by its word.
    fn of_state(word: &str) -> Self {
        match word {
            "running" | "present" | "succeeded" | "powered-off" | "rw" => Self::Green,
            "starting" | "paused" | "resetting" | "stopping" | "adding" | "removing" | "reset"
            | "wo" => Self::Yellow,
            "failed" | "crashed" => Self::Red,
            _ => Self::None,
        }
    }
}

/// A text in a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cell {
    text: String,
    colour: Colour,
}

impl Cell {
    pub(in crate::cli) fn new(text: impl AsRef<str>) -> Self {
        Self {
            text: harmless::line(text.as_ref()),
            colour: Colour::None,
        }
    }

    pub(in crate::cli) fn coloured(text: impl AsRef<str>, colour: Colour) -> Self {
        Self {
            colour,
            ..Self::new(text)
        }
    }

    /// A state, which has its colour.
    fn state(state: &impl Serialize) -> Self {
        let word = word(state);
        let colour = Colour::of_state(&word);
        Self::coloured(word, colour)
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// The word that the API has for something, such as a state.
pub fn word(thing: &impl Serialize) -> String {
    match serde_json::to_value(thing) {
        Ok(Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// What will be printed.
#[derive(Debug, Clone, Default)]
pub struct Page {
    text: String,
    colours: bool,
}

impl Page {
    /// Nothing so far.
    pub fn new(colours: bool) -> Self {
        Self {
            text: String::new(),
            colours,
        }
    }

    /// All of it.
    pub fn into_text(self) -> String {
        self.text
    }

    /// An empty line.
    pub(in crate::cli) fn blank(&mut self) {
        self.text.push('\n');
    }

    /// A sentence, which may have words of others.
    pub(in crate::cli) fn sentence(&mut self, text: &str) {
        self.line(&[Cell::new(text)], &[]);
    }

    /// A table with a heading over each column. `none` is said where there are no rows.
    pub(in crate::cli) fn table(&mut self, headings: &[&str], rows: Vec<Vec<Cell>>, none: &str) {
        if rows.is_empty() {
            let none = Cell::coloured(none, Colour::Dim);
            return self.line(&[none], &[]);
        }
        let headings = headings.iter().map(|h| Cell::coloured(h, Colour::Bold));
        let mut lines = vec![headings.collect()];
        lines.extend(rows);
        self.lines(&lines);
    }

    /// Names and what they are, a line each; without those that are nothing.
    fn properties(&mut self, properties: Vec<(&str, Vec<Cell>)>) {
        let mut lines = Vec::new();
        for (name, values) in properties {
            for (index, value) in values.into_iter().enumerate() {
                let name = if index == 0 { name } else { "" };
                lines.push(vec![Cell::coloured(name, Colour::Bold), value]);
            }
        }
        self.lines(&lines);
    }

    fn lines(&mut self, lines: &[Vec<Cell>]) {
        let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(Cell::width).max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for line in lines {
            self.line(line, &widths);
        }
    }

    /// A line, its cells as wide as their columns; nothing after the last one that has a text.
    fn line(&mut self, cells: &[Cell], widths: &[usize]) {
        let last = cells.iter().rposition(|cell| !cell.text.is_empty());
        for (index, cell) in cells.iter().enumerate().take(last.map_or(0, |l| l + 1)) {
            self.cell(cell);
            if Some(index) != last {
                let width = widths.get(index).copied().unwrap_or_default();
                let padding = width.saturating_sub(cell.width()) + GAP;
                self.text.extend(std::iter::repeat_n(' ', padding));
            }
        }
        self.text.push('\n');
    }

    fn cell(&mut self, cell: &Cell) {
        let code = cell.colour.code();
        if self.colours && !code.is_empty() {
            self.text.push_str(code);
            self.text.push_str(&cell.text);
            self.text.push_str("\x1b[0m");
        } else {
            self.text.push_str(&cell.text);
        }
    }
}

/// Bytes in the largest unit of which there is one, with a tenth where it is not a whole number.
pub(in crate::cli) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 1)) > 0 {
        unit += 1;
    }
    let shift = 10 * unit;
    let whole = bytes >> shift;
    let rest = bytes - (whole << shift);
    if rest == 0 {
        return format!("{whole} {}", UNITS[unit]);
    }
    // Down, so that less than all never looks like all.
    let tenths = (u128::from(rest) * 10) >> shift;
    format!("{whole}.{tenths} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<Cell>> {
        vec![
            vec![Cell::new("a"), Cell::coloured("on", Colour::Green)],
            vec![Cell::new("longer\x1b[2J"), Cell::new(""), Cell::new("x")],
            vec![Cell::new("é")],
        ]
    }

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        let mut page = Page::new(false);
        page.table(&["ID", "STATE", "MORE"], rows(), "none");
        assert_eq!(
            page.into_text(),
            "ID               STATE  MORE\na                on\nlonger\\u{1b}[2J         x\né\n"
        );
    }

    #[test]
    fn colours_take_no_place() {
        let mut page = Page::new(true);
        page.table(&["ID", "STATE", "MORE"], rows(), "none");
        let text = page.into_text();
        assert!(
            text.contains("a                \x1b[32mon\x1b[0m\n"),
            "{text:?}"
        );
        assert!(!text.contains("\x1b[2J"));
        let mut page = Page::new(false);
        page.table(&["ID"], Vec::new(), "no disks");
        assert_eq!(page.into_text(), "no disks\n");
    }
}
