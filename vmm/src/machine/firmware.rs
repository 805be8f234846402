//! Firmware in the machine: opened once, plugged in anew at each reset.
//!
//! Its code and variables outlive resets, as the chips on a board do; what they are plugged into, and what fw_cfg tells, is made anew. Opened
//! and plugged in on a blocking thread of the control plane; the ACPI tables are made on the vCPU thread whose guest asks for them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use paddock_api::spec::{DeviceId, FirmwareBoot, PassedFd, VmSpec};
use paddock_devices::firmware::flash::{CodeFlash, FlashChanged, FlashMemory, VarsFlash};
use paddock_devices::firmware::fw_cfg::{FW_CFG_PORT, FW_CFG_PORTS, FwCfg};
use paddock_devices::firmware::vars::{VarsOptions, VarsStore};
use paddock_devices::pci::host_bridge::HostBridge;
use paddock_devices::pci::lpc::LpcBridge;
use paddock_devices::virtio::scsi::{DRIVE_LUN, DRIVE_TARGET};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::chipset::{Chipset, ChipsetError};
use super::devices::{DeviceKey, OpenDevice, take_passed};
use super::smbios::smbios;
use crate::Error;
use crate::acpi::TablesInput;
use crate::cpu::cpuid::ProcessorName;
use crate::firmware::descriptors::{self, Descriptors};
use crate::firmware::files::boot_order::BootPlace;
use crate::firmware::files::loader::MachineShape;
use crate::firmware::files::{self, FilesInput};
use crate::firmware::image::{FirmwareImage, FirmwareKind};
use crate::firmware::windows;
use crate::kvm::Vm;

/// How long a pause or the end of the VM waits for the last variables to be on disk.
const SAVE_PATIENCE: Duration = Duration::from_secs(5);

const AT_FIRMWARE: &str = "/boot/firmware";
const AT_PATH: &str = "/boot/firmware/path";
const AT_VARIABLES: &str = "/boot/firmware/variables";
const AT_TEMPLATE: &str = "/boot/firmware/template";

/// Firmware and its variables.
#[derive(Debug)]
pub struct OpenFirmware {
    image: FirmwareImage,
    code: Arc<FlashMemory>,
    variables: Option<Variables>,
}

/// Where the variables are.
#[derive(Debug)]
enum Variables {
    /// In a file of the VM's.
    Kept(VarsStore),
    /// In memory only: they are as long as the VM is.
    Fleeting(Arc<FlashMemory>),
}

/// Nobody keeps the flash that changes.
#[derive(Debug)]
struct Forget;

impl FlashChanged for Forget {
    fn flash_changed(&self) {}
}

impl Variables {
    fn memory(&self) -> &Arc<FlashMemory> {
        match self {
            Self::Kept(store) => store.memory(),
            Self::Fleeting(memory) => memory,
        }
    }

    fn changed(&self) -> Arc<dyn FlashChanged> {
        match self {
            Self::Kept(store) => store.changed(),
            Self::Fleeting(_) => Arc::new(Forget),
        }
    }
}

/// What firmware is plugged in with.
#[derive(Debug)]
pub struct FirmwareInputs<'a> {
    /// The VM.
    pub spec: &'a VmSpec,
    /// What to boot from, the first choice first.
    pub order: &'a [BootPlace],
    /// How many CPUs are there at first.
    pub present: usize,
    /// What they call themselves.
    pub processor: &'a ProcessorName,
    /// The ACPI tables' input as long as firmware has placed nothing.
    pub tables: TablesInput,
}

