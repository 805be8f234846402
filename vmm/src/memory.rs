//! Guest RAM: where it lies in guest-physical space, what backs it on the host, and the memory map the guest is told.
//!
//! Created once, on the control thread; read and written afterwards by vCPU and worker threads through
//! [`GuestRam`]. The guest chooses every byte in it and nothing about its shape.
//!
//! Policy, for every kind of backing:
//! - *Not reserved up front* (`MAP_NORESERVE`): a page costs the host memory once the guest has touched it. What bounds a
//!   VM is its cgroup. On a host with strict accounting (`vm.overcommit_memory=2`) the kernel ignores the flag for
//!   anonymous RAM and refuses here rather than later. Huge pages from the pool *are* reserved here: their lack would
//!   otherwise be a SIGBUS in the middle of the guest's life.
//! - *Memory to grow by* is a region of its own, for virtio-mem: mapped as a whole and one slot of KVM's, so that nothing has to be changed
//!   under a running guest. It costs this process nothing until it is used, and its huge pages are not reserved before they are plugged
//!   in; KVM keeps up to 8 bytes for each of its 4 KiB pages where it shadows page tables (for guests of the guest, say). Nothing but
//!   the device's rules keeps a guest off what is not plugged in: what bounds a hostile one is the region's size.
//! - *Transparent huge pages are asked for*; a kernel built without them is fine too.
//! - *Not in core dumps*: a dump of this process must not carry a tenant's memory.
//! - A shared memfd is *sealed* at its size, so that nobody who is handed it can truncate it under the guest.

#![expect(unsafe_code, reason = "madvise on the mappings made here")]

mod e820;
mod reclaim;

use std::fs::{self, File};
use std::io;
use std::ops::Range;

use paddock_devices::virtio::GuestRam;
use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, mmap};

pub use e820::{E820Entry, E820Kind, e820};
pub use reclaim::RamReclaim;

use crate::layout;

/// Size of the host pages that back guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageSize {
    /// 4 KiB pages, transparent huge pages where the kernel finds them.
    #[default]
    Base,
    /// 2 MiB pages from the host's huge page pool.
    Huge2M,
    /// 1 GiB pages from the host's huge page pool.
    Huge1G,
}

impl PageSize {
    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Base => layout::PAGE_SIZE,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Base => "4 KiB",
            Self::Huge2M => "2 MiB",
            Self::Huge1G => "1 GiB",
        }
    }

    const fn mmap_flags(self) -> i32 {
        match self {
            Self::Base => libc::MAP_NORESERVE,
            Self::Huge2M => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
            Self::Huge1G => libc::MAP_HUGETLB | libc::MAP_HUGE_1GB,
        }
    }

    fn memfd_flags(self) -> MemfdFlags {
        match self {
            Self::Base => MemfdFlags::empty(),
            Self::Huge2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            Self::Huge1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        }
    }
}

/// What guest RAM is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamConfig {
    /// Bytes, a multiple of the page size, at least [`layout::RAM_SIZE_MIN`].
    pub size: u64,
    /// What it may grow to in bytes, a multiple of the page size, at least [`size`](Self::size), which means not at all.
    pub max: u64,
    /// Backed by a memfd that other processes (vhost-user, a local migration) can be handed, instead of private memory.
    pub shared: bool,
    /// Pages that back it.
    pub pages: PageSize,
}

/// What went wrong with guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemoryErrorKind {
    /// The size asked for cannot be.
    InvalidSize,
    /// The host has not enough memory, or its limits forbid so much.
    OutOfMemory,
    /// The pool of huge pages is too small.
    HugePagesExhausted,
    /// The host has no huge pages of this size.
    HugePagesUnsupported,
    /// The host refused for another reason.
    Host,
}

/// Why guest RAM could not be made. The message says what to do.
#[derive(Debug, thiserror::Error)]
#[error("guest RAM: {message}")]
pub struct MemoryError {
    kind: MemoryErrorKind,
    message: String,
    source: Option<io::Error>,
}

impl MemoryError {
    fn new(kind: MemoryErrorKind, message: String, source: Option<io::Error>) -> Self {
        Self {
            kind,
            message,
            source,
        }
    }

    /// The stable kind.
    #[must_use]
    pub fn kind(&self) -> MemoryErrorKind {
        self.kind
    }
}

