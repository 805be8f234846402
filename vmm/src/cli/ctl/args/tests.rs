//! What is no command line of `paddock ctl`, and what its help tells.

use clap::Parser;

use super::*;
use crate::cli::args::Cli;

fn parse(words: &str) -> Result<Cli, clap::Error> {
    let words = words.split_whitespace();
    Cli::try_parse_from(["paddock", "ctl"].into_iter().chain(words))
}

#[test]
fn usage_errors() {
    for words in [
        "",
        "vm",
        "vm create",
        "vm create --kernel k --no-wait --max-wait 3",
        "vm power-button --max-wait 3",
        "disks add",
        "disks add a --spec b",
        "disks remove",
        "disks remove a --deadline 0",
        "disks remove a --deadline 3601",
        "nics add",
        "cdroms insert cdrom0",
        "cdroms eject",
        "balloon set 3MB",
        "balloon set",
        "cpus set",
        "cpus set two",
        "cpus set 2 --deadline 0",
        "memory set",
        "memory set 1GB",
        "jobs show three",
        "jobs wait -1",
        "events --after x",
        "events --count 0",
        "vm show --timeout 0",
        "vm show extra",
    ] {
        assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words}");
    }
    for words in [
        "disk list --json",
        "nic show lan",
        "cdrom eject cdrom0 --force",
        "--json job wait 3 --max-wait 5",
        "vm create --spec - --timeout 3 --api-socket s",
    ] {
        assert!(parse(words).is_ok(), "{words}");
    }
}

#[test]
fn help_tells_what_matters() {
    let help = parse("--help").unwrap_err().to_string();
    for text in ["Exit status", "Examples", SOCKET_VARIABLE, "--json", "Jobs"] {
        assert!(help.contains(text), "{text} is not in\n{help}");
    }
}