impl OpenFirmware {
    /// Finds and reads the image, and opens its variables or makes them.
    ///
    /// # Errors
    /// What cannot be had or does not fit, with the pointer to it in the spec.
    pub fn open(boot: &FirmwareBoot) -> Result<Self, Error> {
        let found = Descriptors::read(&descriptors::directories());
        let image = open_image(boot, &found)?;
        let template = boot.template.as_deref();
        let template = template.or_else(|| found.template_of(image.path()));
        let at_template = match boot.template {
            Some(_) => AT_TEMPLATE,
            None => AT_FIRMWARE,
        };
        let wanted = boot.variables.is_some() || boot.template.is_some();
        let variables = if image.variables_size().is_some() || wanted {
            let template = image.template(template);
            let template = template.map_err(|error| Error::part(at_template, error));
            Some(open_variables(boot, &image, template)?)
        } else {
            None
        };
        let code = flash(image.code())?;
        tracing::info!(
            path = %image.path().display(),
            kind = ?image.kind(),
            variables = boot.variables.as_deref().map(|path| tracing::field::display(path.display())),
            "firmware opened"
        );
        Ok(Self {
            image,
            code,
            variables,
        })
    }

    /// Plugs it into a machine that is being built.
    ///
    /// # Errors
    /// When the host lacks something, or a text does not fit into SMBIOS.
    pub fn plug_in(
        &self,
        vm: &mut Vm,
        chipset: &Chipset,
        inputs: FirmwareInputs<'_>,
    ) -> Result<(), Error> {
        self.plug_flash(vm, chipset)?;
        if let Some((address, copy)) = self.image.low_copy() {
            let written = vm
                .memory()
                .memory()
                .write_slice(copy, GuestAddress(address));
            written.map_err(|error| Error::part("/memory", error))?;
        }
        let items = self.items(chipset, inputs)?;
        let fw_cfg = Arc::new(FwCfg::new(items, vm.memory().clone()));
        let added = chipset
            .buses
            .ports
            .insert(FW_CFG_PORT, FW_CFG_PORTS, fw_cfg);
        added.map_err(|error| Error::Chipset(ChipsetError::Bus(error)))
    }

    /// The chips: code, and variables if there are any.
    fn plug_flash(&self, vm: &mut Vm, chipset: &Chipset) -> Result<(), Error> {
        let mmio = &chipset.buses.mmio;
        let wrong = |error| Error::Chipset(ChipsetError::Bus(error));
        let length = |place: &Range<u64>| place.end - place.start;
        let place = self.image.code_place();
        vm.show_flash(place.start, Arc::clone(&self.code))?;
        let code = Arc::new(CodeFlash::new(Arc::clone(&self.code)));
        mmio.insert(place.start, length(&place), code)
            .map_err(wrong)?;
        let (Some(variables), Some(place)) = (&self.variables, self.image.variables_place()) else {
            return Ok(());
        };
        let memory = variables.memory();
        let slot = Arc::new(vm.show_flash(place.start, Arc::clone(memory))?);
        let flash = VarsFlash::new(Arc::clone(memory), slot, variables.changed());
        mmio.insert(place.start, length(&place), Arc::new(flash))
            .map_err(wrong)
    }

    /// What fw_cfg tells.
    fn items(
        &self,
        chipset: &Chipset,
        inputs: FirmwareInputs<'_>,
    ) -> Result<paddock_devices::firmware::fw_cfg::FwCfgItems, Error> {
        let spec = inputs.spec;
        let ram_size = spec.memory.size.bytes();
        let uefi = self.image.kind() == FirmwareKind::Uefi;
        let smbios = smbios(spec, uefi, inputs.processor)?;
        let shape = Shape {
            bridge: Arc::clone(&chipset.host_bridge),
            lpc: Arc::clone(&chipset.lpc),
            ram_size,
            first: inputs.tables,
        };
        let present = u16::try_from(inputs.present).unwrap_or(u16::MAX);
        files::items(&FilesInput {
            kind: self.image.kind(),
            ram_size,
            memory_max: spec.memory.max.bytes(),
            cpus: (present, spec.cpus.max.into()),
            shape: Arc::new(shape),
            boot_order: inputs.order,
            smbios: &smbios,
        })
        .map_err(|error| Error::part(AT_FIRMWARE, error))
    }

    /// The store, where variables are kept in a file.
    pub fn store(&self) -> Option<&VarsStore> {
        match &self.variables {
            Some(Variables::Kept(store)) => Some(store),
            _ => None,
        }
    }