/// Makes guest RAM: one region, or two when it reaches beyond the hole below 4 GiB, and one at [`layout::growth`] if it may grow.
///
/// # Errors
/// When the size cannot be, or the host cannot give it.
pub fn create_ram(config: &RamConfig) -> Result<GuestRam, MemoryError> {
    check_size(config)?;
    let file = if config.shared {
        Some(create_memfd(config)?)
    } else {
        None
    };
    let mut regions = Vec::with_capacity(3);
    let growth = layout::growth(config.size, config.max);
    let boot = ranges(config.size).map(|range| (range, config.pages.mmap_flags()));
    let added = (!growth.is_empty()).then(|| {
        let range = (growth.start, config.size, growth.end - growth.start);
        (range, config.pages.mmap_flags() | libc::MAP_NORESERVE)
    });
    for ((base, offset, size), flags) in boot.chain(added) {
        let file = file
            .as_ref()
            .map(|file| FileOffset::from_arc(file.clone(), offset));
        regions.push(map_region(config, file, base..base + size, flags)?);
    }
    let memory = GuestMemoryMmap::from_regions(regions).map_err(|e| {
        MemoryError::new(
            MemoryErrorKind::Host,
            "cannot lay out its regions".into(),
            Some(io::Error::other(e)),
        )
    })?;
    Ok(GuestRam::new(memory))
}

/// Guest-physical base, offset from the start of RAM, and size of each stretch of `ram_size` bytes of RAM.
fn ranges(ram_size: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let low = layout::low_ram_end(ram_size);
    let high = ram_size - low;
    [(0, 0, low), (layout::HIGH_RAM_START, low, high)]
        .into_iter()
        .filter(|&(_, _, size)| size != 0)
}

fn check_size(config: &RamConfig) -> Result<(), MemoryError> {
    let invalid = |message| {
        Err(MemoryError::new(
            MemoryErrorKind::InvalidSize,
            message,
            None,
        ))
    };
    if config.size < layout::RAM_SIZE_MIN {
        let (size, min) = (Bytes(config.size), Bytes(layout::RAM_SIZE_MIN));
        return invalid(format!("{size} is too small, a guest needs at least {min}"));
    }
    if !config.size.is_multiple_of(config.pages.bytes()) {
        let (size, pages) = (Bytes(config.size), config.pages.name());
        return invalid(format!(
            "{size} is not a whole number of {pages} pages, choose a multiple"
        ));
    }
    if config.max < config.size || !config.max.is_multiple_of(config.pages.bytes()) {
        let (size, max, pages) = (Bytes(config.size), Bytes(config.max), config.pages.name());
        return invalid(format!(
            "it cannot grow to {max}, choose {size} or more, and a whole number of {pages} pages"
        ));
    }
    Ok(())
}

fn create_memfd(config: &RamConfig) -> Result<std::sync::Arc<File>, MemoryError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | config.pages.memfd_flags();
    let fd = rustix::fs::memfd_create("paddock-ram", flags)
        .map_err(|e| host_refused(config, e.into()))?;
    let file = File::from(fd);
    file.set_len(config.max)
        .map_err(|e| host_refused(config, e))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|e| host_refused(config, e.into()))?;
    Ok(std::sync::Arc::new(file))
}

fn map_region(
    config: &RamConfig,
    file: Option<FileOffset>,
    range: Range<u64>,
    flags: i32,
) -> Result<GuestRegionMmap, MemoryError> {
    let length = usize::try_from(range.end - range.start)
        .map_err(|_| host_refused(config, io::ErrorKind::OutOfMemory.into()))?;
    let flags = flags
        | if file.is_some() {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS
        };
    let region = MmapRegion::build(file, length, libc::PROT_READ | libc::PROT_WRITE, flags)
        .map_err(|e| match e {
            mmap::MmapRegionError::Mmap(e) => host_refused(config, e),
            other => host_refused(config, io::Error::other(other)),
        })?;
    advise(&region, config.pages);
    GuestRegionMmap::new(region, GuestAddress(range.start))
        .ok_or_else(|| host_refused(config, io::Error::other("address overflow")))
}

/// Both pieces of advice may be refused by a kernel built without the feature; RAM works all the same.
fn advise(region: &MmapRegion, pages: PageSize) {
    let mut advice = vec![(libc::MADV_DONTDUMP, "DONTDUMP")];
    if pages == PageSize::Base {
        advice.push((libc::MADV_HUGEPAGE, "HUGEPAGE"));
    }
    for (advice, name) in advice {
        // SAFETY: the range is exactly a mapping that `region` owns, and neither advice changes its contents.
        let result = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
        if result != 0 {
            tracing::debug!(advice = name, error = %io::Error::last_os_error(), "guest RAM: advice not taken");
        }
    }
}

