//! What a machine calls itself, put together from its spec. Called while it is built, on a blocking thread of the control plane.

use paddock_api::spec::VmSpec;

use crate::Error;
use crate::cpu::cpuid::ProcessorName;
use crate::smbios::{Processors, Smbios, SmbiosInput};

/// The structures for a guest that boots by UEFI or not, on CPUs that call themselves `processor`. Without a UUID of its own a machine says
/// that it has none.
///
/// # Errors
/// When a text does not fit into them.
pub(super) fn smbios(
    spec: &VmSpec,
    uefi: bool,
    processor: &ProcessorName,
) -> Result<Smbios, Error> {
    let topology = spec.cpus.topology;
    let input = SmbiosInput {
        uefi,
        uuid: spec.uuid.map_or([0; 16], |uuid| uuid.into_bytes()),
        serial: spec.smbios.serial.as_deref().unwrap_or_default(),
        asset_tag: spec.smbios.asset_tag.as_deref().unwrap_or_default(),
        oem_strings: &spec.smbios.oem_strings,
        version: env!("CARGO_PKG_VERSION"),
        processors: Processors {
            sockets: topology.sockets.into(),
            cores: topology.cores.into(),
            threads: topology.threads.into(),
            vendor: &processor.vendor,
            brand: &processor.brand,
            signature: processor.signature,
        },
        ram_size: spec.memory.size.bytes(),
    };
    Smbios::new(&input).map_err(|error| Error::part("/smbios", error))
}
