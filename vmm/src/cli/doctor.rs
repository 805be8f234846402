//! `paddock doctor`: looks at the host and prints what it found.

use std::io::{self, IsTerminal, Write};

use super::args::DoctorArgs;
use super::{Status, colours, fail};
use crate::doctor::report::Report;
use crate::doctor::{self, Style};

/// Columns of what is not a terminal, and of a wide one.
const MAX_WIDTH: usize = 100;

/// `paddock doctor`
pub(super) fn run(args: &DoctorArgs) -> Status {
    let report = doctor::examine(&args.directory);
    let text = if args.json {
        json(&report)
    } else {
        Ok(doctor::print(&report, style()))
    };
    let printed = text.and_then(|text| {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    });
    match printed {
        // Whoever reads only the first lines (head, grep -q) has what they wanted; the status still tells.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(Status::Error, &format!("printing the report: {error}"))
        }
        _ if report.can_run => Status::Success,
        _ => Status::Error,
    }
}

fn json(report: &Report) -> io::Result<String> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    Ok(text)
}

fn style() -> Style {
    let stdout = io::stdout();
    let width = rustix::termios::tcgetwinsize(&stdout)
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0)
        .unwrap_or(MAX_WIDTH);
    Style {
        colours: stdout.is_terminal() && colours::wanted(),
        width: width.min(MAX_WIDTH),
    }
}
