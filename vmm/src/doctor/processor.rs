//! The processor and what is below it: hardware virtualization, and what of it makes VMs fast.

use super::host::Host;
use super::hypervisor::{Hypervisor, Platform};
use super::report::{Check, Fix, Group};

/// KVM without the processor's help.
const PVM: &str = "/sys/module/kvm_pvm";

/// The first processor of `/proc/cpuinfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processor {
    vendor: String,
    model: String,
    flags: Vec<String>,
    /// Intel's details of VT-x; empty elsewhere, and before Linux 5.11.
    vmx_flags: Vec<String>,
}

impl Processor {
    /// The host's; without anything in it if there is no `/proc`.
    #[must_use]
    pub fn of(host: &Host) -> Self {
        let text = host.text("/proc/cpuinfo").unwrap_or_default();
        let mut this = Self::default();
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        for line in text.lines().take_while(|line| !line.trim().is_empty()) {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            match key.trim() {
                "vendor_id" => value.trim().clone_into(&mut this.vendor),
                "model name" => value.trim().clone_into(&mut this.model),
                "flags" => this.flags = words(value),
                "vmx flags" => this.vmx_flags = words(value),
                _ => {}
            }
        }
        this
    }

    /// Whether anything could be learnt.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !self.flags.is_empty()
    }

    /// Whether the kernel sees a feature.
    #[must_use]
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|have| have == flag)
    }

    /// VT-x, AMD-V or neither.
    fn virtualization(&self) -> Option<&'static str> {
        if self.has("vmx") {
            Some("VT-x")
        } else if self.has("svm") {
            Some("AMD-V")
        } else {
            None
        }
    }

    /// KVM's module for this processor.
    #[must_use]
    pub fn module(&self) -> &'static str {
        match self.vendor.as_str() {
            "AuthenticAMD" | "HygonGenuine" => "kvm_amd",
            _ if self.has("svm") => "kvm_amd",
            _ => "kvm_intel",
        }
    }
}

/// Looks at the processor.
#[must_use]
pub fn examine(host: &Host, platform: &Platform) -> Group {
    let processor = Processor::of(host);
    let mut checks = vec![
        hypervisor(platform),
        virtualization(host, platform, &processor),
    ];
    if let Some(module) = Module::of(host, &processor) {
        checks.push(nested_paging(&module, &processor, platform));
        checks.extend(real_mode(&module));
        checks.push(acceleration(&module));
        checks.push(nesting(&module));
    } else {
        checks.push(shadow_paging(host));
    }
    Group {
        name: "processor",
        title: "Processor, and the hypervisor below",
        checks,
    }
}

fn hypervisor(platform: &Platform) -> Check {
    const NAME: &str = "hypervisor";
    let found = match &platform.product {
        Some(product) => format!("{} ({product})", platform.name()),
        None => platform.name(),
    };
    let check = match platform.hypervisor {
        Hypervisor::None => Check::ok(NAME, found),
        Hypervisor::Tcg => Check::degraded(
            NAME,
            found,
            "Every instruction of this host is emulated; VMs in it are slower still. Good for tests, not for work.",
        ),
        _ => Check::degraded(
            NAME,
            found,
            "VMs here are nested: each time one leaves its guest code costs about ten times what it costs on bare metal.",
        ),
    };
    check
        .fact("hypervisor", platform.key())
        .fact("nested", platform.is_nested())
        .fact("product", platform.product.clone())
}

fn virtualization(host: &Host, platform: &Platform, processor: &Processor) -> Check {
    const NAME: &str = "virtualization";
    let model = if processor.model.is_empty() {
        "a processor without a name"
    } else {
        &processor.model
    };
    let check = match processor.virtualization() {
        Some(kind) => Check::ok(NAME, format!("{kind} on {model}")).fact("extension", kind),
        None if !processor.is_known() => Check::unknown(
            NAME,
            "/proc/cpuinfo does not tell",
            "Whether guests run is seen from KVM alone, below.",
        ),
        None if host.exists(PVM) => {
            Check::degraded(
                NAME,
                format!("neither VT-x nor AMD-V on {model}, but KVM without them: PVM (kvm_pvm)"),
                "PVM runs guests by software, real mode and much of a stock kernel's start instruction by instruction: slowly, \
                 and some kernels not at all.",
            )
            .fix(platform.nesting_fix(processor.module()))
        }
        None => Check::missing(
            NAME,
            format!("neither VT-x nor AMD-V on {model}"),
            "KVM has nothing to run guests on.",
        )
        .fix(platform.nesting_fix(processor.module())),
    };
    check
        .fact("vendor", processor.vendor.clone())
        .fact("model", processor.model.clone())
        .fact("pvm", host.exists(PVM))
}

/// A loaded KVM module and its parameters.
struct Module<'a> {
    host: &'a Host,
    name: &'static str,
    parameters: String,
}

