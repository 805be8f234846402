//! What this host itself runs on: bare metal, or a hypervisor by its CPUID signature; and how to have each one nest VMs.

use super::host::Host;
use super::report::Fix;

/// The first CPUID leaf of hypervisors.
const FIRST_LEAF: u32 = 0x4000_0000;
/// One that pretends to be another has its own leaves further up; Linux looks as far.
const LEAVES: u32 = 0x1_0000;
/// How far apart they are.
const STEP: usize = 0x100;

/// What CPUID says of a hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signatures {
    /// CPUID.1:ECX bit 31.
    pub present: bool,
    /// In the order of the leaves, without trailing zeros.
    pub names: Vec<String>,
}

impl Signatures {
    /// This processor's. No system call, cannot fail.
    #[must_use]
    pub fn read() -> Self {
        let present = raw_cpuid::cpuid!(1).ecx >> 31 == 1;
        if !present {
            return Self::default();
        }
        let names = (FIRST_LEAF..FIRST_LEAF + LEAVES)
            .step_by(STEP)
            .filter_map(|leaf| {
                let answer = raw_cpuid::cpuid!(leaf);
                // Beyond the last leaf a processor answers anything. KVM of old says 0 for its only leaf.
                let range = leaf..leaf + 0x100;
                let valid = range.contains(&answer.eax) || (leaf == FIRST_LEAF && answer.eax == 0);
                let bytes = [answer.ebx, answer.ecx, answer.edx]
                    .map(u32::to_le_bytes)
                    .concat();
                let name = printable(&bytes);
                (valid && !name.is_empty()).then_some(name)
            })
            .collect();
        Self { present, names }
    }
}

fn printable(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|&byte| byte != 0);
    bytes
        .get(..end.map_or(0, |last| last + 1))
        .unwrap_or_default()
        .iter()
        .map(|&byte| match byte {
            b' '..=b'~' => char::from(byte),
            _ => '?',
        })
        .collect()
}

/// What is below this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hypervisor {
    /// Bare metal.
    None,
    /// KVM, with QEMU or another VMM.
    Kvm,
    /// VMware ESXi, Workstation or Fusion.
    VMware,
    /// Microsoft Hyper-V.
    HyperV,
    /// QEMU without hardware acceleration.
    Tcg,
    /// Xen.
    Xen,
    /// VirtualBox.
    VirtualBox,
    /// Parallels Desktop.
    Parallels,
    /// FreeBSD's bhyve.
    Bhyve,
    /// One that says nothing known.
    Unknown(String),
}

impl Hypervisor {
    fn of(signatures: &Signatures) -> Self {
        if !signatures.present {
            return Self::None;
        }
        let known = |name: &String| match name.as_str() {
            "KVMKVMKVM" | "Linux KVM Hv" => Some(Self::Kvm),
            "VMwareVMware" => Some(Self::VMware),
            "Microsoft Hv" => Some(Self::HyperV),
            "TCGTCGTCGTCG" => Some(Self::Tcg),
            "XenVMMXenVMM" => Some(Self::Xen),
            "VBoxVBoxVBox" => Some(Self::VirtualBox),
            " lrpepyh  vr" | "prl hyperv  " | "prl hyperv" => Some(Self::Parallels),
            "bhyve bhyve" | "bhyve bhyve " => Some(Self::Bhyve),
            _ => None,
        };
        let mut all: Vec<Self> = signatures.names.iter().filter_map(known).collect();
        if all.len() > 1 {
            // Others offer Hyper-V's interface to their guests, and then their own further up.
            all.retain(|one| *one != Self::HyperV);
        }
        all.into_iter()
            .next()
            .unwrap_or_else(|| Self::Unknown(signatures.names.first().cloned().unwrap_or_default()))
    }
}

/// A cloud, where the way to nested VMs is the cloud's and not its hypervisor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon EC2.
    Aws,
    /// Google Compute Engine.
    Google,
    /// Microsoft Azure.
    Azure,
}

/// The chassis asset tag of every Azure VM.
const AZURE_TAG: &str = "7783-7084-3265-9085-8269-3286-77";

