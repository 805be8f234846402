//! Ways for the guest to end: power-off, reset, halt, crash.

use super::Result;
use paddock_probe::protocol::{CrashKind, RebootMethod};
use rustix::system::RebootCommand;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

const REBOOT_TYPE: &str = "/sys/kernel/reboot/type";
const SYSRQ: &str = "/proc/sysrq-trigger";

/// How the guest is to end.
#[derive(Debug, Clone, Copy)]
pub enum Ending {
    PowerOff,
    Reboot(Option<RebootMethod>),
    Halt,
    Crash(CrashKind),
}

/// What can still be refused is done here, while an answer can be given.
pub fn prepare(ending: Ending) -> Result<()> {
    let method = match ending {
        Ending::Reboot(Some(RebootMethod::Acpi)) => "acpi",
        Ending::Reboot(Some(RebootMethod::Kbd)) => "kbd",
        Ending::Reboot(Some(RebootMethod::Pci)) => "pci",
        Ending::Reboot(Some(RebootMethod::Efi)) => "efi",
        Ending::Reboot(Some(RebootMethod::Triple)) | Ending::Crash(CrashKind::TripleFault) => {
            "triple"
        }
        _ => return Ok(()),
    };
    fs::write(REBOOT_TYPE, method)
        .map_err(|error| format!("cannot choose '{method}' in {REBOOT_TYPE}: {error}"))
}

/// Ends the guest. Returns where that failed, or where a distribution's init has been asked and will take its time.
pub fn perform(ending: Ending, init: bool) -> io::Result<()> {
    let (command, verb) = match ending {
        Ending::Crash(CrashKind::Panic) => return fs::write(SYSRQ, "c"),
        // Not through reboot(2), which would still shut the devices down in good order.
        Ending::Crash(CrashKind::TripleFault) => return fs::write(SYSRQ, "b"),
        Ending::PowerOff => (RebootCommand::PowerOff, "poweroff"),
        Ending::Halt => (RebootCommand::Halt, "halt"),
        Ending::Reboot(_) => (RebootCommand::Restart, "reboot"),
    };
    if !init && Path::new("/run/systemd/system").is_dir() {
        let status = Command::new("systemctl")
            .args(["--no-block", verb])
            .status()?;
        return if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("systemctl {verb}: {status}")))
        };
    }
    rustix::fs::sync();
    Ok(rustix::system::reboot(command)?)
}