impl<'a> Module<'a> {
    /// The processor's own. Where they are built into the kernel, the other one is there as well, without any effect.
    fn of(host: &'a Host, processor: &Processor) -> Option<Self> {
        let mut names = ["kvm_intel", "kvm_amd"];
        names.sort_by_key(|name| *name != processor.module());
        names
            .into_iter()
            .map(|name| Self {
                host,
                name,
                parameters: format!("/sys/module/{name}/parameters"),
            })
            .find(|module| host.exists(&module.parameters))
    }

    fn switch(&self, parameter: &str) -> Option<bool> {
        self.host
            .switch(&format!("{}/{parameter}", self.parameters))
    }

    /// A parameter that cannot be read.
    fn silent(&self, check: &'static str) -> Check {
        Check::unknown(
            check,
            format!("{} does not say", self.parameters),
            "Most likely it is on, as by default.",
        )
    }

    /// Loads the module anew with a parameter, now and at each start.
    fn reload(&self, parameter: &str) -> Fix {
        let name = self.name;
        Fix::commands(
            "With no VM running:",
            [
                format!(
                    "echo 'options {name} {parameter}=1' > /etc/modprobe.d/paddock-{parameter}.conf"
                ),
                format!("modprobe -r {name} && modprobe {name}"),
            ],
        )
    }
}

fn nested_paging(module: &Module<'_>, processor: &Processor, platform: &Platform) -> Check {
    const NAME: &str = "nested-paging";
    let (parameter, name, flag) = match module.name {
        "kvm_intel" => (
            "ept",
            "EPT",
            processor.has("ept") || processor.vmx_flags.iter().any(|f| f == "ept"),
        ),
        _ => ("npt", "NPT", processor.has("npt")),
    };
    match module.switch(parameter) {
        Some(true) => Check::ok(NAME, format!("{name} is on")),
        None => module.silent(NAME),
        Some(false) => {
            let fix = if flag {
                module.reload(parameter)
            } else if platform.is_nested() {
                Fix::text(format!(
                    "The processor shows no {name}: the hypervisor below must pass it on. {}",
                    platform.nesting_fix(module.name).text
                ))
            } else {
                Fix::text(format!("This processor has no {name}: use a newer one."))
            };
            Check::degraded(
                NAME,
                format!("{name} is off"),
                "KVM keeps shadow page tables instead: VMs run, much slower, above all when they start processes.",
            )
            .fix(fix)
        }
    }
    .fact("nested_paging", module.switch(parameter))
}

/// Where no module of the processor's tells.
fn shadow_paging(host: &Host) -> Check {
    const NAME: &str = "nested-paging";
    if host.exists(PVM) {
        Check::degraded(
            NAME,
            "PVM keeps shadow page tables",
            "VMs run much slower than with EPT or NPT, above all when they start processes.",
        )
    } else {
        Check::unknown(
            NAME,
            "neither kvm_intel nor kvm_amd is loaded",
            "Without EPT or NPT VMs run much slower.",
        )
    }
    .fact("nested_paging", None::<bool>)
}

/// AMD has had it from the start.
fn real_mode(module: &Module<'_>) -> Option<Check> {
    const NAME: &str = "real-mode";
    let unrestricted = module.switch("unrestricted_guest")?;
    Some(if unrestricted {
        Check::ok(NAME, "unrestricted guest is on")
    } else {
        Check::degraded(
            NAME,
            "unrestricted guest is off",
            "Real mode is emulated, so firmware and the second and later vCPUs start slowly. Paddock enters a kernel in 64-bit \
             mode, or by PVH, so that the first vCPU needs none.",
        )
        .fix(Fix::text("It needs EPT, and a hypervisor below that passes it on (ESXi: a newer hardware version)."))
    })
}

fn acceleration(module: &Module<'_>) -> Check {
    const NAME: &str = "acceleration";
    let known: &[(&str, &str)] = match module.name {
        "kvm_intel" => &[
            ("vpid", "VPID"),
            ("flexpriority", "FlexPriority"),
            ("enable_apicv", "APICv"),
            ("pml", "PML"),
            ("enable_shadow_vmcs", "shadow VMCS"),
        ],
        _ => &[
            ("avic", "AVIC"),
            ("vgif", "vGIF"),
            ("vls", "virtual VMLOAD and VMSAVE"),
            ("nrips", "next RIP save"),
        ],
    };
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for (parameter, name) in known {
        match module.switch(parameter) {
            Some(true) => on.push(*name),
            Some(false) => off.push(*name),
            None => {}
        }
    }
    let list = |names: &[&str]| {
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    Check::ok(NAME, format!("on: {}; off: {}", list(&on), list(&off)))
        .means("What is off makes some exits slower; nothing fails for want of it.")
        .fact("on", on)
        .fact("off", off)
}

fn nesting(module: &Module<'_>) -> Check {
    const NAME: &str = "nesting";
    match module.switch("nested") {
        Some(true) => Check::ok(NAME, "guests can run VMs themselves (--cpus nested=on)"),
        None => module.silent(NAME),
        Some(false) => Check::missing(
            NAME,
            "guests cannot run VMs themselves",
            "A VM with --cpus nested=on gets neither VT-x nor AMD-V.",
        )
        .fix(module.reload("nested")),
    }
    .fact("nested", module.switch("nested"))
}
