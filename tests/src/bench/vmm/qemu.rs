//! Debian's QEMU, machine q35, as libvirt configures it for speed: an I/O thread, `io_uring`, and the page cache bypassed where the disk can.

use std::path::Path;
use std::process::Command;

use super::{Boot, Firmware, Guest};

const QUIET: [&str; 4] = ["-nodefaults", "-no-user-config", "-display", "none"];
/// With the devices that every q35 has, whatever boots it.
const MACHINE: [&str; 2] = ["-machine", "q35,accel=kvm"];

pub(super) fn guest(command: &mut Command, guest: &Guest, boot: &Boot) {
    command.args(MACHINE);
    machine(command, guest);
    command.args(["-append", &boot.arguments]);
    command.arg("-kernel").arg(&boot.kernel);
    command.arg("-initrd").arg(&boot.initramfs);
}

pub(super) fn guest_of_firmware(command: &mut Command, guest: &Guest, firmware: &Firmware) {
    command.args(MACHINE);
    machine(command, guest);
    for (unit, how, path) in [
        (0, "readonly=on", &firmware.code),
        (1, "readonly=off", &firmware.variables),
    ] {
        let flash = format!(
            "if=pflash,format=raw,unit={unit},{how},file={}",
            path.display()
        );
        command.args(["-drive", &flash]);
    }
    let oem_string = format!("type=11,value={}", firmware.oem_string);
    command.args(["-smbios", &oem_string]);
}

fn machine(command: &mut Command, guest: &Guest) {
    let memory = format!("{}M", guest.memory);
    command.args(QUIET).args(["-cpu", "host", "-smp", "1"]);
    command.args(["-m", &memory, "-serial", "stdio"]);
    if let Some(disk) = &guest.disk {
        let cache = if disk.direct { "none" } else { "writeback" };
        let path = disk.path.display();
        let drive = format!("if=none,id=disk,format=raw,aio=io_uring,cache={cache},file={path}");
        command.args(["-object", "iothread,id=io", "-drive", &drive]);
        command.args(["-device", "virtio-blk-pci,drive=disk,iothread=io"]);
    }
    if let Some(tap) = &guest.tap {
        let netdev = format!("tap,id=net,ifname={tap},script=no,downscript=no");
        command.args(["-netdev", &netdev]);
        command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    }
    if let Some(socket) = &guest.api {
        api(command, socket);
    }
    command.args(["-device", "virtio-rng-pci"]);
}

pub(super) fn serve(command: &mut Command, socket: &Path) {
    // Without KVM, which what only waits to be told to go on does not need.
    command.args(QUIET).args(["-machine", "q35,accel=tcg"]);
    command.args(["-cpu", "max", "-S", "-m", "256M"]);
    api(command, socket);
}

fn api(command: &mut Command, socket: &Path) {
    let place = format!("unix:{},server=on,wait=off", socket.display());
    command.args(["-qmp", &place]);
}

/// It greets by itself.
pub(super) const QUESTION: &str = "";
