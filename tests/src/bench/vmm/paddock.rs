//! Ours.

use std::path::Path;
use std::process::Command;

use super::{Boot, Firmware, Guest};

pub(super) fn guest(command: &mut Command, guest: &Guest, boot: &Boot) {
    machine(command, guest);
    command.args(["--cmdline", &boot.arguments]);
    command.arg("--kernel").arg(&boot.kernel);
    command.arg("--initramfs").arg(&boot.initramfs);
}

pub(super) fn guest_of_firmware(command: &mut Command, guest: &Guest, firmware: &Firmware) {
    machine(command, guest);
    command.arg("--firmware").arg(&firmware.code);
    command.arg("--variables").arg(&firmware.variables);
    command.args(["--oem-string", &firmware.oem_string]);
}

fn machine(command: &mut Command, guest: &Guest) {
    let memory = format!("{}M", guest.memory);
    command.args(["run", "--cpus", "1", "--memory", &memory]);
    if let Some(disk) = &guest.disk {
        command.arg("--disk").arg(&disk.path);
    }
    if let Some(tap) = &guest.tap {
        command.args(["--net", &format!("tap={tap}")]);
    }
    if let Some(socket) = &guest.api {
        command.arg("--api-socket").arg(socket);
    }
}

pub(super) fn serve(command: &mut Command, socket: &Path) {
    command.args(["serve", "--api-socket"]).arg(socket);
}

/// What its API is asked first.
pub(super) const QUESTION: &str = "GET /api/v1/vm HTTP/1.1\r\nHost: vm\r\n\r\n";
