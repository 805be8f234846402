//! KVM: the device, what it offers of what a VM is built on, and a trial guest.

use std::io;
use std::time::Duration;

use kvm_bindings::{KVM_CAP_HYPERV_CPUID, KVM_CAP_PMU_CAPABILITY, KVM_CAP_X86_SMM};

use super::access::{self, Owner};
use super::chain;
use super::host::{Host, Identity};
use super::hypervisor::Platform;
use super::patience::{NoAnswer, within};
use super::processor::Processor;
use super::report::{Check, Fix, Group};
use super::trial::{self, Failure, Outcome};
use crate::kvm::{Kvm, KvmError};
use crate::layout::MAX_VCPUS;

const DEVICE: &str = "/dev/kvm";
const NO_VM: &str = "Without it no VM can be made.";
/// A kernel module of a hypervisor that keeps the processor's virtualization to itself, and its name.
const RIVALS: [(&str, &str); 2] = [("vboxdrv", "VirtualBox"), ("vmmon", "VMware Workstation")];
/// How long the trial guest may take. On KVM in software emulation it needs less than two seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// An exit that takes longer than this, in microseconds, is felt by every guest.
const SLOW_EXIT: u128 = 20;

/// What the kernel answered.
#[derive(Debug)]
pub struct Facts {
    /// Whose the device is, if it is there.
    pub owner: Option<Owner>,
    /// What opening it gave.
    pub offer: Result<Offer, KvmError>,
}

/// What an opened KVM offers.
#[derive(Debug)]
pub struct Offer {
    /// Required capabilities that are not there.
    pub missing: Vec<&'static str>,
    /// vCPUs of a VM, at most.
    pub max_vcpus: usize,
    /// Optional capabilities, as KVM answers.
    pub capabilities: Capabilities,
    /// What the trial guest did. Not run where something is missing.
    pub trial: Option<Result<Outcome, Failure>>,
}

/// What KVM answers about a capability: 0 if it is not there.
#[derive(Debug, Clone, Default)]
pub struct Capabilities(Vec<(u32, u32)>);

impl Capabilities {
    /// Made-up answers, for tests.
    #[cfg(test)]
    pub fn made_up(answers: &[(u32, u32)]) -> Self {
        Self(answers.to_vec())
    }

    /// The answer about one that was asked about.
    #[must_use]
    pub fn get(&self, number: u32) -> u32 {
        self.0
            .iter()
            .find(|(have, _)| *have == number)
            .map_or(0, |(_, answer)| *answer)
    }

    /// Whether it is there.
    #[must_use]
    pub fn has(&self, number: u32) -> bool {
        self.get(number) != 0
    }
}

/// The optional capabilities this group asks about.
const OPTIONAL: [u32; 3] = [
    KVM_CAP_X86_SMM,
    KVM_CAP_HYPERV_CPUID,
    KVM_CAP_PMU_CAPABILITY,
];

impl Facts {
    /// Opens KVM and runs the trial guest.
    #[must_use]
    pub fn gather() -> Self {
        Self {
            owner: Owner::of(DEVICE),
            offer: Kvm::open_unchecked().map(Offer::of),
        }
    }
}

impl Offer {
    fn of(kvm: Kvm) -> Self {
        let missing: Vec<_> = kvm.missing().collect();
        let others = [
            &super::firmware::CAPABILITIES[..],
            &super::migration::CAPABILITIES,
        ];
        let numbers = OPTIONAL.into_iter().chain(others.concat());
        Self {
            max_vcpus: kvm.max_vcpus(),
            capabilities: Capabilities(numbers.map(|n| (n, kvm.capability(n))).collect()),
            trial: missing.is_empty().then(|| try_guest(kvm)),
            missing,
        }
    }
}

/// A guest that never leaves its code must not keep us.
fn try_guest(kvm: Kvm) -> Result<Outcome, Failure> {
    match within(PATIENCE, move || trial::run(&kvm)) {
        Ok(outcome) => outcome,
        Err(error) => Err(Failure {
            what: format!("the trial guest: {}", chain(&error)),
            errno: match &error {
                NoAnswer::NoThread(source) => source.raw_os_error(),
                _ => None,
            },
        }),
    }
}

/// Looks at KVM.
#[must_use]
pub fn examine(host: &Host, platform: &Platform, who: Option<&Identity>, facts: &Facts) -> Group {
    let mut checks = vec![device(host, platform, who, facts)];
    if let Ok(offer) = &facts.offer {
        checks.push(capabilities(offer));
        checks.extend(
            offer
                .trial
                .as_ref()
                .map(|outcome| guest(host, platform, outcome)),
        );
        checks.push(vcpus(offer.max_vcpus));
        checks.push(extras(&offer.capabilities));
    }
    Group {
        name: "kvm",
        title: "KVM",
        checks,
    }
}

