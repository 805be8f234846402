//! The checks that turn a [`VmConfig`] into a [`VmSpec`], one function a section.
//!
//! Each function adds what is wrong to the [`Problems`] and goes on; it gives `None` only if something is wrong, be it found
//! here or while the document was read.

mod balloon;
mod boot;
pub(super) mod cdroms;
mod console;
mod devices;
pub(super) mod disks;
mod nbd;
pub(super) mod passed;
mod smbios;
mod volumes;

use std::path::{Path, PathBuf};

use super::config::{CpuConfig, MemoryConfig, TopologyConfig, VmConfig};
use super::machine::{Cpus, Memory, Topology, VmSpec};
use super::pointer::JsonPointer;
use super::problem::{ProblemCode, Problems, quoted};
use super::types::{ByteSize, HugePageSize, Uuid, ValueError, in_range};

/// `PATH_MAX` without the final zero.
const MAX_PATH: usize = 4095;
/// APIC ids go up to 254 without interrupt remapping.
const MAX_CPUS: u64 = 254;
const MIN_MEMORY: ByteSize = ByteSize::from_mib(64);
const MAX_MEMORY: ByteSize = ByteSize::from_bytes(16 << 40);
const DEFAULT_MEMORY: ByteSize = ByteSize::from_mib(512);

/// Checks a whole spec.
pub(super) fn vm(config: &VmConfig, problems: &mut Problems) -> Option<VmSpec> {
    let root = JsonPointer::root();
    let name = optional(
        problems,
        &root.key("name"),
        config.name.as_deref(),
        str::parse,
    );
    let uuid = optional(problems, &root.key("uuid"), config.uuid.as_deref(), uuid);
    let cpus = cpus(config.cpus.as_ref(), &root.key("cpus"), problems);
    let memory = memory(config.memory.as_ref(), &root.key("memory"), problems);
    let processors = cpus.as_ref().map_or(1, |cpus| cpus.max);
    let devices = devices::devices(config, processors, uuid.flatten(), problems);
    let ids = devices.as_ref().map(devices::Devices::ids);
    let boot = boot::boot(config.boot.as_ref(), ids.as_ref(), &root, problems);
    let smbios = smbios::smbios(config, &root.key("smbios"), problems);
    let console = console::console(config.console.as_ref(), &root.key("console"), problems);
    let balloon = config
        .balloon
        .as_ref()
        .map(|balloon| balloon::balloon(balloon, memory.as_ref(), &root.key("balloon"), problems));
    let devices::Devices {
        disks,
        cdroms,
        nics,
    } = devices?;
    Some(VmSpec {
        name: name?,
        uuid: uuid?,
        boot: boot?,
        cpus: cpus?,
        memory: memory?,
        disks,
        cdroms,
        nics,
        console: console?,
        rng: config.rng.unwrap_or(true),
        balloon: match balloon {
            Some(checked) => Some(checked?),
            None => None,
        },
        on_reset: config.on_reset.unwrap_or_default(),
        smbios: smbios?,
    })
}

fn cpus(config: Option<&CpuConfig>, at: &JsonPointer, problems: &mut Problems) -> Option<Cpus> {
    let default = CpuConfig::default();
    let config = config.unwrap_or(&default);
    let count = optional(problems, &at.key("count"), config.count, |count| {
        in_range("the number of processors", count, 1..=MAX_CPUS)
    });
    let max = optional(problems, &at.key("max"), config.max, |max| {
        in_range("the highest number of processors", max, 1..=MAX_CPUS)
    });
    let (count, max) = (count.flatten(), max.flatten());
    let told = max.or(count);
    let (made, topology) = match &config.topology {
        Some(given) => topology(given, told, max.is_some(), &at.key("topology"), problems)?,
        None => {
            let cores = told.unwrap_or(1);
            let topology = Topology {
                sockets: 1,
                cores,
                threads: 1,
            };
            (cores, topology)
        }
    };
    // A max alone does not mean that all are there at the start.
    let count = count.unwrap_or(if max.is_some() { 1 } else { made });
    if count > made {
        let detail = format!(
            "there may be {made} processors at most, but {count} are wanted at the start; give max {count} or more"
        );
        problems.add(at.key("max"), ProblemCode::OutOfRange, detail);
    }
    Some(Cpus {
        count,
        max: made,
        topology,
        nested: config.nested.unwrap_or(false),
    })
    .filter(|_| !problems.within(at))
}

