//! `paddock completion` and `paddock man`: made from what the command line is made from, so that they never tell something else.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::aot::{Bash, Fish, Zsh, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::args::{Cli, CompletionArgs, ManArgs, Shell};
use super::{Status, fail};

/// `paddock completion`
pub(super) fn completion(args: &CompletionArgs) -> Status {
    print(&completion_for(args.shell))
}

/// `paddock man`
pub(super) fn man(args: &ManArgs) -> Status {
    if let Some(directory) = &args.dir {
        return match write_all(directory) {
            Ok(()) => Status::Success,
            Err(error) => fail(Status::Error, &format!("{}: {error}", directory.display())),
        };
    }
    match page(&args.command) {
        Some(page) => print(&page),
        None => {
            let words = args.command.join(" ");
            fail(Status::Usage, &format!("there is no command {words:?}"))
        }
    }
}

fn completion_for(shell: Shell) -> Vec<u8> {
    let mut command = Cli::command();
    let mut script = Vec::new();
    let name = "paddock";
    match shell {
        Shell::Bash => generate(Bash, &mut command, name, &mut script),
        Shell::Zsh => generate(Zsh, &mut command, name, &mut script),
        Shell::Fish => generate(Fish, &mut command, name, &mut script),
    }
    script
}

/// The whole command line, each command with its full name.
fn all() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

/// The page of the command with this name, if there is one.
fn page(words: &[String]) -> Option<Vec<u8>> {
    let mut command = all();
    for word in words {
        command = command.find_subcommand(word)?.clone();
    }
    render(&command).ok()
}

fn render(command: &Command) -> io::Result<Vec<u8>> {
    let notes = command
        .get_after_long_help()
        .or(command.get_after_help())
        .map(ToString::to_string);
    let command = command.clone().after_help(None).after_long_help(None);
    let mut page = Vec::new();
    Man::new(command)
        // A command has no version of its own.
        .source(concat!("paddock ", env!("CARGO_PKG_VERSION")))
        .manual("Paddock")
        .render(&mut page)?;
    sections(&notes.unwrap_or_default()).to_writer(&mut page)?;
    Ok(page)
}

/// The notes at the end of a help as sections of a page. Lines at the left edge are their headings. Long lines are prose; short ones, such
/// as examples, stay as they are.
fn sections(notes: &str) -> Roff {
    const LONG: usize = 78;
    let mut page = Roff::new();
    let mut verbatim = false;
    for line in notes.lines() {
        let text = line.strip_prefix("  ").unwrap_or(line);
        let is_heading = !line.is_empty() && !line.starts_with(' ');
        let is_prose = is_heading || text.len() > LONG;
        match (verbatim, is_prose) {
            (true, true) => page.control("fi", []),
            (false, false) => page.control("nf", []),
            _ => &mut page,
        };
        verbatim = !is_prose;
        if is_heading {
            let heading = text.to_uppercase();
            page.control("SH", [heading.as_str()]);
        } else {
            page.text([roman(text)]);
        }
    }
    if verbatim {
        page.control("fi", []);
    }
    page
}

/// Writes the pages of all commands.
fn write_all(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut commands = vec![all()];
    while let Some(command) = commands.pop() {
        let name = command.get_display_name().unwrap_or(command.get_name());
        fs::write(directory.join(format!("{name}.1")), render(&command)?)?;
        commands.extend(command.get_subcommands().cloned());
    }
    Ok(())
}

fn print(text: &[u8]) -> Status {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        // Whoever reads only the first lines has what they wanted.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            fail(Status::Error, &format!("printing: {error}"))
        }
        _ => Status::Success,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn each_shell_completes_commands_and_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = text(completion_for(shell));
            for word in ["doctor", "power-button", "api-socket", "initramfs"] {
                assert!(script.contains(word), "{word} for {shell:?}");
            }
            // clap_complete knows no flags this deep in fish, only the words that lead there.
            assert_eq!(script.contains("deadline"), shell != Shell::Fish);
        }
    }

    #[test]
    fn pages_say_what_the_help_says() {
        let page = |line| page(&words(line)).map(text);
        let all = page("").unwrap();
        assert!(all.contains(".TH paddock 1"), "{all}");
        let run = page("run").unwrap();
        assert!(
            run.contains("paddock\\-run") && run.contains("hugepages"),
            "{run}"
        );
        let add = page("ctl disks add").unwrap();
        assert!(
            add.contains(".TH paddock-ctl-disks-add 1  \"paddock ")
                && add.contains("readonly=on|off"),
            "{add}"
        );
        let ctl = page("ctl").unwrap();
        assert!(
            ctl.contains(".SH \"EXIT STATUS\"\n.nf\n0  done\n1  the call or the job failed"),
            "{ctl}"
        );
        assert!(!ctl.contains("EXTRA"), "{ctl}");
        assert_eq!(page("ctl disk eject"), None);
    }

    #[test]
    fn all_pages_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("share/man1");
        write_all(&directory).unwrap();
        let pages = fs::read_dir(&directory).unwrap();
        let names: Vec<_> = pages.map(|page| page.unwrap().file_name()).collect();
        for name in [
            "paddock.1",
            "paddock-doctor.1",
            "paddock-ctl.1",
            "paddock-ctl-vm-create.1",
        ] {
            assert!(names.iter().any(|n| n == name), "{name}: {names:?}");
        }
    }
}