/// Turns an errno into an error that says what the host lacks.
fn host_refused(config: &RamConfig, source: io::Error) -> MemoryError {
    let size = Bytes(config.max);
    let lacks_memory = source.kind() == io::ErrorKind::OutOfMemory;
    if config.pages != PageSize::Base {
        return huge_pages_refused(config, &HugePagePool::read(config.pages), source);
    }
    if lacks_memory {
        let message = format!(
            "the host refuses {size}; make the VM smaller, or look at the process's address space limit (ulimit -v) and at \
             vm.overcommit_memory"
        );
        return MemoryError::new(MemoryErrorKind::OutOfMemory, message, Some(source));
    }
    MemoryError::new(
        MemoryErrorKind::Host,
        format!("cannot map {size}"),
        Some(source),
    )
}

fn huge_pages_refused(config: &RamConfig, pool: &HugePagePool, source: io::Error) -> MemoryError {
    let (size, page) = (Bytes(config.size), config.pages.name());
    let needed = config.size / config.pages.bytes();
    let Some(total) = pool.total else {
        let message = format!(
            "this host has no huge pages of {page}; use another page size, or transparent huge pages"
        );
        return MemoryError::new(MemoryErrorKind::HugePagesUnsupported, message, Some(source));
    };
    let available = pool.free.saturating_sub(pool.reserved);
    if available < needed {
        let (want, path) = (
            total.saturating_add(needed - available),
            pool.path("nr_hugepages"),
        );
        let message = format!(
            "{size} needs {needed} huge pages of {page}, {available} are free of {total}; as root: echo {want} > {path}"
        );
        return MemoryError::new(MemoryErrorKind::HugePagesExhausted, message, Some(source));
    }
    let message = format!(
        "cannot map {size} of {page} huge pages though {available} are free; look at the hugetlb cgroup's limit"
    );
    MemoryError::new(MemoryErrorKind::Host, message, Some(source))
}

/// The host's pool of huge pages of one size, as sysfs shows it.
#[derive(Debug)]
struct HugePagePool {
    directory: String,
    /// `None` where the host knows no such pages.
    total: Option<u64>,
    free: u64,
    reserved: u64,
}

