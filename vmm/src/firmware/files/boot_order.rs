//! The boot order, as firmware reads it: lines of Open Firmware device paths, which is how QEMU names PCI devices.
//!
//! OVMF puts its boot options into this order, drops those that no line names, and skips lines for what it does not find.

use paddock_devices::pci::DeviceFunction;

/// Something to boot from, by its place on PCI bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootPlace {
    /// A virtio-blk disk.
    Disk(DeviceFunction),
    /// A disk or CD behind a virtio-scsi controller.
    Scsi {
        /// The controller.
        controller: DeviceFunction,
        /// SCSI target.
        target: u16,
        /// Logical unit.
        lun: u16,
    },
    /// A NIC, to boot from the network.
    Network(DeviceFunction),
}

impl BootPlace {
    fn path(self) -> String {
        let (node, place, rest) = match self {
            Self::Disk(place) => ("scsi", place, "disk@0,0".to_owned()),
            Self::Scsi {
                controller,
                target,
                lun,
            } => (
                "scsi",
                controller,
                format!("channel@0/disk@{target:x},{lun:x}"),
            ),
            Self::Network(place) => ("ethernet", place, "ethernet-phy@0".to_owned()),
        };
        let function = match place.function() {
            0 => String::new(),
            function => format!(",{function:x}"),
        };
        let device = place.device();
        format!("/pci@i0cf8/{node}@{device:x}{function}/{rest}")
    }
}

/// The file `bootorder`: a line for each, the first choice first, and a NUL at the end.
#[must_use]
pub fn list(places: &[BootPlace]) -> Vec<u8> {
    let lines: Vec<_> = places.iter().map(|place| place.path()).collect();
    let mut file = lines.join("\n").into_bytes();
    file.push(0);
    file
}
