//! What the host offers to live migration: finding dirty pages, keeping time, carrying the state of nested guests, fetching
//! pages late. This version of Paddock does not migrate; who plans a cluster wants to know all the same.

use std::io;

use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_NESTED_STATE, KVM_CAP_TSC_CONTROL,
    KVM_CLOCK_REALTIME,
};

use super::host::{Host, Identity};
use super::kvm::{Capabilities, Facts};
use super::report::{Check, Fix, Group};

/// What is asked of KVM.
pub const CAPABILITIES: [u32; 6] = [
    KVM_CAP_DIRTY_LOG_RING,
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_ADJUST_CLOCK,
    KVM_CAP_TSC_CONTROL,
    KVM_CAP_NESTED_STATE,
];

/// Looks at what KVM answered.
#[must_use]
pub fn examine(
    host: &Host,
    who: Option<&Identity>,
    facts: &Facts,
    userfaultfd: &io::Result<()>,
) -> Group {
    let mut checks = match &facts.offer {
        Err(_) => vec![Check::unknown(
            "capabilities",
            "KVM cannot be asked",
            "What keeps it from being asked is told under KVM; look again when that is mended.",
        )],
        Ok(offer) => {
            let tsc_khz = match &offer.trial {
                Some(Ok(outcome)) => outcome.tsc_khz,
                _ => None,
            };
            let capabilities = &offer.capabilities;
            vec![
                dirty_pages(capabilities),
                tsc(capabilities, tsc_khz),
                clock(capabilities),
                nested_state(capabilities),
            ]
        }
    };
    checks.push(post_copy(host, who, userfaultfd));
    Group {
        name: "migration",
        title: "Live migration: what it would find",
        checks,
    }
}

fn dirty_pages(capabilities: &Capabilities) -> Check {
    const NAME: &str = "dirty-pages";
    let ring = capabilities
        .get(KVM_CAP_DIRTY_LOG_RING_ACQ_REL)
        .max(capabilities.get(KVM_CAP_DIRTY_LOG_RING));
    let manual = capabilities.has(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    // KVM answers with the ring's largest size in bytes, of 16 bytes a page.
    let ring = match ring {
        0 => "no ring".to_owned(),
        bytes => format!("ring of {} pages", bytes / 16),
    };
    let found = format!(
        "{ring}, bitmap{}",
        if manual {
            " with manual protection"
        } else {
            " without manual protection"
        }
    );
    let check = if manual {
        Check::ok(NAME, found)
    } else {
        Check::degraded(
            NAME,
            found,
            "Reading the bitmap write-protects all of RAM at once: a large guest stutters while it moves.",
        )
    };
    check
        .fact(
            "ring",
            capabilities.has(KVM_CAP_DIRTY_LOG_RING)
                || capabilities.has(KVM_CAP_DIRTY_LOG_RING_ACQ_REL),
        )
        .fact("manual_protect", manual)
}

fn tsc(capabilities: &Capabilities, khz: Option<u32>) -> Check {
    const NAME: &str = "tsc";
    let scaling = capabilities.has(KVM_CAP_TSC_CONTROL);
    let rate = khz.map_or_else(
        || "a rate that KVM does not tell".to_owned(),
        |khz| format!("{}.{:03} MHz", khz / 1000, khz % 1000),
    );
    let check = if scaling {
        Check::ok(NAME, format!("{rate}, can be scaled to another host's"))
    } else {
        Check::missing(
            NAME,
            format!("{rate}, cannot be scaled (KVM_CAP_TSC_CONTROL)"),
            "A guest that reads the TSC itself can only move between hosts of the same rate; kvm-clock, which Linux uses, copes.",
        )
    };
    check.fact("scaling", scaling).fact("khz", khz)
}

fn clock(capabilities: &Capabilities) -> Check {
    const NAME: &str = "clock";
    let realtime = capabilities.get(KVM_CAP_ADJUST_CLOCK) & KVM_CLOCK_REALTIME != 0;
    let check = if realtime {
        Check::ok(NAME, "kvm-clock can be set by the wall clock")
    } else {
        Check::degraded(
            NAME,
            "kvm-clock cannot be set by the wall clock",
            "After a move a guest's clock is behind by as long as it stood still.",
        )
        .fix(Fix::text("Boot Linux 5.16 or later."))
    };
    check.fact("realtime", realtime)
}

fn nested_state(capabilities: &Capabilities) -> Check {
    const NAME: &str = "nested-state";
    let size = capabilities.get(KVM_CAP_NESTED_STATE);
    let check = if size > 0 {
        Check::ok(
            NAME,
            format!("guests' own guests can move along ({size} bytes)"),
        )
    } else {
        Check::missing(
            NAME,
            "the state of guests' own guests cannot be read",
            "A VM with --cpus nested=on cannot move.",
        )
    };
    check.fact("bytes", size)
}

fn post_copy(host: &Host, who: Option<&Identity>, userfaultfd: &io::Result<()>) -> Check {
    const NAME: &str = "post-copy";
    const SWITCH: &str = "vm.unprivileged_userfaultfd";
    const MEANS: &str = "A VM that changes its RAM faster than the network carries it cannot be moved by post-copy.";
    let check = match userfaultfd {
        Ok(()) => Check::ok(NAME, "userfaultfd takes KVM's page faults"),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
            let device = if host.exists("/dev/userfaultfd") {
                let user = who.map_or_else(|| "USER".to_owned(), |who| who.name(host));
                format!("setfacl -m u:{user}:rw /dev/userfaultfd")
            } else {
                "setcap cap_sys_ptrace+ep \"$(command -v paddock)\"".to_owned()
            };
            Check::missing(NAME, "userfaultfd is not allowed to this process", MEANS).fix(
                Fix::commands(
                    "As root, one of these; a container's seccomp profile must allow userfaultfd, too:",
                    [device, format!("sysctl -w {SWITCH}=1")],
                ),
            )
        }
        Err(error) => Check::missing(NAME, format!("no userfaultfd: {error}"), MEANS)
            .fix(Fix::text("Boot a kernel with CONFIG_USERFAULTFD.")),
    };
    check.fact("userfaultfd", userfaultfd.is_ok())
}