    /// Brings the last variables to disk, when the guest stands still or is at its end. What fails is told by the store, and tried again.
    pub fn save(&self) {
        if let Some(store) = self.store() {
            if let Err(error) = store.flush(SAVE_PATIENCE) {
                let error = error.as_ref() as &dyn std::error::Error;
                tracing::error!(error, "the last UEFI variables are not on disk");
            }
        }
    }
}

/// The image that is named, or the host's first choice.
fn open_image(boot: &FirmwareBoot, found: &Descriptors) -> Result<FirmwareImage, Error> {
    let Some(path) = &boot.path else {
        let offer = found
            .uefi()
            .map_err(|error| Error::part(AT_FIRMWARE, error))?;
        return FirmwareImage::load(&offer.executable)
            .map_err(|error| Error::part(AT_FIRMWARE, error));
    };
    let wrong = |error| Error::part(AT_PATH, error);
    match PassedFd::in_path(path) {
        Some(passed) => {
            let file = take_passed(AT_PATH, passed)?;
            FirmwareImage::from_file(path, file.into()).map_err(wrong)
        }
        None => {
            found.check(path).map_err(wrong)?;
            FirmwareImage::load(path).map_err(wrong)
        }
    }
}

/// The variables' file, or a copy of the template where there is none. A file that is there already needs no template.
fn open_variables(
    boot: &FirmwareBoot,
    image: &FirmwareImage,
    template: Result<Vec<u8>, Error>,
) -> Result<Variables, Error> {
    let (Some(path), Some(size)) = (boot.variables.as_deref(), image.variables_size()) else {
        return Ok(Variables::Fleeting(flash(&template?)?));
    };
    let is_there = path.exists();
    let template = match template {
        Ok(template) => Some(template),
        Err(_) if is_there && boot.template.is_none() => None,
        Err(error) => return Err(error),
    };
    let options = VarsOptions {
        path,
        size,
        template: template.as_deref(),
    };
    let store = VarsStore::open(&options).map_err(|error| Error::part(AT_VARIABLES, error))?;
    Ok(Variables::Kept(store))
}

fn flash(image: &[u8]) -> Result<Arc<FlashMemory>, Error> {
    let memory = FlashMemory::new(image).map_err(|error| Error::part(AT_FIRMWARE, error))?;
    Ok(Arc::new(memory))
}

/// Where the devices to boot from are. Those that are not there any more are passed over.
pub fn boot_places(order: &[DeviceId], devices: &[OpenDevice]) -> Vec<BootPlace> {
    let place = |id: &DeviceId| {
        devices.iter().find_map(|device| match device.key() {
            DeviceKey::Disk(disk) if disk == id.as_str() => device.slot.map(BootPlace::Disk),
            DeviceKey::Cdrom(cdrom) if cdrom == id.as_str() => {
                device.slot.map(|controller| BootPlace::Scsi {
                    controller,
                    target: DRIVE_TARGET,
                    lun: DRIVE_LUN,
                })
            }
            DeviceKey::Nic(nic) if nic == id.as_str() => device.slot.map(BootPlace::Network),
            _ => None,
        })
    };
    order.iter().filter_map(place).collect()
}

/// Where the guest has put what the ACPI tables tell of.
#[derive(Debug)]
struct Shape {
    bridge: Arc<HostBridge>,
    lpc: Arc<LpcBridge>,
    ram_size: u64,
    /// As it is told while the guest has put nothing anywhere.
    first: TablesInput,
}

impl MachineShape for Shape {
    fn tables_input(&self) -> TablesInput {
        let mut input = self.first.clone();
        if let Some((base, length)) = self.bridge.ecam_window() {
            input.ecam = base..base.saturating_add(length);
            input.mmio32 = windows::mmio32(Some(&input.ecam), self.ram_size);
        }
        if let Some(base) = self.lpc.pm_base() {
            input.pm_base = u16::try_from(base).unwrap_or(input.pm_base);
        }
        input
    }
}

#[cfg(test)]
mod tests;
