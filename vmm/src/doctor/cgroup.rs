//! The limits of the control groups this process is in, of version 2 and 1. What counts is the tightest from the group itself up
//! to the root, or to what a container is shown as the root.

use super::host::Host;

/// A controller's files: below which directory of `/sys/fs/cgroup`, and their names.
struct Files {
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    /// The line of `memory.stat` with memory that is given back when it is needed.
    reclaimable: &'static str,
}

/// A limit that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// In the controller's unit: bytes, or processes and threads.
    pub limit: u64,
    /// What is used of it, without what is given back when it is needed.
    pub used: u64,
    /// The file that says the limit.
    pub file: String,
    /// The systemd unit of the group, if it is one.
    pub unit: Option<String>,
}

impl Limit {
    /// What is left.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// The memory limit with the least room, in bytes.
#[must_use]
pub fn memory(host: &Host) -> Option<Limit> {
    tightest(
        host,
        "memory",
        &[
            Files {
                mount: "",
                limit: "memory.max",
                used: "memory.current",
                reclaimable: "inactive_file",
            },
            Files {
                mount: "/memory",
                limit: "memory.limit_in_bytes",
                used: "memory.usage_in_bytes",
                reclaimable: "total_inactive_file",
            },
        ],
    )
}

/// The limit on processes and threads with the least room.
#[must_use]
pub fn pids(host: &Host) -> Option<Limit> {
    let files = |mount| Files {
        mount,
        limit: "pids.max",
        used: "pids.current",
        reclaimable: "",
    };
    tightest(host, "pids", &[files(""), files("/pids")])
}

fn tightest(host: &Host, controller: &str, versions: &[Files; 2]) -> Option<Limit> {
    let text = host.text("/proc/self/cgroup")?;
    let [new, old] = versions;
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, names, path) = (fields.next()?, fields.next()?, fields.next()?);
            let files = if number == "0" && names.is_empty() {
                new
            } else if names.split(',').any(|name| name == controller) {
                old
            } else {
                return None;
            };
            Some((files, path))
        })
        .flat_map(|(files, path)| upwards(path).filter_map(|group| limit(host, files, &group)))
        .min_by_key(Limit::room)
}

/// The group and all above it: "/a/b", "/a", "". One outside of a container's namespace is "/../x", which is not followed.
fn upwards(path: &str) -> impl Iterator<Item = String> {
    let parts: Vec<String> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != "..")
        .map(str::to_owned)
        .collect();
    (0..=parts.len()).rev().map(move |count| {
        parts[..count]
            .iter()
            .map(|part| format!("/{part}"))
            .collect()
    })
}

fn limit(host: &Host, files: &Files, group: &str) -> Option<Limit> {
    let directory = format!("/sys/fs/cgroup{}{group}", files.mount);
    let file = format!("{directory}/{}", files.limit);
    // "max" is no number; version 1's "none" is one that no host has.
    let limit = host.number(&file).filter(|limit| *limit < 1 << 60)?;
    let used = host
        .number(&format!("{directory}/{}", files.used))
        .unwrap_or(0);
    let statistics = host
        .text(&format!("{directory}/memory.stat"))
        .unwrap_or_default();
    let reclaimable = statistics
        .lines()
        .find_map(|line| {
            line.strip_prefix(files.reclaimable)?
                .strip_prefix(' ')?
                .parse()
                .ok()
        })
        .filter(|_| !files.reclaimable.is_empty())
        .unwrap_or(0);
    let unit = group
        .rsplit('/')
        .next()
        .filter(|name| {
            [".service", ".scope", ".slice"]
                .iter()
                .any(|kind| name.ends_with(kind))
        })
        .map(str::to_owned);
    Some(Limit {
        limit,
        used: used.saturating_sub(reclaimable),
        file,
        unit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::testing::FakeHost;

    #[test]
    fn the_tightest_of_version_two() {
        let fake = FakeHost::new(&[
            ("proc/self/cgroup", "0::/kube.slice/pod.scope\n"),
            ("sys/fs/cgroup/kube.slice/memory.max", "1000\n"),
            ("sys/fs/cgroup/kube.slice/memory.current", "950\n"),
            (
                "sys/fs/cgroup/kube.slice/memory.stat",
                "anon 1\ninactive_file 150\n",
            ),
            ("sys/fs/cgroup/kube.slice/pod.scope/memory.max", "500\n"),
            ("sys/fs/cgroup/kube.slice/pod.scope/memory.current", "100\n"),
            ("sys/fs/cgroup/kube.slice/pod.scope/pids.max", "max\n"),
        ]);
        let found = memory(&fake.host()).unwrap();
        assert_eq!((found.limit, found.used, found.room()), (1000, 800, 200));
        assert_eq!(found.unit.as_deref(), Some("kube.slice"));
        assert_eq!(found.file, "/sys/fs/cgroup/kube.slice/memory.max");
        assert_eq!(pids(&fake.host()), None);
    }

    #[test]
    fn version_one_in_a_container() {
        // The path is the host's, what is mounted the container's own group.
        let fake = FakeHost::new(&[
            (
                "proc/self/cgroup",
                "9:pids:/docker/abc\n4:memory:/docker/abc\n0::/\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "700"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "600"),
            ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 50"),
            ("sys/fs/cgroup/pids/pids.max", "32"),
            ("sys/fs/cgroup/pids/pids.current", "30"),
        ]);
        assert_eq!(memory(&fake.host()).unwrap().room(), 150);
        assert_eq!(pids(&fake.host()).unwrap().room(), 2);
    }

    #[test]
    fn no_limit() {
        let fake = FakeHost::new(&[
            ("proc/self/cgroup", "4:memory:/\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712",
            ),
        ]);
        assert_eq!(memory(&fake.host()), None);
        assert_eq!(memory(&FakeHost::new::<&str, &str>(&[]).host()), None);
    }

    #[test]
    fn no_way_out_of_the_hierarchy() {
        assert_eq!(
            upwards("/../../etc").collect::<Vec<_>>(),
            ["/etc".to_owned(), String::new()]
        );
        assert_eq!(upwards("/").collect::<Vec<_>>(), [String::new()]);
    }
}
