//! Firecracker: devices on PCI, as the others have them; always with the page cache, since it knows nothing else.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{Boot, Guest};

/// Its guest is described in a file, which is to live as long as the process.
pub(super) fn guest(
    command: &mut Command,
    guest: &Guest,
    boot: &Boot,
) -> std::io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    file.write_all(configuration(guest, boot).to_string().as_bytes())?;
    command.arg("--enable-pci");
    command.arg("--config-file").arg(file.path());
    match &guest.api {
        Some(socket) => serve(command, socket),
        None => {
            command.arg("--no-api");
        }
    }
    Ok(file)
}

fn configuration(guest: &Guest, boot: &Boot) -> Value {
    let mut configuration = json!({
        "boot-source": {
            "kernel_image_path": boot.kernel,
            "initrd_path": boot.initramfs,
            "boot_args": boot.arguments,
        },
        "machine-config": {"vcpu_count": 1, "mem_size_mib": guest.memory},
        "drives": [],
        "entropy": {},
    });
    if let Some(disk) = &guest.disk {
        configuration["drives"] = json!([{
            "drive_id": "disk",
            "path_on_host": disk.path,
            "is_root_device": false,
            "is_read_only": false,
        }]);
    }
    if let Some(tap) = &guest.tap {
        configuration["network-interfaces"] = json!([{"iface_id": "net", "host_dev_name": tap}]);
    }
    configuration
}

pub(super) fn serve(command: &mut Command, socket: &Path) {
    command.arg("--api-sock").arg(socket);
}

/// What its API is asked first.
pub(super) const QUESTION: &str = "GET / HTTP/1.1\r\nHost: vm\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::vmm::Disk;

    #[test]
    fn the_file_describes_the_same_guest() {
        let wanted = Guest {
            memory: 256,
            disk: Some(Disk {
                path: "/disk.raw".into(),
                direct: false,
            }),
            tap: Some("bench0".to_owned()),
            ..Guest::default()
        };
        let boot = Boot {
            kernel: "/vmlinux".into(),
            initramfs: "/initramfs.cpio".into(),
            arguments: "console=ttyS0".to_owned(),
        };
        let mut command = Command::new("firecracker");
        let file = guest(&mut command, &wanted, &boot).unwrap();
        let read: Value =
            serde_json::from_str(&std::fs::read_to_string(file.path()).unwrap()).unwrap();
        assert_eq!(read["machine-config"]["mem_size_mib"], 256);
        assert_eq!(read["boot-source"]["boot_args"], "console=ttyS0");
        assert_eq!(read["drives"][0]["path_on_host"], "/disk.raw");
        assert_eq!(read["network-interfaces"][0]["host_dev_name"], "bench0");
        let arguments: Vec<_> = command.get_args().collect();
        assert!(arguments.contains(&"--no-api".as_ref()), "{arguments:?}");
    }
}
