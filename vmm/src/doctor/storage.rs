//! What disks need: io_uring, and file systems with O_DIRECT, locks and holes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use paddock_storage::probe::{self, DirectoryOffer, Lock};

use super::chain;
use super::host::Host;
use super::patience::within;
use super::report::{Check, Fix, Group};

/// How long a file system has to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the kernel answered.
#[derive(Debug)]
pub struct Facts {
    /// What setting up a ring gave.
    pub io_uring: io::Result<()>,
    /// The directories asked about, and what trying a file there gave.
    pub directories: Vec<(PathBuf, Result<DirectoryOffer, String>)>,
}

impl Facts {
    /// Sets a ring up, and tries a nameless file in each directory.
    #[must_use]
    pub fn gather(directories: &[PathBuf]) -> Self {
        Self {
            io_uring: probe::io_uring(),
            directories: directories
                .iter()
                .map(|path| (path.clone(), try_directory(path.clone())))
                .collect(),
        }
    }
}

fn try_directory(path: PathBuf) -> Result<DirectoryOffer, String> {
    match within(PATIENCE, move || probe::directory(&path)) {
        Ok(Ok(offer)) => Ok(offer),
        Ok(Err(error)) => Err(chain(&error)),
        Err(error) => Err(chain(&error)),
    }
}

/// Looks at io_uring and the directories.
#[must_use]
pub fn examine(host: &Host, facts: &Facts) -> Group {
    let mut checks = vec![io_uring(host, &facts.io_uring)];
    for (path, offer) in &facts.directories {
        checks.extend(directory(path, offer.as_ref()));
    }
    Group {
        name: "storage",
        title: "Storage",
        checks,
    }
}

fn io_uring(host: &Host, answer: &io::Result<()>) -> Check {
    const NAME: &str = "io-uring";
    const SWITCH: &str = "kernel.io_uring_disabled";
    let disabled = host.number("/proc/sys/kernel/io_uring_disabled");
    let Err(error) = answer else {
        return Check::ok(NAME, "disks use it").fact("usable", true);
    };
    let check = |found: String| {
        Check::degraded(
            NAME,
            found,
            "Disks use threads instead (engine=auto): more CPU time a request, and fewer requests a second.",
        )
    };
    let check = match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM | libc::EACCES), Some(level @ 1..)) => {
            check(format!("switched off by {SWITCH}={level}")).fix(Fix::commands(
                "As root, if that is not policy here; 1 leaves it to root and to the group of kernel.io_uring_group:",
                [
                    format!("sysctl -w {SWITCH}=0"),
                    format!("echo {SWITCH}=0 > /etc/sysctl.d/65-paddock-io-uring.conf"),
                ],
            ))
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            check("forbidden by a seccomp filter or a security module".to_owned()).fix(
                Fix::commands(
                    "Let the container's seccomp profile allow io_uring_setup, io_uring_enter and io_uring_register, and name it:",
                    [
                        "docker run --security-opt seccomp=PROFILE.json ...",
                        "securityContext: {seccompProfile: {type: Localhost, localhostProfile: PROFILE.json}}    # Kubernetes",
                    ],
                ),
            )
        }
        (Some(libc::ENOMEM), _) => {
            check("the limit on locked memory is used up".to_owned()).fix(Fix::commands(
                "Raise it; Linux from 5.12 on does not count rings:",
                ["LimitMEMLOCK=64M    # in a systemd unit", "ulimit -l 65536"],
            ))
        }
        (Some(libc::ENOSYS), _) => check("this kernel has none, or a seccomp filter says so".to_owned())
            .fix(Fix::text(
                "Boot Linux 5.6 or later with CONFIG_IO_URING; in a container, allow the io_uring system calls in its seccomp profile.",
            )),
        _ if error.kind() == io::ErrorKind::Unsupported => {
            check("this kernel's lacks operations that disks need".to_owned())
                .fix(Fix::text("Boot Linux 5.6 or later."))
        }
        _ => check(format!("it cannot be used: {error}")),
    };
    check
        .fact("usable", false)
        .fact("errno", error.raw_os_error())
}

fn directory(path: &Path, offer: Result<&DirectoryOffer, &String>) -> Vec<Check> {
    let subject = path.display().to_string();
    let checks = match offer {
        Err(error) => vec![
            Check::unknown(
                "directory",
                format!("no file can be made there: {error}"),
                "Images that are there may work; they cannot be tried for.",
            )
            .fix(Fix::text(
                "Name a directory in which this user may make a file.",
            )),
        ],
        Ok(offer) => vec![
            direct(&offer.direct),
            locks(&offer.lock),
            discard(offer.discard),
        ],
    };
    checks
        .into_iter()
        .map(|check| check.about(&subject))
        .collect()
}

fn direct(answer: &io::Result<usize>) -> Check {
    const NAME: &str = "direct";
    match answer {
        Ok(alignment) => Check::ok(
            NAME,
            format!("O_DIRECT works with 512-byte blocks, memory aligned to {alignment} bytes"),
        )
        .fact("memory_alignment_bytes", *alignment),
        Err(error) => Check::degraded(
            NAME,
            format!("no O_DIRECT with 512-byte blocks: {error}"),
            "Images here go through the host's page cache (direct=auto): memory is used twice, and the cgroup's limit fills.",
        )
        .fix(Fix::text(
            "Keep images on ext4 or XFS on a device with 512-byte logical blocks, or on a block device.",
        ))
        .fact("memory_alignment_bytes", None::<usize>),
    }
}

fn locks(lock: &Lock) -> Check {
    const NAME: &str = "locks";
    const ELSEWHERE: &str = "Keep images on a file system with open-file-description locks: a local one, or NFS 4 (mounted without \
                             nolock and local_lock).";
    match lock {
        Lock::Works => Check::ok(NAME, "an image has one writer: a second is kept out"),
        Lock::Useless => Check::degraded(
            NAME,
            "a lock is granted to two at once",
            "Nothing keeps a second VM from writing the same image, which destroys it.",
        )
        .fix(Fix::text(ELSEWHERE)),
        Lock::Refused(error) => Check::missing(
            NAME,
            match &error.source {
                Some(source) => format!("no locks: {source}"),
                None => "no locks".to_owned(),
            },
            "Disks here are refused.",
        )
        .fix(Fix::text(ELSEWHERE)),
    }
}

fn discard(works: bool) -> Check {
    const NAME: &str = "discard";
    if works {
        Check::ok(NAME, "what guests discard is given back")
    } else {
        Check::missing(
            NAME,
            "the file system makes no holes",
            "Guests are offered no discard: images only grow.",
        )
        .fix(Fix::text("Keep images on ext4, XFS, Btrfs, or NFS 4.2."))
    }
    .fact("discard", works)
}
