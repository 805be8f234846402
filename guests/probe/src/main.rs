//! `paddock-probe`: does inside a guest what a test on the host asks for, and answers.
//!
//! As process 1 of an initramfs it is the guest's init ([`init`]): it mounts what is needed, loads the modules, starts
//! itself once more as the agent, and reaps. As the agent ([`agent`]) it serves the protocol on a virtio console port; a
//! full distribution runs just that as a service. Asked to, it attacks the guest's devices ([`attack`]).
//!
//! It trusts nobody less than itself: the host may send anything and a mistake is answered with an error. But it has
//! all of the guest's rights and gives them to whoever holds the host's end of the port.

mod agent;
mod attack;
mod init;
mod measure;
mod ops;
mod port;
mod sysfs;

use std::process::ExitCode;

const USAGE: &str = "\
paddock-probe: serves Paddock's tests from inside a guest

usage: paddock-probe            wait for the virtio console port `paddock.probe` and serve it
       paddock-probe --attack DEVICE [GROUP]...
                                attack a virtio device (blk, net, console, rng, balloon, mem, scsi) as a hostile driver would:
                                takes it from the kernel, prints a line of JSON for each case, gives it back
       paddock-probe --version  print the version

As process 1 it is also the guest's init.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let first = arguments.first().map(String::as_str);
    if std::process::id() == 1 {
        // The kernel hands init what it does not know of its command line: no arguments of ours.
        return init::run();
    }
    match first {
        None => agent::run(false),
        Some(init::AGENT) => agent::run(true),
        Some(attack::ATTACK) => attack::main(&arguments[1..]),
        Some("--version") => {
            println!("paddock-probe {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some("--help" | "-h") => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprintln!("paddock-probe: unknown argument '{other}'\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