impl Cloud {
    fn of(host: &Host) -> Option<Self> {
        let dmi = |name: &str| host.text(&format!("/sys/class/dmi/id/{name}"));
        if dmi("chassis_asset_tag").as_deref() == Some(AZURE_TAG) {
            return Some(Self::Azure);
        }
        match dmi("sys_vendor").as_deref() {
            Some("Amazon EC2") => Some(Self::Aws),
            Some("Google") => Some(Self::Google),
            _ => None,
        }
    }
}

/// What this host runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The hypervisor below.
    pub hypervisor: Hypervisor,
    /// The cloud it belongs to.
    pub cloud: Option<Cloud>,
    /// What the firmware calls the machine.
    pub product: Option<String>,
}

impl Platform {
    /// Looks at CPUID and DMI.
    #[must_use]
    pub fn of(host: &Host, signatures: &Signatures) -> Self {
        let product = ["sys_vendor", "product_name"]
            .into_iter()
            .filter_map(|name| host.text(&format!("/sys/class/dmi/id/{name}")))
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        Self {
            hypervisor: Hypervisor::of(signatures),
            cloud: Cloud::of(host),
            product: (!product.is_empty()).then_some(product),
        }
    }

    /// The name of what is below, for people.
    #[must_use]
    pub fn name(&self) -> String {
        let name = match &self.hypervisor {
            Hypervisor::None => "none, this is bare metal",
            Hypervisor::Kvm => "KVM",
            Hypervisor::VMware => "VMware (ESXi, Workstation or Fusion)",
            Hypervisor::HyperV => "Microsoft Hyper-V",
            Hypervisor::Tcg => "QEMU's software emulation (TCG)",
            Hypervisor::Xen => "Xen",
            Hypervisor::VirtualBox => "VirtualBox",
            Hypervisor::Parallels => "Parallels",
            Hypervisor::Bhyve => "bhyve",
            Hypervisor::Unknown(signature) if signature.is_empty() => {
                "one that does not say its name"
            }
            Hypervisor::Unknown(signature) => {
                return format!("unknown, it calls itself \"{signature}\"");
            }
        };
        let cloud = match self.cloud {
            _ if self.hypervisor == Hypervisor::None => "",
            None => "",
            Some(Cloud::Aws) => ", Amazon EC2",
            Some(Cloud::Google) => ", Google Compute Engine",
            Some(Cloud::Azure) => ", Microsoft Azure",
        };
        format!("{name}{cloud}")
    }

