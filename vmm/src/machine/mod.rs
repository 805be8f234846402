//! The machine: one life of the VM, from power-on to a reset or the end.
//!
//! A reset drops the machine and builds it anew in the same process from the same spec and [`Resources`] (guest RAM,
//! opened disks, taps, consoles). So there is no second way to bring a device into its initial state, and nothing of the old life can
//! leak into the new one. Built and torn down on a blocking thread of the control plane.

pub mod chipset;
pub mod resources;
mod slots;

use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use paddock_api::spec::{Boot, VmSpec};
use paddock_devices::console::ConsoleInput;
use paddock_devices::legacy::PowerEvents;
use vm_memory::GuestAddressSpace;

use self::chipset::{Chipset, ChipsetInputs};
use self::resources::Resources;
use self::slots::PciSlots;
use crate::Error;
use crate::acpi;
use crate::boot::{self, BootEntry, BootFiles, BootRequest};
use crate::cpu::{cpuid, registers, topology::Topology};
use crate::kvm::{Kvm, Vm};
use crate::layout;
use crate::memory::e820;
use crate::vcpu::Vcpus;
use crate::vcpu::report::CrashReport;

/// What the machine tells its owner. Called on vCPU threads.
pub trait MachineEvents {
    /// A vCPU cannot go on.
    fn crashed(&self, report: CrashReport);
    /// Where power-off and reset requests of the guest go.
    fn power(&self) -> Arc<dyn PowerEvents>;
}

/// A built machine.
#[derive(Debug)]
pub struct Machine {
    // Dropped in this order: vCPUs first, then what they use.
    vcpus: Vcpus,
    slots: PciSlots,
    chipset: Chipset,
    resources: Resources,
    vm: Vm,
}

impl Machine {
    /// Builds a machine, loads what it boots, and leaves its vCPUs paused at their first instruction.
    ///
    /// # Errors
    /// When the host lacks something or the kernel cannot be booted.
    pub fn build<E>(spec: &VmSpec, mut resources: Resources, events: &E) -> Result<Self, Error>
    where
        E: MachineEvents + Clone + Send + Sync + 'static,
    {
        let count = u32::from(spec.cpus.count);
        let vm = resources.kvm.create_vm(&resources.ram, count)?;
        let chipset = Chipset::build(ChipsetInputs {
            interrupts: vm.interrupts(),
            power: events.power(),
            serial_sink: Arc::clone(&resources.consoles.serial.sink),
            ram_size: spec.memory.size.bytes(),
            clock_offset: resources.clock_offset,
        })?;
        let cpus = Cpus::new(spec, &resources.kvm)?;
        let ram_size = spec.memory.size.bytes();
        let mmio64 = layout::mmio64(cpus.physical_bits, ram_size)
            .ok_or_else(|| too_much_ram(cpus.physical_bits))?;
        let mut slots = PciSlots::new(&vm, &chipset, mmio64.clone());
        resources.plug_devices(spec, &mut slots)?;
        let serial = Arc::clone(&chipset.serial) as Arc<dyn ConsoleInput>;
        resources.consoles.serial.input.connect(Some(serial));
        let entry = load(spec, &mut resources.boot_files, &vm, &cpus, mmio64)?;
        let fds = cpus.create(&vm, entry)?;
        let crash = events.clone();
        let vcpus = Vcpus::spawn(
            fds,
            &chipset.buses,
            &(Arc::new(move |r| crash.crashed(r)) as _),
        )
        .map_err(Error::host("starting vCPU threads"))?;
        Ok(Self {
            vcpus,
            slots,
            chipset,
            resources,
            vm,
        })
    }

    /// Lets the guest run.
    pub fn start(&self) {
        self.vcpus.run();
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.chipset.pm.press_power_button();
    }

    /// Gives every vCPU a non-maskable interrupt.
    pub fn inject_nmi(&self) {
        if let Err(error) = self.vm.interrupts().inject_nmi() {
            tracing::warn!(%error, "giving the guest an NMI");
        }
    }

