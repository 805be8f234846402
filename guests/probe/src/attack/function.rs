//! A PCI function taken from the kernel's driver, through sysfs; given back, with its BAR where it was, when dropped.

use super::mapping::Mapping;
use paddock_probe::hostile::Kind;
use paddock_probe::hostile::machine::Function;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::sysfs;

const DEVICES: &str = "/sys/bus/pci/devices";
/// How long the kernel's driver may take to let a device go.
const LET_GO: Duration = Duration::from_secs(20);

const COMMAND: u16 = 0x04;
/// Memory decoding and bus mastering.
const COMMAND_ON: u32 = 0b110;
const BAR0: u16 = 0x10;

/// The virtio functions there are, by address.
pub fn list() -> Vec<(String, Kind)> {
    let id = |address: &str, name: &str| {
        let value = sysfs::hex(format!("{DEVICES}/{address}/{name}"))?;
        u16::try_from(value).ok()
    };
    let kind = |address: &str| Kind::of(id(address, "vendor")?, id(address, "device")?);
    sysfs::names(DEVICES)
        .into_iter()
        .filter_map(|address| kind(&address).map(|kind| (address, kind)))
        .collect()
}

/// A function without the kernel's driver.
#[derive(Debug)]
pub struct Taken {
    address: String,
    config: File,
    bar: Mapping,
    home: [u32; 2],
}

impl Taken {
    /// Takes the function at a PCI address.
    ///
    /// # Errors
    /// When its driver does not let go, or it cannot be mapped. The driver has it back then.
    pub fn new(address: &str) -> Result<Self, String> {
        if let Some(disk) = mounted_disk(address) {
            return Err(format!(
                "{disk} on {address} is mounted: its guest needs it"
            ));
        }
        unbind(address)?;
        let taken = Self::open(address).map_err(|error| format!("{DEVICES}/{address}: {error}"));
        if taken.is_err() {
            bind(address);
        }
        taken
    }

    fn open(address: &str) -> io::Result<Self> {
        let open = |name: &str| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(format!("{DEVICES}/{address}/{name}"))
                .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
        };
        let (config, resource) = (open("config")?, open("resource0")?);
        let length = usize::try_from(resource.metadata()?.len()).unwrap_or(0);
        let bar = Mapping::of_file(&resource, 0, length)
            .map_err(|error| io::Error::other(format!("mapping resource0: {error}")))?;
        let mut taken = Self {
            address: address.to_owned(),
            config,
            bar,
            home: [0; 2],
        };
        taken.home = [BAR0, BAR0 + 4].map(|register| taken.read_config(register, 4));
        taken.switch_on();
        Ok(taken)
    }

    fn switch_on(&self) {
        let command = self.read_config(COMMAND, 2) | COMMAND_ON;
        self.write_config(COMMAND, 2, command);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // The upper half first, as when it is moved: on the way it is nowhere that matters.
        self.write_config(BAR0 + 4, 4, self.home[1]);
        self.write_config(BAR0, 4, self.home[0]);
        self.switch_on();
        bind(&self.address);
    }
}

impl Function for Taken {
    fn read_config(&self, offset: u16, width: usize) -> u32 {
        let mut bytes = [0; 4];
        match self
            .config
            .read_exact_at(&mut bytes[..width.min(4)], offset.into())
        {
            Ok(()) => u32::from_le_bytes(bytes),
            Err(_) => u32::MAX >> (32 - 8 * width.clamp(1, 4)),
        }
    }
    fn write_config(&self, offset: u16, width: usize, value: u32) {
        // Behind the end nothing is there to be written.
        let _ = self
            .config
            .write_all_at(&value.to_le_bytes()[..width.min(4)], offset.into());
    }
    fn read_bar(&self, offset: u64, width: usize) -> u64 {
        self.bar
            .read(usize::try_from(offset).unwrap_or(usize::MAX), width)
    }
    fn write_bar(&self, offset: u64, width: usize, value: u64) {
        self.bar
            .write(usize::try_from(offset).unwrap_or(usize::MAX), width, value);
    }
    fn bar_length(&self) -> u64 {
        self.bar.length() as u64
    }
}

/// The function's disk, if a file system on it is mounted.
fn mounted_disk(address: &str) -> Option<String> {
    let directory = format!("{DEVICES}/{address}");
    let mounts = sysfs::text("/proc/mounts");
    sysfs::names(&directory)
        .into_iter()
        .filter(|name| name.starts_with("virtio"))
        .flat_map(|virtio| sysfs::names(format!("{directory}/{virtio}/block")))
        .find(|disk| is_mounted(&mounts, disk))
}

/// Whether a disk, or a partition of it, is in a list of mounts.
fn is_mounted(mounts: &str, disk: &str) -> bool {
    mounts.lines().any(|line| {
        let device = line.split_whitespace().next().unwrap_or_default();
        device
            .strip_prefix("/dev/")
            .and_then(|name| name.strip_prefix(disk))
            .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// Takes a function from its driver, if it has one.
fn unbind(address: &str) -> Result<(), String> {
    let driver = format!("{DEVICES}/{address}/driver");
    if sysfs::link(&driver).is_empty() {
        return Ok(());
    }
    std::fs::write(format!("{driver}/unbind"), address)
        .map_err(|error| format!("{driver}/unbind: {error}"))?;
    let end = Instant::now() + LET_GO;
    while !sysfs::link(&driver).is_empty() {
        if Instant::now() > end {
            return Err(format!("the driver of {address} does not let go of it"));
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Has the kernel look for a driver again.
fn bind(address: &str) {
    if let Err(error) = std::fs::write("/sys/bus/pci/drivers_probe", address) {
        eprintln!("paddock-probe: giving {address} back: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::is_mounted;

    #[test]
    fn a_mounted_disk_is_seen() {
        let mounts = "proc /proc proc rw 0 0\n/dev/vda1 / ext4 rw 0 0\n/dev/vdba /mnt ext4 rw 0 0";
        assert!(is_mounted(mounts, "vda"));
        assert!(is_mounted(mounts, "vdba"));
        assert!(!is_mounted(mounts, "vdb"));
        assert!(!is_mounted("", "vda"));
    }
}
