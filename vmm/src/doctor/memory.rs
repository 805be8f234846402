//! What guest RAM is made of: free memory, huge pages, the kernel's accounting.

use super::host::{Host, size};
use super::report::{Check, Fix, Group};
use crate::layout::RAM_SIZE_MIN;

/// Pools of huge pages that Paddock can use: the size of a page in KiB, as `--memory` has it, and the check's name.
const POOLS: [(u64, &str, &str); 2] = [
    (2 << 10, "2M", "huge-pages-2m"),
    (1 << 20, "1G", "huge-pages-1g"),
];

/// Looks at the host's memory.
#[must_use]
pub fn examine(host: &Host) -> Group {
    let information = Information::of(host);
    let mut checks = vec![available(&information), transparent(host)];
    checks.extend(POOLS.map(|(kib, name, check)| pool(host, kib, name, check)));
    checks.push(overcommit(host, &information));
    Group {
        name: "memory",
        title: "Memory",
        checks,
    }
}

/// `/proc/meminfo`, in bytes.
struct Information(String);

impl Information {
    fn of(host: &Host) -> Self {
        Self(host.text("/proc/meminfo").unwrap_or_default())
    }

    fn bytes(&self, name: &str) -> Option<u64> {
        let line = self
            .0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        kib.checked_mul(1024)
    }
}

fn available(information: &Information) -> Check {
    const NAME: &str = "available";
    let (Some(total), Some(available)) = (
        information.bytes("MemTotal"),
        information.bytes("MemAvailable"),
    ) else {
        return Check::unknown(
            NAME,
            "/proc/meminfo does not tell",
            "A guest that is larger than what is free is killed when it fills its RAM.",
        );
    };
    let found = format!("{} of {} are available", size(available), size(total));
    let check = if available < RAM_SIZE_MIN {
        Check::degraded(
            NAME,
            found,
            format!(
                "The smallest VM has {}: the kernel may kill processes when it fills them.",
                size(RAM_SIZE_MIN)
            ),
        )
        .fix(Fix::text(
            "Stop something, or give this host more memory or swap.",
        ))
    } else {
        Check::ok(NAME, found)
    };
    check
        .fact("total_bytes", total)
        .fact("available_bytes", available)
}

fn transparent(host: &Host) -> Check {
    const NAME: &str = "transparent-huge-pages";
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let text = host.text(FILE);
    // "always [madvise] never"
    let chosen = text
        .as_deref()
        .and_then(|text| text.split_once('[')?.1.split_once(']'))
        .map(|(chosen, _)| chosen);
    let check = match chosen {
        Some(way @ ("always" | "madvise")) => {
            Check::ok(NAME, format!("{way}: guest RAM gets them where the kernel finds some"))
        }
        Some(way) => Check::degraded(
            NAME,
            format!("switched off ({way})"),
            "Guest RAM is made of 4 KiB pages: VMs that use much memory run a few per cent to a third slower.",
        )
        .fix(Fix::commands(
            "As root; for good, with transparent_hugepage=madvise on the kernel's command line:",
            [format!("echo madvise > {FILE}")],
        )),
        None => Check::missing(
            NAME,
            "this kernel has none",
            "Guest RAM is made of 4 KiB pages, unless --memory …,hugepages= asks for the pool's.",
        )
        .fix(Fix::text("Boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE.")),
    };
    check.fact("mode", chosen)
}

fn pool(host: &Host, kib: u64, size_name: &str, name: &'static str) -> Check {
    let directory = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB");
    let number = |file: &str| host.number(&format!("{directory}/{file}"));
    let means = format!("--memory …,hugepages={size_name} is refused; other VMs do not miss them.");
    let Some(total) = number("nr_hugepages") else {
        return Check::missing(
            name,
            format!("this host has no huge pages of {size_name}"),
            means,
        )
        .fact("total", 0)
        .fact("free", 0);
    };
    let free = number("free_hugepages")
        .unwrap_or(0)
        .saturating_sub(number("resv_hugepages").unwrap_or(0));
    let bytes = |pages: u64| pages.saturating_mul(kib).saturating_mul(1024);
    let check = if free > 0 {
        let (free, total) = (size(bytes(free)), size(bytes(total)));
        Check::ok(name, format!("{free} of the pool's {total} are free"))
    } else {
        let found = match total {
            0 => "the pool is empty".to_owned(),
            _ => format!("all of the pool's {} are taken", size(bytes(total))),
        };
        // Room for one guest of 1 GiB more.
        let wanted = total.saturating_add((1 << 20) / kib);
        Check::missing(name, found, means).fix(Fix::commands(
            "As root, for 1 GiB more; early, for memory gets fragmented. At each start, by the kernel's command line:",
            [
                format!("echo {wanted} > {directory}/nr_hugepages"),
                format!("hugepagesz={size_name} hugepages={wanted}"),
            ],
        ))
    };
    check.fact("total", total).fact("free", free)
}

fn overcommit(host: &Host, information: &Information) -> Check {
    const NAME: &str = "overcommit";
    const SWITCH: &str = "vm.overcommit_memory";
    let mode = host.number("/proc/sys/vm/overcommit_memory");
    let check = match mode {
        None => Check::unknown(
            NAME,
            format!("{SWITCH} cannot be read"),
            "If it is 2, RAM that a guest may never touch is refused all the same.",
        ),
        Some(2) => {
            let room = information
                .bytes("CommitLimit")
                .and_then(|limit| Some(limit.saturating_sub(information.bytes("Committed_AS")?)));
            let found = match room {
                Some(room) => format!("strict ({SWITCH}=2), {} can still be committed", size(room)),
                None => format!("strict ({SWITCH}=2)"),
            };
            Check::degraded(
                NAME,
                found,
                "All of a guest's RAM is accounted for when it starts, touched or not: fewer VMs, and larger ones are refused.",
            )
            .fix(Fix::commands(
                "As root, if that is not policy here:",
                [
                    format!("sysctl -w {SWITCH}=0"),
                    format!("echo {SWITCH}=0 > /etc/sysctl.d/65-paddock-memory.conf"),
                ],
            ))
            .fact("room_bytes", room)
        }
        Some(_) => Check::ok(NAME, "guest RAM costs memory when it is touched"),
    };
    check.fact("mode", mode)
}
