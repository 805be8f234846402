//! The machine: one life of the VM, from power-on to a reset or the end.
//!
//! A reset drops the machine and builds it anew in the same process from the same spec and [`Resources`] (guest RAM,
//! opened disks, taps, consoles). So there is no second way to bring a device into its initial state, and nothing of the old life can
//! leak into the new one. Built and torn down on a blocking thread of the control plane.

pub mod chipset;
pub mod devices;
mod disks;
mod firmware;
pub mod resources;
mod slots;
mod smbios;
pub mod volumes;

use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use paddock_api::spec::{Boot, KernelBoot, VmSpec};
use paddock_devices::console::ConsoleInput;
use paddock_devices::cpu_hotplug::CpuEvents;
use paddock_devices::legacy::PowerEvents;
use paddock_devices::pci::DeviceFunction;
use paddock_devices::pci::hotplug::SlotEvents;
use paddock_devices::virtio::pci::VirtioPci;
use vm_memory::GuestAddressSpace;

use self::chipset::{Chipset, ChipsetInputs};
use self::devices::{DeviceKey, OpenDevice};
use self::firmware::FirmwareInputs;
use self::resources::{OpenBoot, Resources};
use self::slots::PciSlots;
use self::volumes::OpenVolume;
use crate::Error;
use crate::acpi;
use crate::boot::{self, BootEntry, BootFiles, BootRequest};
use crate::cpu::registers::{self, FirstMsrs};
use crate::cpu::{cpuid, topology::Topology};
use crate::kvm::{Kvm, Vm};
use crate::layout;
use crate::memory::e820;
use crate::smbios::Smbios;
use crate::vcpu::Vcpus;
use crate::vcpu::report::CrashReport;

/// What the machine tells its owner. Called on vCPU threads.
pub trait MachineEvents {
    /// A vCPU cannot go on.
    fn crashed(&self, report: CrashReport);
    /// Where power-off and reset requests of the guest go.
    fn power(&self) -> Arc<dyn PowerEvents>;
    /// Where it is told that the guest let go of a device.
    fn slots(&self) -> Arc<dyn SlotEvents>;
    /// Where it is told that the guest let go of a CPU.
    fn cpus(&self) -> Arc<dyn CpuEvents>;
}