fn device(host: &Host, platform: &Platform, who: Option<&Identity>, facts: &Facts) -> Check {
    const NAME: &str = "device";
    let modules: Vec<_> = ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .filter(|module| host.exists(&format!("/sys/module/{module}")))
        .collect();
    let check = match &facts.offer {
        Ok(_) => Check::ok(
            NAME,
            format!("{DEVICE} opens, API version 12{}", by(&modules)),
        ),
        Err(KvmError::Open(error)) => not_opened(host, platform, who, facts, &modules, error),
        Err(KvmError::ApiVersion(version)) => Check::blocked(
            NAME,
            format!("{DEVICE} speaks API version {version}, 12 is needed"),
            NO_VM,
        )
        .fix(Fix::text(
            "Boot a Linux kernel of 2007 or later with its own kvm module.",
        )),
        Err(other) => Check::blocked(NAME, chain(other), NO_VM)
            .fix(kernel_messages("Look at what the kernel says:")),
    };
    check
        .fact("accessible", facts.offer.is_ok())
        .fact("modules", modules)
}

fn load(module: &str) -> Fix {
    Fix::commands(
        "As root, load KVM. If that says \"disabled by bios\" (dmesg), switch virtualization on in the firmware setup. In a \
         container this is the host's to do.",
        [
            format!("modprobe {module}"),
            format!("echo {module} > /etc/modules-load.d/kvm.conf"),
        ],
    )
}

fn kernel_messages(text: &str) -> Fix {
    Fix::commands(text, ["dmesg | grep -i kvm"])
}

fn by(modules: &[&str]) -> String {
    match modules {
        [] => String::new(),
        modules => format!(", by {}", modules.join(", ")),
    }
}

fn not_opened(
    host: &Host,
    platform: &Platform,
    who: Option<&Identity>,
    facts: &Facts,
    modules: &[&str],
    error: &io::Error,
) -> Check {
    const NAME: &str = "device";
    let check = |found: String| Check::blocked(NAME, found, NO_VM);
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
            let processor = Processor::of(host);
            let module = processor.module();
            let able = processor.has("vmx") || processor.has("svm") || modules.contains(&"kvm_pvm");
            if !able && processor.is_known() {
                check(format!(
                    "no {DEVICE}, for the processor shows neither VT-x nor AMD-V"
                ))
                .fix(platform.nesting_fix(module))
            } else if modules.is_empty() {
                check(format!("no {DEVICE}, and no KVM module is loaded")).fix(load(module))
            } else {
                check(format!("no {DEVICE}, though KVM is loaded{}", by(modules))).fix(
                    Fix::commands(
                        "In a container, have it passed in; on a host without udev, make it:",
                        [
                            format!("docker run --device {DEVICE} ..."),
                            format!("mknod {DEVICE} c 10 232"),
                        ],
                    ),
                )
            }
        }
        Some(libc::EACCES | libc::EPERM) => {
            let Some(who) = who else {
                return check(format!("{DEVICE} may not be opened: {error}"))
                    .fix(Fix::text("Run as root or as a member of the group kvm."));
            };
            check(format!(
                "{DEVICE} may not be opened: {}",
                access::describe(host, facts.owner, who)
            ))
            .fix(access::fix(host, DEVICE, facts.owner, who))
        }
        Some(libc::EBUSY) => check(format!("{DEVICE} is busy")).fix(rival(host)),
        _ => check(format!("{DEVICE} cannot be opened: {error}"))
            .fix(kernel_messages("Look at what the kernel says:")),
    }
}

/// What to do where somebody else has the processor's virtualization.
fn rival(host: &Host) -> Fix {
    let rival = RIVALS
        .into_iter()
        .find(|(module, _)| host.exists(&format!("/sys/module/{module}")));
    match rival {
        Some((module, name)) => Fix::commands(
            format!("{name} has the processor's virtualization. Stop its VMs, then as root:"),
            [format!("modprobe -r {module}")],
        ),
        None => Fix::text(
            "Another hypervisor has the processor's virtualization: stop its VMs and unload its module.",
        ),
    }
}

