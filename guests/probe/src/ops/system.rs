//! Who and what the guest is: `hello` and `info`. Read from `/proc` and `/sys`, which every guest has.

use crate::agent::Agent;
use crate::{port, sysfs};
use paddock_probe::protocol::{
    DiskInfo, HelloReply, InfoReply, MemoryRange, NicInfo, PciFunction, VERSION,
};

const CLOCKSOURCE: &str = "/sys/devices/system/clocksource/clocksource0";

/// Answers `hello`.
pub fn hello(agent: &Agent) -> HelloReply {
    HelloReply {
        protocol: VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: sysfs::text("/proc/sys/kernel/osrelease"),
        boot_id: sysfs::text("/proc/sys/kernel/random/boot_id"),
        uptime: uptime(),
        init: agent.init,
    }
}

fn uptime() -> f64 {
    let text = sysfs::text("/proc/uptime");
    text.split(' ')
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(0.0)
}

/// Answers `info`.
pub fn info() -> InfoReply {
    InfoReply {
        cpus: sysfs::online_cpus(),
        memory_kib: memory_kib(),
        memory_map: memory_map(),
        iomem: iomem(&sysfs::text("/proc/iomem")),
        cmdline: sysfs::text("/proc/cmdline"),
        clocksource: sysfs::text(format!("{CLOCKSOURCE}/current_clocksource")),
        clocksources: words(&sysfs::text(format!("{CLOCKSOURCE}/available_clocksource"))),
        pci: sysfs::names("/sys/bus/pci/devices")
            .iter()
            .map(|address| pci_function(address))
            .collect(),
        disks: disks(),
        nics: sysfs::names("/sys/class/net")
            .iter()
            .filter(|name| *name != "lo")
            .map(|name| nic(name))
            .collect(),
        ports: port::names(),
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(ToOwned::to_owned).collect()
}

fn memory_kib() -> u64 {
    let text = sysfs::text("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok())
        .unwrap_or(0)
}

fn memory_map() -> Vec<MemoryRange> {
    const MEMMAP: &str = "/sys/firmware/memmap";
    let mut ranges: Vec<MemoryRange> = sysfs::names(MEMMAP)
        .iter()
        .filter_map(|entry| {
            Some(MemoryRange {
                start: sysfs::hex(format!("{MEMMAP}/{entry}/start"))?,
                end: sysfs::hex(format!("{MEMMAP}/{entry}/end"))?,
                kind: sysfs::text(format!("{MEMMAP}/{entry}/type")),
            })
        })
        .collect();
    ranges.sort_by_key(|range| range.start);
    ranges
}

/// Lines such as `  00100000-7fffffff : System RAM`.
fn iomem(text: &str) -> Vec<MemoryRange> {
    text.lines()
        .filter_map(|line| {
            let (range, kind) = line.trim().split_once(" : ")?;
            let (start, end) = range.split_once('-')?;
            let (start, end) = (
                u64::from_str_radix(start, 16).ok()?,
                u64::from_str_radix(end, 16).ok()?,
            );
            Some(MemoryRange {
                start,
                end,
                kind: kind.to_owned(),
            })
        })
        .collect()
}

fn pci_function(address: &str) -> PciFunction {
    let path = format!("/sys/bus/pci/devices/{address}");
    let hex = |name: &str| sysfs::hex(format!("{path}/{name}")).unwrap_or(0);
    PciFunction {
        address: address.to_owned(),
        vendor: u16::try_from(hex("vendor")).unwrap_or(0),
        device: u16::try_from(hex("device")).unwrap_or(0),
        class: u32::try_from(hex("class")).unwrap_or(0),
        driver: sysfs::link(format!("{path}/driver")),
        msi: sysfs::names(format!("{path}/msi_irqs")).len(),
    }
}

fn disks() -> Vec<DiskInfo> {
    sysfs::names("/sys/block")
        .iter()
        .filter(|name| {
            !["loop", "ram", "zram"]
                .iter()
                .any(|virtual_name| name.starts_with(virtual_name))
        })
        .map(|name| disk(name))
        .collect()
}

fn disk(name: &str) -> DiskInfo {
    let path = format!("/sys/block/{name}");
    let queue = |file: &str| sysfs::number::<u64>(format!("{path}/queue/{file}")).unwrap_or(0);
    DiskInfo {
        name: name.to_owned(),
        // sysfs counts in 512 bytes whatever the device's block size.
        size: sysfs::number::<u64>(format!("{path}/size"))
            .unwrap_or(0)
            .saturating_mul(512),
        read_only: sysfs::text(format!("{path}/ro")) == "1",
        logical_block_size: u32::try_from(queue("logical_block_size")).unwrap_or(0),
        physical_block_size: u32::try_from(queue("physical_block_size")).unwrap_or(0),
        discard_max: queue("discard_max_bytes"),
        write_zeroes_max: queue("write_zeroes_max_bytes"),
        cache: sysfs::text(format!("{path}/queue/write_cache")),
        queues: sysfs::names(format!("{path}/mq")).len(),
        serial: sysfs::text(format!("{path}/serial")),
    }
}

fn nic(name: &str) -> NicInfo {
    let path = format!("/sys/class/net/{name}");
    let queues = sysfs::names(format!("{path}/queues"));
    let count = |prefix: &str| {
        queues
            .iter()
            .filter(|queue| queue.starts_with(prefix))
            .count()
    };
    let features = sysfs::text(format!("{path}/device/features"));
    NicInfo {
        name: name.to_owned(),
        mac: sysfs::text(format!("{path}/address")),
        mtu: sysfs::number(format!("{path}/mtu")).unwrap_or(0),
        rx_queues: count("rx-"),
        tx_queues: count("tx-"),
        features: (0..)
            .zip(features.chars())
            .filter(|(_, bit)| *bit == '1')
            .map(|(bit, _)| bit)
            .collect(),
        carrier: carrier(name),
    }
}

/// Whether a NIC's link is up; `None` while the interface is down, when the kernel does not say.
pub fn carrier(name: &str) -> Option<bool> {
    sysfs::number::<u8>(format!("/sys/class/net/{name}/carrier")).map(|carrier| carrier == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iomem_lines() {
        let ranges = iomem(
            "00000000-00000fff : Reserved\n  100000000-1ffffffff : System RAM\ngarbage\nx-y : z\n",
        );
        assert_eq!(ranges.len(), 2);
        assert_eq!(
            (ranges[1].start, ranges[1].end),
            (0x1_0000_0000, 0x1_ffff_ffff)
        );
        assert_eq!(ranges[1].kind, "System RAM");
    }
}