impl HugePagePool {
    fn read(pages: PageSize) -> Self {
        let directory = format!(
            "/sys/kernel/mm/hugepages/hugepages-{}kB",
            pages.bytes() >> 10
        );
        let value = |name| {
            fs::read_to_string(format!("{directory}/{name}"))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        let (total, free, reserved) = (
            value("nr_hugepages"),
            value("free_hugepages"),
            value("resv_hugepages"),
        );
        Self {
            total,
            free: free.unwrap_or(0),
            reserved: reserved.unwrap_or(0),
            directory,
        }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }
}

/// Bytes, written in the largest unit that is exact.
pub(crate) struct Bytes(pub(crate) u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            n if n != 0 && n % (1 << 30) == 0 => write!(f, "{} GiB", n >> 30),
            n if n != 0 && n % (1 << 20) == 0 => write!(f, "{} MiB", n >> 20),
            n if n != 0 && n % (1 << 10) == 0 => write!(f, "{} KiB", n >> 10),
            n => write!(f, "{n} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use vm_memory::{Bytes as _, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    fn config(size: u64) -> RamConfig {
        RamConfig {
            size,
            max: size,
            shared: false,
            pages: PageSize::Base,
        }
    }

    #[test]
    fn small_ram_is_one_region_and_large_ram_skips_the_hole() {
        for shared in [false, true] {
            let ram = create_ram(&RamConfig {
                shared,
                ..config(128 << 20)
            })
            .unwrap();
            assert_eq!(ram.memory().num_regions(), 1);

            let ram = create_ram(&RamConfig {
                shared,
                ..config(5 << 30)
            })
            .unwrap();
            let memory = ram.memory();
            let shape: Vec<_> = memory.iter().map(|r| (r.start_addr().0, r.len())).collect();
            assert_eq!(shape, [(0, 2 << 30), (4 << 30, 3 << 30)]);
            for address in [0, (2 << 30) - 8, 4 << 30, (7 << 30) - 8] {
                memory.write_obj(address, GuestAddress(address)).unwrap();
                assert_eq!(
                    memory.read_obj::<u64>(GuestAddress(address)).unwrap(),
                    address
                );
            }
            for hole in [(2u64 << 30) - 7, 2 << 30, (4 << 30) - 1, (7 << 30) - 7] {
                assert!(memory.read_obj::<u64>(GuestAddress(hole)).is_err());
            }
        }
    }

    #[test]
    fn memory_to_grow_by_is_a_region_of_its_own_that_costs_nothing() {
        for (shared, size, start) in [(false, 128 << 20, 4 << 30), (true, 3 << 30, 6 << 30)] {
            let most: u64 = 1 << 40;
            let ram = create_ram(&RamConfig {
                shared,
                max: most,
                ..config(size)
            })
            .unwrap();
            let memory = ram.memory();
            let last = memory.iter().last().unwrap();
            assert_eq!((last.start_addr().0, last.len()), (start, most - size));
            let all: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
            assert_eq!(all, most);
            let offset = last.file_offset().map(FileOffset::start);
            assert_eq!(offset, shared.then_some(size));
            for address in [start, start + (most - size) - 8] {
                memory.write_obj(address, GuestAddress(address)).unwrap();
                let read: u64 = memory.read_obj(GuestAddress(address)).unwrap();
                assert_eq!(read, address);
            }
            let first: u64 = memory.read_obj(GuestAddress(0)).unwrap();
            assert_eq!(first, 0, "what is added has its own place in the file");
        }
        for (size, max, pages) in [
            (128 << 20, 64 << 20, PageSize::Base),
            (128 << 20, (128 << 20) + 1, PageSize::Base),
            (128 << 20, 129 << 20, PageSize::Huge2M),
        ] {
            let error = create_ram(&RamConfig {
                max,
                pages,
                ..config(size)
            })
            .unwrap_err();
            assert_eq!(error.kind(), MemoryErrorKind::InvalidSize, "{error}");
        }
    }

    #[test]
    fn shared_ram_cannot_be_resized_by_who_holds_it() {
        let ram = create_ram(&RamConfig {
            shared: true,
            ..config(64 << 20)
        })
        .unwrap();
        let memory = ram.memory();
        let region = memory.iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        assert!(file.as_raw_fd() >= 0);
        assert!(file.set_len(0).is_err());
        assert!(file.set_len(1 << 30).is_err());
        assert_eq!(file.metadata().unwrap().len(), 64 << 20);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for (size, pages) in [
            (0, PageSize::Base),
            (1 << 20, PageSize::Base),
            ((64 << 20) + 1, PageSize::Base),
            (65 << 20, PageSize::Huge2M),
            (1536 << 20, PageSize::Huge1G),
        ] {
            let error = create_ram(&RamConfig {
                pages,
                ..config(size)
            })
            .unwrap_err();
            assert_eq!(error.kind(), MemoryErrorKind::InvalidSize, "{error}");
        }
    }

    #[test]
    fn more_than_the_address_space_is_out_of_memory_and_names_the_size() {
        let error = create_ram(&config(1 << 50)).unwrap_err();
        assert_eq!(error.kind(), MemoryErrorKind::OutOfMemory);
        assert!(error.to_string().contains("1048576 GiB"), "{error}");
    }

    #[test]
    fn huge_pages_come_or_the_error_says_how_to_get_them() {
        for shared in [false, true] {
            let wanted = RamConfig {
                size: 1 << 40,
                max: 1 << 40,
                shared,
                pages: PageSize::Huge2M,
            };
            let error = create_ram(&wanted).unwrap_err();
            let text = error.to_string();
            match error.kind() {
                MemoryErrorKind::HugePagesExhausted => {
                    assert!(
                        text.contains("524288 huge pages of 2 MiB")
                            && text.contains("nr_hugepages"),
                        "{text}"
                    );
                }
                MemoryErrorKind::HugePagesUnsupported => assert!(text.contains("2 MiB"), "{text}"),
                other => panic!("{other:?}: {text}"),
            }
        }
    }

    #[test]
    fn huge_page_errors_tell_the_cases_apart() {
        let wanted = RamConfig {
            size: 4 << 30,
            max: 4 << 30,
            shared: false,
            pages: PageSize::Huge1G,
        };
        let pool = |total, free| HugePagePool {
            directory: "/pool".into(),
            total,
            free,
            reserved: 1,
        };
        let refused = |total, free| {
            huge_pages_refused(
                &wanted,
                &pool(total, free),
                io::ErrorKind::OutOfMemory.into(),
            )
        };
        assert_eq!(
            refused(None, 0).kind(),
            MemoryErrorKind::HugePagesUnsupported
        );
        assert_eq!(refused(Some(9), 5).kind(), MemoryErrorKind::Host);
        let short = refused(Some(9), 3);
        assert_eq!(short.kind(), MemoryErrorKind::HugePagesExhausted);
        assert!(
            short.to_string().ends_with("echo 11 > /pool/nr_hugepages"),
            "{short}"
        );
    }
}
