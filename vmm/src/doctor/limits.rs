//! What this process is limited to: its control groups and resource limits. A VM started from here has the same.

use super::cgroup::{self, Limit};
use super::host::{Host, release, size};
use super::report::{Check, Fix, Group};
use crate::layout::RAM_SIZE_MIN;

/// What Paddock may need beside guest RAM, generously, in bytes: its own memory, and the kernel's for the VM.
const BESIDE_RAM: u64 = 64 << 20;
/// Threads of a VM with a few vCPUs and queues.
const FEW_THREADS: u64 = 64;
/// Descriptors of a VM with a few dozen queues.
const FEW_DESCRIPTORS: u64 = 4096;
/// Locked memory that is enough for the rings of a few disks, in bytes, where the kernel counts them.
const FEW_LOCKED: u64 = 8 << 20;
/// From this release on the kernel does not count io_uring's rings as locked memory.
const RINGS_ARE_FREE: (u64, u64) = (5, 12);

/// Looks at the limits.
#[must_use]
pub fn examine(host: &Host) -> Group {
    let limits = Limits::of(host);
    Group {
        name: "limits",
        title: "Limits of this process",
        checks: vec![
            memory(cgroup::memory(host)),
            threads(cgroup::pids(host)),
            descriptors(&limits),
            locked_memory(host, &limits),
            address_space(&limits),
        ],
    }
}

/// What raises a control group's limit.
fn raise(limit: &Limit, setting: &str, kubernetes: Option<&str>) -> Fix {
    let mut commands = vec![match &limit.unit {
        Some(unit) => format!("systemctl set-property {unit} {setting}=VALUE"),
        None => format!("echo VALUE > {}", limit.file),
    }];
    commands.extend(kubernetes.map(str::to_owned));
    Fix::commands(
        "As root, raise it; for a container, where it is described:",
        commands,
    )
}

fn memory(limit: Option<Limit>) -> Check {
    const NAME: &str = "cgroup-memory";
    let Some(limit) = limit else {
        return Check::ok(NAME, "no limit").fact("limit_bytes", None::<u64>);
    };
    let room = limit.room();
    let found = format!(
        "{} are left of {} (the limit counts guest RAM, Paddock's own memory and the page cache)",
        size(room),
        size(limit.limit)
    );
    let check = if room < RAM_SIZE_MIN + BESIDE_RAM {
        Check::degraded(
            NAME,
            found,
            format!(
                "The smallest VM has {} of RAM: the kernel kills it when it fills them.",
                size(RAM_SIZE_MIN)
            ),
        )
        .fix(raise(
            &limit,
            "MemoryMax",
            Some("resources: {limits: {memory: VALUE}}    # Kubernetes"),
        ))
    } else {
        Check::ok(NAME, found).means(format!(
            "Keep a VM's --memory below {}: one that is larger is killed when it fills its RAM.",
            size(room - BESIDE_RAM)
        ))
    };
    check
        .fact("limit_bytes", limit.limit)
        .fact("room_bytes", room)
        .fact("file", limit.file)
}

fn threads(limit: Option<Limit>) -> Check {
    const NAME: &str = "cgroup-pids";
    let Some(limit) = limit else {
        return Check::ok(NAME, "no limit").fact("limit", None::<u64>);
    };
    let room = limit.room();
    let found = format!(
        "{room} threads are left of {}; each vCPU and each queue is one",
        limit.limit
    );
    let check = if room < FEW_THREADS {
        Check::degraded(
            NAME,
            found,
            "VMs with many vCPUs, disks or NICs are refused for want of threads.",
        )
        .fix(raise(&limit, "TasksMax", None))
    } else {
        Check::ok(NAME, found)
    };
    check
        .fact("limit", limit.limit)
        .fact("room", room)
        .fact("file", limit.file)
}

/// `/proc/self/limits`
struct Limits(String);

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Most {
    Unlimited,
    At(u64),
}

impl Most {
    fn value(self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::At(value) => Some(value),
        }
    }

    fn is_below(self, wanted: u64) -> bool {
        self.value().is_some_and(|value| value < wanted)
    }
}

impl Limits {
    fn of(host: &Host) -> Self {
        Self(host.text("/proc/self/limits").unwrap_or_default())
    }

