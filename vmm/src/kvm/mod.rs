//! KVM as the machine uses it: what the host must offer, and the VM with its in-kernel interrupt controllers.
//!
//! [`Kvm`] is opened once; a [`Vm`] lives from one reset of the guest to the next.

mod doorbells;
mod flash;
mod interrupts;
pub mod passed;

pub use flash::ReadOnlySlot;
pub use interrupts::{Interrupts, MessageLines, WiredLine};

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
    KVM_PMU_CAP_DISABLE, kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use paddock_devices::firmware::flash::FlashMemory;
use paddock_devices::virtio::GuestRam;
use vm_memory::{Address, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout;

/// Why KVM cannot be used, or refused something.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// `/dev/kvm` cannot be opened.
    #[error("/dev/kvm cannot be opened{}", open_hint(.0))]
    Open(#[source] io::Error),
    /// A KVM of another age.
    #[error("KVM speaks API version {0}, 12 is needed: this is not a kernel Paddock knows")]
    ApiVersion(i32),
    /// A capability that the machine cannot do without.
    #[error("KVM lacks {0}: the host's kernel is too old, or its kvm module does not offer it")]
    Missing(&'static str),
    /// More vCPUs than KVM has.
    #[error("/cpus: {wanted} vCPUs asked for, this host's KVM gives at most {most}")]
    TooManyVcpus {
        /// What the spec asks for.
        wanted: u32,
        /// What KVM gives.
        most: usize,
    },
    /// A call failed.
    #[error("KVM: {action}")]
    Call {
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn open_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            ": is virtualization switched on (BIOS, or the hypervisor below), and is kvm_intel or kvm_amd loaded? paddock doctor tells"
        }
        io::ErrorKind::PermissionDenied => {
            ": run as root or as a member of the group kvm; paddock doctor tells how"
        }
        _ => "",
    }
}

pub(crate) fn call(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Call {
        action,
        source: io::Error::from_raw_os_error(error.errno()),
    }
}

/// What the machine is built on: without one of these it cannot be.
const REQUIRED: [(Cap, &str); 11] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The opened `/dev/kvm`, known to be good enough.
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
}

impl std::fmt::Debug for Kvm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kvm")
    }
}

impl Kvm {
    /// Opens `/dev/kvm` and checks what it can do.
    ///
    /// # Errors
    /// Missing device, rights, API version or capability, each named.
    pub fn open() -> Result<Self, KvmError> {
        let this = Self::open_unchecked()?;
        let missing = this.missing().next();
        match missing {
            Some(name) => Err(KvmError::Missing(name)),
            None => Ok(this),
        }
    }

    /// Opens a `/dev/kvm` that may lack capabilities: [`Kvm::missing`] tells.
    ///
    /// # Errors
    /// Missing device, rights or API version.
    pub(crate) fn open_unchecked() -> Result<Self, KvmError> {
        let fd = passed::open()?;
        let version = fd.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(KvmError::ApiVersion(version));
        }
        Ok(Self { fd })
    }

    /// The capabilities that the machine cannot do without and this KVM has not, by the kernel's names.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &'static str> {
        REQUIRED
            .into_iter()
            .filter(|(cap, _)| !self.fd.check_extension(*cap))
            .map(|(_, name)| name)
    }

    /// What KVM answers about a capability, by its number: 0 if it is not there, otherwise 1 or what the capability says.
    pub(crate) fn capability(&self, number: u32) -> u32 {
        u32::try_from(self.fd.check_extension_raw(number.into())).unwrap_or(0)
    }

    /// The largest number of vCPUs of a VM.
    pub(crate) fn max_vcpus(&self) -> usize {
        self.fd.get_max_vcpus()
    }

    /// The CPU features KVM can give a guest on this host.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(call("reading the supported CPUID"))
    }

    /// Whether the in-kernel APIC has the TSC-deadline timer.
    #[must_use]
    pub fn has_tsc_deadline(&self) -> bool {
        self.fd.check_extension(Cap::TscDeadlineTimer)
    }

    /// Makes a VM with guest RAM, interrupt controllers and timer.
    ///
    /// # Errors
    /// When KVM refuses a step, which the error names.
    pub fn create_vm(&self, memory: &GuestRam, vcpus: u32) -> Result<Vm, KvmError> {
        let most = self.max_vcpus();
        if vcpus as usize > most {
            return Err(KvmError::TooManyVcpus {
                wanted: vcpus,
                most,
            });
        }
        let fd = self.create_vm_fd()?;
        disable_pmu(&fd)?;
        let tss = usize::try_from(layout::KVM_TSS).unwrap_or(usize::MAX);
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(call("setting the identity map"))?;
        fd.set_tss_address(tss).map_err(call("setting the TSS"))?;
        fd.create_irq_chip()
            .map_err(call("creating the interrupt controllers"))?;
        fd.create_pit2(kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        })
        .map_err(call("creating the PIT"))?;
        let fd = Arc::new(fd);
        let slots = set_memory(&fd, memory)?;
        tracing::debug!(slots, "memory slots");
        let interrupts = Interrupts::new(Arc::clone(&fd))?;
        Ok(Vm {
            fd,
            interrupts,
            memory: memory.clone(),
            flashes: Vec::new(),
            next_slot: slots,
        })
    }

    /// KVM_CREATE_VM is interrupted by any signal while the kernel starts threads of its own; it is safe to try again.
    fn create_vm_fd(&self) -> Result<VmFd, KvmError> {
        let mut tries = 0;
        loop {
            match self.fd.create_vm() {
                Err(error) if error.errno() == libc::EINTR && tries < 5 => tries += 1,
                other => return other.map_err(call("creating the VM")),
            }
        }
    }
}