    /// Its name for programs.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self.hypervisor {
            Hypervisor::None => "none",
            Hypervisor::Kvm => "kvm",
            Hypervisor::VMware => "vmware",
            Hypervisor::HyperV => "hyperv",
            Hypervisor::Tcg => "tcg",
            Hypervisor::Xen => "xen",
            Hypervisor::VirtualBox => "virtualbox",
            Hypervisor::Parallels => "parallels",
            Hypervisor::Bhyve => "bhyve",
            Hypervisor::Unknown(_) => "unknown",
        }
    }

    /// Whether this host is a VM.
    #[must_use]
    pub fn is_nested(&self) -> bool {
        self.hypervisor != Hypervisor::None
    }

    /// How to get VT-x or AMD-V into this host, whose KVM is the module `module`.
    #[must_use]
    pub fn nesting_fix(&self, module: &str) -> Fix {
        match (&self.hypervisor, self.cloud) {
            (Hypervisor::None, _) => Fix::text(
                "Switch virtualization on in the firmware setup (Intel: \"Intel Virtualization Technology\" or VT-x; AMD: \"SVM Mode\"), \
                 save, and power the machine off and on.",
            ),
            (_, Some(Cloud::Aws)) => Fix::text(
                "Use a .metal instance, or an instance type for which EC2 offers nested virtualization, with that option on.",
            ),
            (_, Some(Cloud::Google)) => Fix::commands(
                "Make the instance with nested virtualization, of a machine type that has it (not E2, not Arm):",
                ["gcloud compute instances create NAME --enable-nested-virtualization"],
            ),
            (_, Some(Cloud::Azure)) => Fix::text(
                "Use a VM size that nests, such as Dv3, Ev3 and later, with the security type Standard; Trusted Launch hides it.",
            ),
            (Hypervisor::VMware, None) => Fix::commands(
                "Power this VM off. In its settings, under CPU, tick \"Expose hardware assisted virtualization to the guest OS\" \
                 (Workstation: \"Virtualize Intel VT-x/EPT or AMD-V/RVI\"), or add to its .vmx file (hardware version 9 or later):",
                ["vhv.enable = \"TRUE\""],
            ),
            (Hypervisor::Kvm, None) => Fix::commands(
                "On the host below, let KVM nest (no VM may run while its module is loaded anew), and give this VM the host's CPU: \
                 libvirt <cpu mode='host-passthrough'/>, QEMU -cpu host, Proxmox qm set VMID --cpu host, \
                 KubeVirt and Harvester spec.domain.cpu.model: host-passthrough. Then power this VM off and on.",
                [
                    format!("echo 'options {module} nested=1' > /etc/modprobe.d/kvm-nested.conf"),
                    format!("modprobe -r {module} && modprobe {module}"),
                ],
            ),
            (Hypervisor::HyperV, None) => Fix::commands(
                "Power this VM off, and in PowerShell on its host, as administrator:",
                ["Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true"],
            ),
            (Hypervisor::Tcg, None) => Fix::commands(
                "Start QEMU with an emulated CPU that has AMD's SVM with nested paging; it emulates no VT-x:",
                ["-cpu max"],
            ),
            (Hypervisor::Xen, None) => Fix::commands(
                "Only an HVM domain can nest. In its configuration:",
                ["type = \"hvm\"", "hap = 1", "nestedhvm = 1"],
            ),
            (Hypervisor::VirtualBox, None) => Fix::commands(
                "Power this VM off, and on its host:",
                ["VBoxManage modifyvm NAME --nested-hw-virt on"],
            ),
            (Hypervisor::Parallels, None) => Fix::commands(
                "Power this VM off, and on its host (Intel Macs only):",
                ["prlctl set NAME --nested-virt on"],
            ),
            (Hypervisor::Bhyve, None) => Fix::text(
                "bhyve does not nest. Use bare metal, or a host below that nests, such as KVM or ESXi.",
            ),
            (Hypervisor::Unknown(_), None) => Fix::text(
                "Look for nested virtualization in the settings of the hypervisor that this machine runs on, or use bare metal.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(names: &[&str]) -> Hypervisor {
        Hypervisor::of(&Signatures {
            present: true,
            names: names.iter().map(ToString::to_string).collect(),
        })
    }

    #[test]
    fn signatures_are_told_apart() {
        assert_eq!(Hypervisor::of(&Signatures::default()), Hypervisor::None);
        assert_eq!(below(&["KVMKVMKVM"]), Hypervisor::Kvm);
        assert_eq!(below(&["VMwareVMware"]), Hypervisor::VMware);
        assert_eq!(below(&["Microsoft Hv"]), Hypervisor::HyperV);
        assert_eq!(below(&["TCGTCGTCGTCG"]), Hypervisor::Tcg);
        assert_eq!(below(&["XenVMMXenVMM"]), Hypervisor::Xen);
        assert_eq!(below(&[]), Hypervisor::Unknown(String::new()));
        assert_eq!(below(&["Mystery"]), Hypervisor::Unknown("Mystery".into()));
    }

    #[test]
    fn hyper_v_in_front_of_another_is_the_others() {
        assert_eq!(below(&["Microsoft Hv", "KVMKVMKVM"]), Hypervisor::Kvm);
        assert_eq!(below(&["Microsoft Hv", "XenVMMXenVMM"]), Hypervisor::Xen);
    }

    #[test]
    fn what_a_signature_holds_can_be_printed() {
        assert_eq!(printable(b"KVMKVMKVM\0\0\0"), "KVMKVMKVM");
        assert_eq!(printable(b"\x1b[31m\xff\0\0"), "?[31m?");
        assert_eq!(printable(&[0; 12]), "");
    }

    #[test]
    fn this_processor_answers() {
        let signatures = Signatures::read();
        assert!(signatures.present || signatures.names.is_empty());
    }
}