    /// The soft and the hard one.
    fn get(&self, name: &str) -> Option<(Most, Most)> {
        let mut words = self
            .0
            .lines()
            .find_map(|line| line.strip_prefix(name))?
            .split_whitespace()
            .map(|word| match word {
                "unlimited" => Some(Most::Unlimited),
                number => number.parse().ok().map(Most::At),
            });
        Some((words.next()??, words.next()??))
    }
}

fn untold(name: &'static str) -> Check {
    Check::unknown(
        name,
        "/proc/self/limits does not tell",
        "Most hosts' defaults are enough.",
    )
}

fn descriptors(limits: &Limits) -> Check {
    const NAME: &str = "descriptors";
    // Paddock raises the soft one by itself.
    let Some((_, hard)) = limits.get("Max open files") else {
        return untold(NAME);
    };
    let check = match hard {
        Most::At(hard) if hard < FEW_DESCRIPTORS => Check::degraded(
            NAME,
            format!("at most {hard} open files (RLIMIT_NOFILE)"),
            "VMs with many queues are refused: each has a handful of them.",
        )
        .fix(Fix::commands(
            "Raise the hard limit:",
            [
                "LimitNOFILE=65536    # in a systemd unit",
                "echo '* hard nofile 65536' > /etc/security/limits.d/65-paddock-nofile.conf    # as root, for logins",
                "docker run --ulimit nofile=65536:65536 ...",
            ],
        )),
        Most::At(hard) => Check::ok(NAME, format!("up to {hard} open files (RLIMIT_NOFILE)")),
        Most::Unlimited => Check::ok(NAME, "no limit on open files (RLIMIT_NOFILE)"),
    };
    check.fact("hard", hard.value())
}

fn locked_memory(host: &Host, limits: &Limits) -> Check {
    const NAME: &str = "locked-memory";
    let Some((soft, hard)) = limits.get("Max locked memory") else {
        return untold(NAME);
    };
    let amount = match soft {
        Most::Unlimited => "no limit".to_owned(),
        Most::At(bytes) => size(bytes),
    };
    let found = format!("{amount} (RLIMIT_MEMLOCK)");
    let counted = release(host).is_some_and(|release| release < RINGS_ARE_FREE);
    let check = if counted && soft.is_below(FEW_LOCKED) {
        Check::degraded(
            NAME,
            found,
            "This kernel counts io_uring's rings as locked memory: disks beyond the limit use threads.",
        )
        .fix(Fix::commands(
            "Raise it, or boot Linux 5.12 or later:",
            [
                "LimitMEMLOCK=64M    # in a systemd unit",
                "echo '* - memlock 65536' > /etc/security/limits.d/65-paddock-memlock.conf    # as root, for logins",
                "docker run --ulimit memlock=67108864:67108864 ...",
            ],
        ))
    } else {
        Check::ok(NAME, found).means("Paddock locks no memory on this kernel.")
    };
    check
        .fact("soft_bytes", soft.value())
        .fact("hard_bytes", hard.value())
}

fn address_space(limits: &Limits) -> Check {
    const NAME: &str = "address-space";
    let Some((soft, _)) = limits.get("Max address space") else {
        return untold(NAME);
    };
    let check = match soft {
        Most::Unlimited => Check::ok(NAME, "no limit (RLIMIT_AS)"),
        Most::At(bytes) => Check::degraded(
            NAME,
            format!("{} (RLIMIT_AS)", size(bytes)),
            "VMs whose RAM and Paddock itself do not fit are refused, however much memory is free.",
        )
        .fix(Fix::commands(
            "Take it away:",
            [
                "LimitAS=infinity    # in a systemd unit",
                "ulimit -v unlimited",
            ],
        )),
    };
    check.fact("soft_bytes", soft.value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_limits() {
        let limits = Limits(
            "Limit   Soft Limit   Hard Limit   Units\nMax open files            1024                 524288               files\n\
             Max address space         unlimited            unlimited            bytes\nMax locked memory x 3 bytes\n"
                .to_owned(),
        );
        assert_eq!(
            limits.get("Max open files"),
            Some((Most::At(1024), Most::At(524_288)))
        );
        assert_eq!(
            limits.get("Max address space"),
            Some((Most::Unlimited, Most::Unlimited))
        );
        assert_eq!(limits.get("Max locked memory"), None);
        assert_eq!(limits.get("Max processes"), None);
    }
}
