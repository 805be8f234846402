//! Cloud Hypervisor.

use std::path::Path;
use std::process::Command;

use super::{Boot, Guest};

pub(super) fn guest(command: &mut Command, guest: &Guest, boot: &Boot) {
    let memory = format!("size={}M", guest.memory);
    command.args(["--cpus", "boot=1", "--memory", &memory]);
    command.args(["--serial", "tty", "--console", "off"]);
    command.args(["--cmdline", &boot.arguments]);
    command.arg("--kernel").arg(&boot.kernel);
    command.arg("--initramfs").arg(&boot.initramfs);
    if let Some(disk) = &guest.disk {
        let direct = if disk.direct { "on" } else { "off" };
        let value = format!("path={},direct={direct}", disk.path.display());
        command.args(["--disk", &value]);
    }
    if let Some(tap) = &guest.tap {
        command.args(["--net", &format!("tap={tap}")]);
    }
    if let Some(socket) = &guest.api {
        serve(command, socket);
    }
}

pub(super) fn serve(command: &mut Command, socket: &Path) {
    command.arg("--api-socket").arg(socket);
}

/// What its API is asked first.
pub(super) const QUESTION: &str = "GET /api/v1/vmm.ping HTTP/1.1\r\nHost: vm\r\n\r\n";
