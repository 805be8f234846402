//! The report, for people: a line a check, and below what is not well what it means and how to mend it.

use std::fmt::Write;

use super::report::{Check, Fix, Report, Verdict};

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// With ANSI colours.
    pub colours: bool,
    /// Columns of the terminal. Text is wrapped to them, commands are not.
    pub width: usize,
}

/// Columns that the verdict and the name of a check take.
const INDENT: usize = 36;
/// Text is never narrower than this.
const MIN_TEXT: usize = 30;

const RESET: &str = "\x1b[0m";
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const CYAN: &str = "\x1b[36m";

/// The report as text, with a newline at its end.
#[must_use]
pub fn print(report: &Report, style: Style) -> String {
    let mut page = Page {
        text: String::new(),
        style,
    };
    for group in &report.groups {
        page.paint(BOLD, group.title);
        page.line();
        for check in &group.checks {
            page.check(check);
        }
        page.line();
    }
    page.summary(report);
    page.text
}

struct Page {
    text: String,
    style: Style,
}

impl Page {
    fn line(&mut self) {
        self.text.push('\n');
    }

    /// Adds text that may come from the host: what a terminal would obey is made harmless.
    fn plain(&mut self, text: &str) {
        self.text
            .extend(text.chars().map(|c| if c.is_control() { '?' } else { c }));
    }

    fn paint(&mut self, colour: &str, text: &str) {
        if self.style.colours {
            self.text.push_str(colour);
            self.plain(text);
            self.text.push_str(RESET);
        } else {
            self.plain(text);
        }
    }

    fn indent(&mut self) {
        self.text.extend(std::iter::repeat_n(' ', INDENT));
    }

    /// Text that is wrapped, with the first line's start already there.
    fn wrapped(&mut self, text: &str, colour: &str) {
        let width = self.style.width.saturating_sub(INDENT).max(MIN_TEXT);
        for (number, line) in wrap(text, width).iter().enumerate() {
            if number > 0 {
                self.indent();
            }
            self.paint(colour, line);
            self.line();
        }
    }

    fn check(&mut self, check: &Check) {
        let colour = match check.verdict {
            Verdict::Ok => GREEN,
            Verdict::Missing if check.blocks => RED,
            Verdict::Degraded | Verdict::Missing => YELLOW,
            Verdict::Unknown => CYAN,
        };
        self.text.push_str("  ");
        self.paint(colour, &format!("{:<10}", check.verdict.name()));
        let _ = write!(self.text, "{:<width$}", check.name, width = INDENT - 12);
        match &check.subject {
            Some(subject) => self.wrapped(&format!("{subject}: {}", check.found), ""),
            None => self.wrapped(&check.found, ""),
        }
        if check.verdict == Verdict::Ok {
            return;
        }
        if let Some(means) = &check.means {
            self.indent();
            self.wrapped(means, DIM);
        }
        if let Some(fix) = &check.fix {
            self.fix(fix);
        }
    }

    fn fix(&mut self, fix: &Fix) {
        self.indent();
        self.wrapped(&format!("Fix: {}", fix.text), "");
        for command in &fix.commands {
            self.indent();
            self.text.push_str("  ");
            self.paint(CYAN, command);
            self.line();
        }
    }

    fn summary(&mut self, report: &Report) {
        let counts = report.counts;
        if report.can_run {
            self.paint(GREEN, "VMs can run on this host.");
        } else {
            self.paint(RED, "No VM can run on this host");
            let blocking: Vec<_> = report
                .groups
                .iter()
                .flat_map(|group| {
                    group
                        .checks
                        .iter()
                        .filter(|check| check.blocks)
                        .map(|check| format!("{}, {}", group.title, check.name))
                })
                .collect();
            self.plain(&format!(" until this is mended: {}.", blocking.join("; ")));
        }
        self.plain(&format!(
            " {} ok, {} degraded, {} missing, {} unknown.",
            counts.ok, counts.degraded, counts.missing, counts.unknown
        ));
        self.line();
    }
}

/// Breaks text at spaces. A word that is too long has a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines.push(String::new());
            used = 0;
        }
        let Some(line) = lines.last_mut() else { break };
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += length;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::Group;

    fn report() -> Report {
        let checks = vec![
            Check::ok("fine", "all is well").means("never printed"),
            Check::blocked("broken", "it \x1b[31m is\nnot there", "No VM.")
                .about("br0")
                .fix(Fix::commands(
                    "Do this, which is long enough to be wrapped:",
                    ["echo 'KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"' > /etc/udev/rules.d/x"],
                )),
        ];
        let group = Group {
            name: "g",
            title: "Group",
            checks,
        };
        Report::new(None, vec![group])
    }

    #[test]
    fn a_page() {
        let style = Style {
            colours: false,
            width: 70,
        };
        let page = print(&report(), style);
        assert_eq!(
            page,
            "\
Group
  ok        fine                    all is well
  missing   broken                  br0: it ?[31m is not there
                                    No VM.
                                    Fix: Do this, which is long enough
                                    to be wrapped:
                                      echo 'KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"' > /etc/udev/rules.d/x

No VM can run on this host until this is mended: Group, broken. 1 ok, 0 degraded, 1 missing, 0 unknown.
"
        );
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        let page = |colours| print(&report(), Style { colours, width: 80 });
        assert!(!page(false).contains('\x1b'));
        assert!(page(true).contains("\x1b[31mmissing"));
        assert!(!page(true).contains("\x1b[31m is"));
    }

    #[test]
    fn wrapping() {
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("a bb ccc", 4), ["a bb", "ccc"]);
        assert_eq!(wrap("abcdefgh i", 4), ["abcdefgh", "i"]);
    }
}