    /// Ends the guest for good. Disks are drained as far as they let themselves, threads joined.
    pub fn stop(mut self) {
        self.end();
    }

    /// Ends the guest and gives back what the next machine is built from, once nothing of this one can touch it any more.
    #[must_use]
    pub fn recycle(mut self) -> Resources {
        self.end();
        self.slots.wait_until_quiet();
        self.resources.clock_offset = self.chipset.cmos.offset_seconds();
        self.resources
    }

    fn end(&mut self) {
        self.vcpus.end();
        self.resources.disconnect_serial();
        self.slots.shut_down();
    }
}

/// The vCPUs before they are created.
struct Cpus {
    topology: Topology,
    supported: kvm_bindings::CpuId,
    options: cpuid::CpuidOptions,
    physical_bits: u8,
}

impl Cpus {
    fn new(spec: &VmSpec, kvm: &Kvm) -> Result<Self, Error> {
        let shape = spec.cpus.topology;
        let topology = Topology::new(
            shape.sockets.into(),
            shape.cores.into(),
            shape.threads.into(),
        )
        .map_err(|error| Error::Cpus(error.into()))?;
        let supported = kvm.supported_cpuid()?;
        let physical_bits = cpuid::physical_bits(&supported);
        Ok(Self {
            topology,
            supported,
            options: cpuid::CpuidOptions {
                nested: spec.cpus.nested,
                tsc_deadline: kvm.has_tsc_deadline(),
            },
            physical_bits,
        })
    }

    /// The APIC ids, in vCPU order.
    fn apic_ids(&self) -> Vec<u32> {
        (0..self.topology.cpus())
            .map(|index| self.topology.apic_id(index))
            .collect()
    }

    /// Creates the vCPUs in their initial state: the first at the kernel's entry, the others waiting for it.
    fn create(&self, vm: &Vm, entry: BootEntry) -> Result<Vec<VcpuFd>, Error> {
        let mut vcpus = Vec::new();
        for (index, apic_id) in self.apic_ids().into_iter().enumerate() {
            let vcpu = vm.create_vcpu(apic_id)?;
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            let cpuid = cpuid::filter(&self.supported, &self.topology, number, &self.options);
            vcpu.set_cpuid2(&cpuid)
                .map_err(crate::kvm::call("setting CPUID"))?;
            registers::setup_msrs(&vcpu)?;
            if index == 0 {
                registers::setup_boot_vcpu(&vcpu, &entry)?;
            }
            vcpus.push(vcpu);
        }
        Ok(vcpus)
    }
}

fn too_much_ram(physical_bits: u8) -> Error {
    let most = layout::ram_size_max(physical_bits) >> 20;
    let text = format!("this host's CPU addresses {physical_bits} bits: at most {most} MiB fit");
    Error::part("/memory/size", text)
}

/// Puts the kernel and the ACPI tables into guest RAM.
fn load(
    spec: &VmSpec,
    files: &mut BootFiles,
    vm: &Vm,
    cpus: &Cpus,
    mmio64: std::ops::Range<u64>,
) -> Result<BootEntry, Error> {
    let Boot::Kernel(kernel) = &spec.boot;
    let ram_size = spec.memory.size.bytes();
    let ecam = layout::ECAM_BASE..layout::ECAM_BASE + layout::ECAM_SIZE;
    let memory = vm.memory().memory();
    let rsdp = acpi::write(
        &memory,
        &acpi::TablesInput {
            apic_ids: cpus.apic_ids(),
            ecam: ecam.clone(),
            mmio32: layout::MMIO32,
            mmio64,
            pm_base: layout::PM_BASE,
        },
    )
    .map_err(|error| Error::part("/", error))?;
    let entry = boot::load(
        files,
        &BootRequest {
            cmdline: &kernel.command_line,
            e820: &e820(ram_size, Some(ecam)),
            rsdp,
        },
        &memory,
    )?;
    registers::write_boot_tables(&memory, entry.protocol)
        .map_err(|error| Error::part("/memory", error))?;
    Ok(entry)
}
