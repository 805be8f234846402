//! What clocks in guests lean on: the host's own.

use super::host::Host;
use super::processor::Processor;
use super::report::{Check, Fix, Group};

/// Looks at the clocks. `synchronized` is what the kernel answered about its own, by [`super::calls::clock_is_synchronized`].
#[must_use]
pub fn examine(host: &Host, synchronized: Option<bool>) -> Group {
    Group {
        name: "time",
        title: "Time",
        checks: vec![
            clocksource(host),
            tsc(&Processor::of(host)),
            synchronization(synchronized),
        ],
    }
}

fn clocksource(host: &Host) -> Check {
    const NAME: &str = "clocksource";
    const FILE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let current = host.text(FILE);
    let check = match current.as_deref() {
        None => Check::unknown(
            NAME,
            format!("{FILE} cannot be read"),
            "With a slow one, each look at the clock costs this host and its guests microseconds.",
        ),
        Some(fast @ ("tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page")) => {
            Check::ok(NAME, format!("{fast}, read without leaving the program"))
        }
        Some(slow) => Check::degraded(
            NAME,
            format!("{slow}, which is slow to read"),
            "Guests get a kvm-clock that they must ask the host for, and lose the fast way to read the time.",
        )
        .fix(Fix::commands(
            "See what the kernel has against the TSC; if it is listed as available, take it:",
            [
                "dmesg | grep -iE 'tsc|clocksource'".to_owned(),
                "cat /sys/devices/system/clocksource/clocksource0/available_clocksource".to_owned(),
                format!("echo tsc > {FILE}"),
            ],
        )),
    };
    check.fact("clocksource", current)
}

fn tsc(processor: &Processor) -> Check {
    const NAME: &str = "tsc";
    if !processor.is_known() {
        return Check::unknown(
            NAME,
            "/proc/cpuinfo does not tell",
            "A TSC that does not tick evenly makes guests' clocks drift.",
        );
    }
    let (constant, nonstop) = (processor.has("constant_tsc"), processor.has("nonstop_tsc"));
    let check = if constant && nonstop {
        Check::ok(NAME, "ticks evenly, and does not stop")
    } else {
        let what = if constant {
            "stops in deep sleep (no nonstop_tsc)"
        } else {
            "changes its rate (no constant_tsc)"
        };
        Check::degraded(
            NAME,
            format!("the TSC {what}, or the hypervisor below does not say otherwise"),
            "Guests that use the TSC itself drift; kvm-clock, which Linux uses, copes.",
        )
        .fix(Fix::text(
            "On a VM, pass the flag on from below (QEMU: -cpu host,+invtsc, libvirt: <feature policy='require' name='invtsc'/>); this \
             ties the VM to hosts of one TSC rate.",
        ))
    };
    check.fact("constant", constant).fact("nonstop", nonstop)
}

fn synchronization(synchronized: Option<bool>) -> Check {
    const NAME: &str = "synchronization";
    let check = match synchronized {
        None => Check::unknown(
            NAME,
            "the kernel does not tell",
            "Guests start with this host's time.",
        ),
        Some(true) => Check::ok(NAME, "something keeps this host's clock right"),
        Some(false) => Check::degraded(
            NAME,
            "nothing keeps this host's clock right",
            "Guests start with its time, and jump by the difference when they move to another host.",
        )
        .fix(Fix::commands(
            "As root, install an NTP client:",
            ["apt-get install chrony"],
        )),
    };
    check.fact("synchronized", synchronized)
}