/// A VM in KVM.
pub struct Vm {
    fd: Arc<VmFd>,
    interrupts: Arc<Interrupts>,
    /// Keeps what the memory slots point to mapped, as does the next one.
    memory: GuestRam,
    flashes: Vec<Arc<FlashMemory>>,
    /// The number of the next memory slot.
    next_slot: u32,
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("interrupts", &self.interrupts)
            .finish_non_exhaustive()
    }
}

impl Vm {
    /// Interrupt lines and message routes.
    #[must_use]
    pub fn interrupts(&self) -> &Arc<Interrupts> {
        &self.interrupts
    }

    /// Guest RAM.
    #[must_use]
    pub fn memory(&self) -> &GuestRam {
        &self.memory
    }

    /// Doorbells that end in events.
    #[must_use]
    pub fn doorbells(&self) -> Arc<dyn paddock_devices::virtio::pci::Doorbells> {
        Arc::new(doorbells::IoEvents::new(Arc::clone(&self.fd)))
    }

    /// Shows a flash to the guest at `address`, read-only: what it writes there exits.
    ///
    /// # Errors
    /// When KVM cannot or refuses.
    pub fn show_flash(
        &mut self,
        address: u64,
        memory: Arc<FlashMemory>,
    ) -> Result<ReadOnlySlot, KvmError> {
        if !self.fd.check_extension(Cap::ReadonlyMem) {
            return Err(KvmError::Missing("KVM_CAP_READONLY_MEM"));
        }
        self.flashes.push(Arc::clone(&memory));
        let slot = ReadOnlySlot::new(Arc::clone(&self.fd), self.next_slot, address, memory);
        self.next_slot += 1;
        slot.put_in().map_err(|source| KvmError::Call {
            action: "adding a flash",
            source,
        })?;
        Ok(slot)
    }

    /// A vCPU with this APIC id.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn create_vcpu(&self, apic_id: u32) -> Result<VcpuFd, KvmError> {
        self.fd
            .create_vcpu(apic_id.into())
            .map_err(call("creating a vCPU"))
    }
}

/// Closes the performance counters' MSRs, which on AMD are there whatever CPUID says. Kernels before 5.18 cannot.
fn disable_pmu(fd: &VmFd) -> Result<(), KvmError> {
    if fd.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into()) & 1 == 0 {
        return Ok(());
    }
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        ..Default::default()
    };
    cap.args[0] = KVM_PMU_CAP_DISABLE.into();
    fd.enable_cap(&cap)
        .map_err(call("disabling performance counters"))
}

/// Tells KVM where guest RAM is; returns the number of slots.
#[expect(
    unsafe_code,
    reason = "KVM maps guest RAM by the host's virtual addresses"
)]
fn set_memory(fd: &VmFd, memory: &GuestRam) -> Result<u32, KvmError> {
    let mut slot = 0;
    for region in memory.memory().iter() {
        let kvm_region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the range is a mapping owned by `memory`, which `Vm` holds as long as the VM.
        unsafe { fd.set_user_memory_region(kvm_region) }.map_err(call("adding guest RAM"))?;
        slot += 1;
    }
    Ok(slot)
}