/// A built machine.
#[derive(Debug)]
pub struct Machine {
    // Dropped in this order: vCPUs first, then what they use.
    vcpus: Vcpus,
    /// A vCPU that was created and got no thread: KVM gives each only once.
    spare_vcpu: Option<VcpuFd>,
    cpus: Cpus,
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
        let meters = Arc::clone(&resources.meters);
        let mut vm = resources
            .kvm
            .create_vm(&resources.ram, spec.cpus.max.into())?;
        let present = resources.processors.start();
        let chipset = Chipset::build(ChipsetInputs {
            interrupts: vm.interrupts(),
            power: events.power(),
            slots: events.slots(),
            cpus: events.cpus(),
            cpu_count: (present, spec.cpus.max.into()),
            serial_sink: meters.serial_sink(Arc::clone(&resources.consoles.serial.sink)),
            ram_size: spec.memory.size.bytes(),
            clock_offset: resources.clock_offset,
            firmware: matches!(spec.boot, Boot::Firmware(_)),
        })?;
        let cpus = Cpus::new(spec, &resources.kvm)?;
        let (size, max) = (spec.memory.size.bytes(), spec.memory.max.bytes());
        let mmio64 = layout::mmio64(cpus.physical_bits, layout::memory_end(size, max))
            .ok_or_else(|| too_much_ram(cpus.physical_bits, size))?;
        let window = matches!(spec.boot, Boot::Kernel(_)).then(|| mmio64.clone());
        let mut slots = PciSlots::new(&vm, &chipset, window);
        for device in resources.devices.iter_mut() {
            slots.plug(device)?;
        }
        let keys = meters.serial_keys(Arc::clone(&chipset.serial) as Arc<dyn ConsoleInput>);
        resources.consoles.serial.input.connect(Some(keys));
        let tables = acpi::TablesInput {
            apic_ids: cpus.apic_ids(),
            present: (spec.cpus.max > spec.cpus.count).then_some(present),
            ecam: layout::ECAM_BASE..layout::ECAM_BASE + layout::ECAM_SIZE,
            mmio32: layout::MMIO32,
            mmio64,
            pm_base: layout::PM_BASE,
        };
        let entry = prepare_boot(spec, &mut resources, &mut vm, &chipset, &cpus, tables)?;
        let fds = cpus.create(&vm, present, entry.as_ref())?;
        let crash = events.clone();
        let vcpus = Vcpus::spawn(
            fds,
            &chipset.buses,
            &meters,
            &(Arc::new(move |r| crash.crashed(r)) as _),
        )?;
        Ok(Self {
            vcpus,
            spare_vcpu: None,
            cpus,
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

    /// Takes every vCPU out of the guest; [`start`](Self::start) lets it go on. Waits for those that are in a device, and a while for the
    /// firmware's variables to be on disk.
    pub fn pause(&self) {
        self.vcpus.pause();
        self.save_variables();
    }

    fn save_variables(&self) {
        if let OpenBoot::Firmware(firmware) = &self.resources.boot {
            firmware.save();
        }
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.chipset.pm.press_power_button();
    }

    /// Plugs a device into the running machine and tells the guest, which looks by itself.
    ///
    /// # Errors
    /// When there is no place for it or the host lacks something. The device is given back, to be closed by whoever may block.
    pub fn add(&mut self, mut device: OpenDevice) -> Result<(), Box<(Error, OpenDevice)>> {
        if let Err(error) = self.slots.hot_plug(&mut device) {
            return Err(Box::new((error, device)));
        }
        self.resources.add(device);
        Ok(())
    }

    /// Asks the guest to let go of a device; `false` if there is no such device. Asking again is right when nothing comes of it.
    #[must_use]
    pub fn want_back(&self, key: &DeviceKey) -> bool {
        let at = self.slot_of(key);
        at.is_some_and(|at| {
            self.chipset.hot_plug.want_back(at);
            true
        })
    }

    /// Tells the guest again of what it has not looked at yet.
    pub fn remind(&self) {
        self.chipset.hot_plug.remind();
    }

    /// Lets the guest keep a device that was wanted back. `false` when the guest has let go of it already.
    #[must_use]
    pub fn keep(&self, key: &DeviceKey) -> bool {
        let at = self.slot_of(key);
        at.is_none_or(|at| self.chipset.hot_plug.keep(at))
    }

    /// The devices the guest has let go of since the last call, out of the machine.
    #[must_use]
    pub fn take_released(&mut self) -> Vec<ReleasedDevice> {
        let mut released = Vec::new();
        for at in self.chipset.hot_plug.take_released() {
            let Some(function) = self.slots.take(at) else {
                continue;
            };
            let device = self.resources.take_if(|device| device.slot == Some(at));
            if let Some(device) = device {
                released.push(ReleasedDevice { function, device });
            }
        }
        released
    }

    fn slot_of(&self, key: &DeviceKey) -> Option<DeviceFunction> {
        let mut devices = self.resources.devices.iter();
        devices.find(|device| device.key() == *key)?.slot
    }

    /// Plugs a CPU in, by its number, and tells the guest.
    ///
    /// # Errors
    /// When the host or KVM does not give it. Nothing has changed then.
    pub fn add_cpu(&mut self, number: u32) -> Result<(), Error> {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        if !self.vcpus.unpark(index)? {
            self.add_vcpu()?;
        }
        self.chipset.cpu_hot_plug.add(number);
        Ok(())
    }

    /// Creates the next vCPU and its thread. Those before it are there or parked: CPUs come in the order of their numbers.
    fn add_vcpu(&mut self) -> Result<(), Error> {
        let number = u32::try_from(self.vcpus.created()).unwrap_or(u32::MAX);
        let vcpu = match self.spare_vcpu.take() {
            Some(vcpu) => vcpu,
            None => self.cpus.create_one(&self.vm, number)?,
        };
        let prepared = self.cpus.set_up(&vcpu, number);
        let prepared = prepared.and_then(|()| Ok(registers::announce_apic(&vcpu)?));
        let added = match prepared {
            Ok(()) => self.vcpus.add(vcpu),
            Err(error) => Err((error, Some(vcpu))),
        };
        added.map_err(|(error, vcpu)| {
            self.spare_vcpu = vcpu;
            error
        })
    }

    /// Asks the guest to let go of a CPU. Asking again is right when nothing comes of it.
    pub fn want_cpu_back(&self, number: u32) {
        self.chipset.cpu_hot_plug.want_back(number);
    }

    /// Lets the guest keep a CPU that was wanted back. `false` when the guest has let go of it already.
    #[must_use]
    pub fn keep_cpu(&self, number: u32) -> bool {
        self.chipset.cpu_hot_plug.keep(number)
    }

    /// What the guest answered when it was asked for a CPU, if it refused: a status code of ACPI's `_OST`.
    #[must_use]
    pub fn cpu_refusal(&self, number: u32) -> Option<u32> {
        self.chipset.cpu_hot_plug.refusal(number)
    }

    /// Tells the guest again of CPUs that it has not looked at yet. `false` if there are none.
    #[must_use]
    pub fn remind_of_cpus(&self) -> bool {
        self.chipset.cpu_hot_plug.remind()
    }

    /// The CPUs that the guest has let go of since the last call, out of the machine. Their threads stand still soon.
    #[must_use]
    pub fn take_released_cpus(&self) -> Vec<u32> {
        let released = self.chipset.cpu_hot_plug.take_released();
        for number in &released {
            self.vcpus
                .park(usize::try_from(*number).unwrap_or(usize::MAX));
        }
        released
    }

    /// Gives every vCPU a non-maskable interrupt.
    pub fn inject_nmi(&self) {
        if let Err(error) = self.vm.interrupts().inject_nmi() {
            tracing::warn!(%error, "giving the guest an NMI");
        }
    }

    /// Ends the guest for good. Disks are drained as far as they let themselves, threads joined.
    pub fn stop(mut self) {
        // They are drained first, which is to leave them the time for their close.
        let volumes = self.resources.devices.volumes();
        volumes.for_each(OpenVolume::expect_close);
        self.end();
        self.save_variables();
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

/// A device that is out of the machine and not closed yet.
#[derive(Debug)]
pub struct ReleasedDevice {
    function: Arc<VirtioPci>,
    device: OpenDevice,
}

impl ReleasedDevice {
    /// Which one it is.
    #[must_use]
    pub fn key(&self) -> DeviceKey {
        self.device.key()
    }

    /// Drains and closes it; blocks as long as its storage does. `false` if something still holds its backend.
    #[must_use]
    pub fn close(self) -> bool {
        self.function.shut_down();
        slots::wait_until_quiet(&self.function);
        drop(self.function);
        self.device.close()
    }
}

/// How vCPUs are created.
#[derive(Debug)]
struct Cpus {
    topology: Topology,
    supported: kvm_bindings::CpuId,
    options: cpuid::CpuidOptions,
    physical_bits: u8,
    first_msrs: FirstMsrs,
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
            first_msrs: match spec.boot {
                Boot::Kernel(_) => FirstMsrs::AfterFirmware,
                Boot::Firmware(_) => FirstMsrs::PowerOn,
            },
        })
    }

    /// The APIC ids, in vCPU order.
    fn apic_ids(&self) -> Vec<u32> {
        (0..self.topology.cpus())
            .map(|index| self.topology.apic_id(index))
            .collect()
    }

    /// Creates the first `count` vCPUs in their initial state: the first at the kernel's entry, or at the reset vector, the others
    /// waiting for it.
    fn create(
        &self,
        vm: &Vm,
        count: usize,
        entry: Option<&BootEntry>,
    ) -> Result<Vec<VcpuFd>, Error> {
        let mut vcpus = Vec::new();
        for number in (0u32..).take(count) {
            let vcpu = self.create_one(vm, number)?;
            self.set_up(&vcpu, number)?;
            if let (0, Some(entry)) = (number, entry) {
                registers::setup_boot_vcpu(&vcpu, entry)?;
            }
            vcpus.push(vcpu);
        }
        Ok(vcpus)
    }

    /// Creates a vCPU.
    fn create_one(&self, vm: &Vm, number: u32) -> Result<VcpuFd, Error> {
        Ok(vm.create_vcpu(self.topology.apic_id(number))?)
    }

    /// Makes a new vCPU one that waits for another one to start it.
    fn set_up(&self, vcpu: &VcpuFd, number: u32) -> Result<(), Error> {
        let cpuid = cpuid::filter(&self.supported, &self.topology, number, &self.options);
        vcpu.set_cpuid2(&cpuid)
            .map_err(crate::kvm::call("setting CPUID"))?;
        Ok(registers::setup_msrs(vcpu, self.first_msrs)?)
    }
}

/// RAM of `size`, or what it may grow by, reaches into the window for BARs.
fn too_much_ram(physical_bits: u8, size: u64) -> Error {
    let most = layout::ram_size_max(physical_bits);
    let (pointer, most) = if size > most {
        ("/memory/size", most)
    } else {
        ("/memory/max", layout::growth_max(physical_bits, size))
    };
    let most = most >> 20;
    let text = format!("this host's CPU addresses {physical_bits} bits: at most {most} MiB fit");
    Error::part(pointer, text)
}

/// Makes the machine ready for its first instruction: loads the kernel, whose entry it gives, or plugs firmware in.
fn prepare_boot(
    spec: &VmSpec,
    resources: &mut Resources,
    vm: &mut Vm,
    chipset: &Chipset,
    cpus: &Cpus,
    tables: acpi::TablesInput,
) -> Result<Option<BootEntry>, Error> {
    match (&spec.boot, &mut resources.boot) {
        (Boot::Kernel(kernel), OpenBoot::Kernel(files)) => {
            let processor = cpuid::ProcessorName::of(&cpus.supported);
            let smbios = smbios::smbios(spec, false, &processor)?;
            let ram_size = spec.memory.size.bytes();
            load(kernel, ram_size, files, vm, &tables, &smbios).map(Some)
        }
        (Boot::Firmware(boot), OpenBoot::Firmware(open)) => {
            let inputs = FirmwareInputs {
                spec,
                order: &firmware::boot_places(&boot.order, &resources.devices),
                present: resources.processors.start(),
                processor: &cpuid::ProcessorName::of(&cpus.supported),
                tables,
            };
            open.plug_in(vm, chipset, inputs)?;
            Ok(None)
        }
        _ => Err(Error::part("/boot", "was opened for another kind of boot")),
    }
}

/// Puts the kernel, the ACPI tables and SMBIOS into guest RAM.
fn load(
    kernel: &KernelBoot,
    ram_size: u64,
    files: &mut BootFiles,
    vm: &Vm,
    tables: &acpi::TablesInput,
    smbios: &Smbios,
) -> Result<BootEntry, Error> {
    let memory = vm.memory().memory();
    let rsdp = acpi::write(&memory, tables).map_err(|error| Error::part("/cpus", error))?;
    smbios
        .write(&memory)
        .map_err(|error| Error::part("/smbios", error))?;
    let entry = boot::load(
        files,
        &BootRequest {
            cmdline: &kernel.command_line,
            e820: &e820(ram_size, Some(tables.ecam.clone())),
            rsdp,
        },
        &memory,
    )?;
    registers::write_boot_tables(&memory, entry.protocol)
        .map_err(|error| Error::part("/memory", error))?;
    Ok(entry)
}