fn capabilities(offer: &Offer) -> Check {
    const NAME: &str = "capabilities";
    if offer.missing.is_empty() {
        Check::ok(NAME, "everything a VM is built on is there")
    } else {
        Check::blocked(
            NAME,
            format!("missing: {}", offer.missing.join(", ")),
            "Paddock builds every VM on these and has no other way.",
        )
        .fix(Fix::text(
            "Boot a newer kernel: Linux 5.10 has them all on ordinary hardware.",
        ))
    }
    .fact("missing", offer.missing.clone())
}

fn guest(host: &Host, platform: &Platform, outcome: &Result<Outcome, Failure>) -> Check {
    const NAME: &str = "guest";
    match outcome {
        Ok(outcome) => {
            let exit = outcome.exit.as_micros();
            let found = format!(
                "a trial guest runs; an exit to Paddock takes {}",
                micros(outcome.exit.as_nanos())
            );
            let check = if exit > SLOW_EXIT {
                Check::degraded(
                    NAME,
                    found,
                    "On bare metal it is one to three µs. Consoles and the start of a kernel, which exit often, are felt to be slow.",
                )
            } else {
                Check::ok(NAME, found)
            };
            check.fact(
                "exit_ns",
                u64::try_from(outcome.exit.as_nanos()).unwrap_or(u64::MAX),
            )
        }
        Err(failure) => {
            let fix = match failure.errno {
                Some(libc::EBUSY) => rival(host),
                Some(libc::ENOMEM) => Fix::commands(
                    "There is no memory for it, or the address space is limited (see memory and the limits below); stop something, or:",
                    [
                        "ulimit -v unlimited",
                        "LimitAS=infinity    # in a systemd unit",
                    ],
                ),
                Some(libc::EAGAIN) => Fix::commands(
                    "The limit on threads is used up, of the control group (see the limits below) or of the user; stop something, or:",
                    ["TasksMax=VALUE    # in a systemd unit", "ulimit -u VALUE"],
                ),
                _ if platform.is_nested() => kernel_messages(
                    "The hypervisor below does not nest as it should: update it, or give this machine another CPU model. What the \
                     kernel says may tell more:",
                ),
                _ => kernel_messages("Look at what the kernel says:"),
            };
            Check::blocked(
                NAME,
                format!("no guest runs: {failure}"),
                "KVM is there but cannot do what every VM needs.",
            )
            .fix(fix)
        }
    }
}

/// Nanoseconds, in microseconds with one decimal.
fn micros(nanos: u128) -> String {
    format!("{}.{} µs", nanos / 1000, nanos % 1000 / 100)
}

fn vcpus(most: usize) -> Check {
    const NAME: &str = "vcpus";
    let ours = usize::try_from(MAX_VCPUS).unwrap_or(usize::MAX);
    if most >= ours {
        Check::ok(
            NAME,
            format!("up to {ours} vCPUs a VM (KVM would give {most})"),
        )
    } else {
        Check::degraded(
            NAME,
            format!("up to {most} vCPUs a VM"),
            format!("Paddock could give a VM {ours}."),
        )
    }
    .fact("max_vcpus", most.min(ours))
}

fn extras(capabilities: &Capabilities) -> Check {
    const NAME: &str = "extras";
    let pmu = capabilities.get(KVM_CAP_PMU_CAPABILITY) & 1 != 0;
    let all = [
        (
            capabilities.has(KVM_CAP_X86_SMM),
            "SMM",
            "no secure boot with firmware that wants SMM",
        ),
        (
            capabilities.has(KVM_CAP_HYPERV_CPUID),
            "Hyper-V interface",
            "Windows runs slower",
        ),
        (
            pmu,
            "PMU switch",
            "guests on AMD can see that there are performance counters",
        ),
    ];
    let missing: Vec<_> = all.iter().filter(|(there, ..)| !there).collect();
    let names = |wanted: bool| -> Vec<&str> {
        all.iter()
            .filter(|(there, ..)| *there == wanted)
            .map(|(_, name, _)| *name)
            .collect()
    };
    let check = if missing.is_empty() {
        Check::ok(NAME, names(true).join(", "))
    } else {
        let meaning: Vec<_> = missing.iter().map(|(_, _, text)| *text).collect();
        Check::missing(
            NAME,
            format!("missing: {}", names(false).join(", ")),
            format!(
                "Ordinary Linux guests miss nothing; {}.",
                meaning.join("; ")
            ),
        )
    };
    check
        .fact("smm", capabilities.has(KVM_CAP_X86_SMM))
        .fact("hyperv", capabilities.has(KVM_CAP_HYPERV_CPUID))
        .fact("pmu_switch", pmu)
}