/// The topology, and the number of processors that it makes: `count` if that is given, by `max` or by the count at the start.
fn topology(
    config: &TopologyConfig,
    count: Option<u8>,
    is_max: bool,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<(u8, Topology)> {
    let mut factor = |name: &str, value: Option<u64>| {
        optional(problems, &at.key(name), value, |value| {
            in_range::<u8>(&format!("the number of {name}"), value, 1..=MAX_CPUS)
        })
    };
    let sockets = factor("sockets", config.sockets);
    let cores = factor("cores", config.cores);
    let threads = factor("threads", config.threads);
    if problems.within(at) {
        return None;
    }
    let (sockets, threads) = (sockets?.unwrap_or(1), threads?.unwrap_or(1));
    let left = count.map_or(1, |count| count / sockets.saturating_mul(threads));
    let cores = cores?.unwrap_or(left.max(1));
    let product = u32::from(sockets) * u32::from(cores) * u32::from(threads);
    let made =
        format!("{sockets} sockets × {cores} cores × {threads} threads is {product} processors");
    match count {
        Some(count) if u32::from(count) != product => {
            let name = if is_max { "max" } else { "count" };
            let detail = format!("{made}, but {name} is {count}; make them equal or leave one out");
            problems.add(at.clone(), ProblemCode::Conflict, detail);
        }
        _ if u64::from(product) > MAX_CPUS => problems.add(
            at.clone(),
            ProblemCode::OutOfRange,
            format!("{made}; at most {MAX_CPUS} are possible"),
        ),
        _ => {
            let topology = Topology {
                sockets,
                cores,
                threads,
            };
            return u8::try_from(product).ok().map(|count| (count, topology));
        }
    }
    None
}

fn memory(
    config: Option<&MemoryConfig>,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Memory> {
    let default = MemoryConfig::default();
    let config = config.unwrap_or(&default);
    let (at_size, at_pages) = (at.key("size"), at.key("hugepages"));
    let pages = optional(
        problems,
        &at_pages,
        config.hugepages,
        HugePageSize::try_from,
    );
    let size = config.size.unwrap_or(DEFAULT_MEMORY);
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&size) {
        let detail = format!("the memory must be {MIN_MEMORY} to {MAX_MEMORY}, not {size}");
        problems.add(at_size.clone(), ProblemCode::OutOfRange, detail);
    }
    let unit = pages.flatten().unwrap_or(HugePageSize::TwoMib).size();
    if !problems.within(at) && !size.is_multiple_of(unit) {
        let detail = format!("the memory must be a multiple of {unit}, not {size}");
        match config.size {
            Some(_) => problems.add(at_size, ProblemCode::OutOfRange, detail),
            None => problems.add(at_pages, ProblemCode::Conflict, detail),
        }
    }
    let max = config.max.unwrap_or(size);
    if !problems.within(at) {
        let mut wrong = |detail| problems.add(at.key("max"), ProblemCode::OutOfRange, detail);
        if !(size..=MAX_MEMORY).contains(&max) {
            wrong(format!(
                "the memory may grow to {size}, which is its size, or up to {MAX_MEMORY}, not to {max}"
            ));
        } else if !max.is_multiple_of(unit) {
            wrong(format!(
                "the memory may grow to a multiple of {unit}, not to {max}"
            ));
        }
    }
    Some(Memory {
        size,
        max,
        shared: config.shared.unwrap_or(false),
        hugepages: pages?,
    })
    .filter(|_| !problems.within(at))
}

fn uuid(text: &str) -> Result<Uuid, ValueError> {
    // Uuid also reads braced, URN and undashed forms; one form is enough for an API.
    Some(text)
        .filter(|text| text.len() == 36)
        .and_then(|text| Uuid::try_parse(text).ok())
        .ok_or_else(|| {
            ValueError::malformed(format!(
                "{} is not a UUID such as \"6ba7b810-9dad-11d1-80b4-00c04fd430c8\"",
                quoted(text)
            ))
        })
}

/// A path that the kernel can take. Whether there is such a file is not looked at.
fn path(path: &Path) -> Result<PathBuf, ValueError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() {
        return Err(ValueError::malformed("the path is empty"));
    }
    if bytes.len() > MAX_PATH {
        return Err(ValueError::out_of_range(format!(
            "the path has {} bytes; at most {MAX_PATH} are possible",
            bytes.len()
        )));
    }
    if path.to_str().is_none_or(|text| text.contains('\0')) {
        return Err(ValueError::malformed(
            "the path must be UTF-8 without zero bytes",
        ));
    }
    Ok(path.to_owned())
}

/// Checks a value that need not be there: `Some(None)` if it is not, `None` if it is wrong.
#[expect(
    clippy::option_option,
    reason = "the two mean different things, and `?` reads well"
)]
fn optional<T, U>(
    problems: &mut Problems,
    at: &JsonPointer,
    value: Option<T>,
    check: impl FnOnce(T) -> Result<U, ValueError>,
) -> Option<Option<U>> {
    match value {
        Some(value) => problems.check(at, check(value)).map(Some),
        None => Some(None),
    }
}

/// Checks a list's length.
fn at_most(
    problems: &mut Problems,
    at: &JsonPointer,
    length: usize,
    limit: usize,
    what: &str,
) -> Option<()> {
    if length > limit {
        let detail = format!("{length} {what} are too many; at most {limit} are possible");
        problems.add(at.clone(), ProblemCode::OutOfRange, detail);
        return None;
    }
    Some(())
}
