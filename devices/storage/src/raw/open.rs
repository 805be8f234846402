//! Opening an image: kind, lock, size, block sizes, and what its host can do.
//!
//! Runs on the control plane before the guest does. The path is the operator's; what is found there may be anything.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FallocateFlags, OFlags, StatxFlags};
use rustix::io::Errno;

use super::memory::Aligned;
use super::{Direct, Image, RawOptions};
use crate::{Capabilities, OpenError, OpenErrorKind};

/// The unit of sectors in sysfs and of a file's blocks, in bytes.
pub(super) const SECTOR: u32 = 512;

/// The largest logical block, in bytes.
const MAX_BLOCK: u32 = 4096;

/// How long an image that is in use may take to become free: a killed process's last requests end after it.
const BUSY_DEADLINE: Duration = Duration::from_millis(500);

pub(super) fn open(options: &RawOptions) -> Result<Image, OpenError> {
    examine(open_locked(options)?, options)
}

/// Takes a file that somebody else opened. Its flags become ours: O_APPEND goes, and O_DIRECT is as the options say.
pub(super) fn adopt(file: File, options: &RawOptions) -> Result<Image, OpenError> {
    examine(adopt_locked(file, options)?, options)
}

/// Opens and locks a file or block device, whatever is in it. Of the options, the path and whether it is only read count.
pub(crate) fn open_locked(options: &RawOptions) -> Result<File, OpenError> {
    unless_busy(|| {
        let file = open_file(options)?;
        check_kind(&file, options)?;
        lock(&file, options)?;
        Ok(file)
    })
}

/// As [`open_locked`], of a file that somebody else opened.
pub(crate) fn adopt_locked(file: File, options: &RawOptions) -> Result<File, OpenError> {
    // A pipe's flags are not ours to change.
    check_kind(&file, options)?;
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|e| open_error(options, e.into()))?;
    let readable = !flags.intersects(OFlags::PATH | OFlags::WRONLY);
    if !readable || (!options.read_only && !flags.contains(OFlags::RDWR)) {
        let writing = !options.read_only;
        return Err(OpenError::new(
            &options.path,
            OpenErrorKind::Access { writing },
        ));
    }
    set_flags(&file, OFlags::empty()).map_err(|e| open_error(options, e.into()))?;
    unless_busy(|| lock(&file, options))?;
    Ok(file)
}

/// Tries again for a while where an image is in use.
fn unless_busy<T>(mut attempt: impl FnMut() -> Result<T, OpenError>) -> Result<T, OpenError> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(OpenError {
                kind: OpenErrorKind::InUse { .. },
                ..
            }) if start.elapsed() < BUSY_DEADLINE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Whether an open file can be an image at all.
fn check_kind(file: &File, options: &RawOptions) -> Result<fs::Metadata, OpenError> {
    let metadata = file
        .metadata()
        .map_err(|error| OpenError::because(&options.path, OpenErrorKind::Io, error))?;
    match metadata.file_type() {
        kind if kind.is_file() || kind.is_block_device() => Ok(metadata),
        kind => {
            let kind = if kind.is_dir() {
                OpenErrorKind::Directory
            } else {
                OpenErrorKind::WrongKind
            };
            Err(OpenError::new(&options.path, kind))
        }
    }
}

/// Looks at an open and locked file.
fn examine(file: File, options: &RawOptions) -> Result<Image, OpenError> {
    let path = &options.path;
    let fail = |kind| Err(OpenError::new(path, kind));
    let io_error = |error| OpenError::because(path, OpenErrorKind::Io, error);
    let metadata = check_kind(&file, options)?;
    let kind = metadata.file_type();
    let end = size_of(&file).map_err(io_error)?;
    let device = Device::of(&file, kind.is_block_device(), metadata.rdev()).map_err(io_error)?;
    let logical = block_size(options, device.as_ref())?;
    if end == 0 {
        return fail(OpenErrorKind::Empty);
    }
    let pad = options.pad && options.read_only;
    let size = match pad.then(|| end.checked_next_multiple_of(logical.into())) {
        Some(Some(padded)) => padded,
        _ => end,
    };
    if size % u64::from(logical) != 0 {
        let block = logical;
        return fail(OpenErrorKind::Size { size, block });
    }
    // O_DIRECT has no bytes beyond the last block of the host's.
    let direct = match pad {
        true => None,
        false => direct(&file, options, logical)?,
    };
    let punch = !options.read_only
        && device.as_ref().map_or_else(
            || punches_holes(&file, size),
            |device| device.discards && device.zeroes,
        );
    let preferred = u32::try_from(metadata.blksize()).unwrap_or(MAX_BLOCK);
    let physical = device.as_ref().map_or(preferred, |device| device.physical);
    let capabilities = Capabilities {
        size,
        logical_block_size: logical,
        physical_block_size: sane_block(physical).max(logical),
        read_only: options.read_only,
        discard: punch,
        discard_granularity: match &device {
            _ if !punch => 0,
            Some(device) => device.granularity.max(logical),
            None => sane_block(preferred).max(logical),
        },
        write_zeroes: !options.read_only && (punch || device.is_some()),
        flush: true,
    };
    tracing::debug!(path = %path.display(), ?capabilities, ?direct, "opened a raw image");
    Ok(Image {
        file,
        path: path.clone(),
        size: AtomicU64::new(size),
        capabilities,
        padded_from: (size != end).then_some(end),
        resizing: Mutex::new(()),
        direct,
    })
}

/// The bytes of a file or block device.
pub(crate) fn size_of(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Reads from `offset` on; what is behind the end is zeros.
pub(crate) fn read_fully(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, offset) {
            Ok(0) => {
                bytes.fill(0);
                return Ok(());
            }
            Ok(n) => {
                bytes = &mut bytes[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open_file(options: &RawOptions) -> Result<File, OpenError> {
    let path = &options.path;
    // A path that is no image must not block (a FIFO) or take effect (a tape): look first, and check again once it is open.
    let metadata = fs::metadata(path).map_err(|error| open_error(options, error))?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(OpenError::new(path, OpenErrorKind::Directory));
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(OpenError::new(path, OpenErrorKind::WrongKind));
    }
    let mut flags = libc::O_NONBLOCK;
    if kind.is_block_device() && !options.read_only {
        // Without O_CREAT: an exclusive claim, which the kernel refuses where the device is mounted or in a mapping.
        flags |= libc::O_EXCL;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| open_error(options, error))?;
    set_flags(&file, OFlags::empty()).map_err(|error| open_error(options, error.into()))?;
    Ok(file)
}

/// Replaces the flags that can be changed on an open file.
fn set_flags(file: &File, flags: OFlags) -> Result<(), Errno> {
    rustix::fs::fcntl_setfl(file, flags | OFlags::LARGEFILE)
}

fn open_error(options: &RawOptions, error: io::Error) -> OpenError {
    let writing = !options.read_only;
    let kind = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => OpenErrorKind::Missing,
        Some(libc::EACCES | libc::EPERM) => OpenErrorKind::Permission,
        Some(libc::EROFS) => OpenErrorKind::ReadOnlyHost,
        Some(libc::EBUSY | libc::ETXTBSY) => OpenErrorKind::InUse { writing },
        Some(libc::EISDIR) => OpenErrorKind::Directory,
        _ => OpenErrorKind::Io,
    };
    OpenError::because(&options.path, kind, error)
}

/// Locks the whole image: for one writer, or for any number of readers. The lock belongs to the open file, so it goes when
/// the last one who has it (the kernel with a request in flight, too) lets go.
#[expect(unsafe_code, reason = "rustix has no open-file-description locks")]
pub(super) fn lock(file: &File, options: &RawOptions) -> Result<(), OpenError> {
    let writing = !options.read_only;
    let kind = if writing {
        libc::F_WRLCK
    } else {
        libc::F_RDLCK
    };
    let lock = libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open and `lock` is read only during the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    let kind = match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => OpenErrorKind::InUse { writing },
        _ => OpenErrorKind::NoLocks,
    };
    Err(OpenError::because(&options.path, kind, error))
}

/// What a block device says of itself.
#[derive(Debug)]
struct Device {
    logical: u32,
    physical: u32,
    granularity: u32,
    discards: bool,
    /// Whether it zeroes ranges by itself, which punching holes needs.
    zeroes: bool,
}

impl Device {
    fn of(file: &File, is_device: bool, number: u64) -> io::Result<Option<Self>> {
        if !is_device {
            return Ok(None);
        }
        let limits = Limits::of(number);
        Ok(Some(Self {
            logical: rustix::fs::ioctl_blksszget(file)?,
            physical: rustix::fs::ioctl_blkpbszget(file)?,
            granularity: u32::try_from(limits.read("discard_granularity")).unwrap_or(0),
            discards: limits.read("discard_max_bytes") > 0,
            zeroes: limits.read("write_zeroes_max_bytes") > 0,
        }))
    }
}

/// The limits of a device's queue in sysfs. A partition has its disk's.
struct Limits(PathBuf);

impl Limits {
    fn of(number: u64) -> Self {
        let (major, minor) = (libc::major(number), libc::minor(number));
        let device = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
        let own = device.join("queue");
        if own.is_dir() {
            Self(own)
        } else {
            // Through the link to the partition's directory, whose parent is the disk's.
            let whole = fs::canonicalize(&device).unwrap_or(device);
            Self(whole.parent().unwrap_or(&whole).join("queue"))
        }
    }

    /// A number, or 0 where sysfs does not say.
    fn read(&self, name: &str) -> u64 {
        fs::read_to_string(self.0.join(name))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }
}

fn block_size(options: &RawOptions, device: Option<&Device>) -> Result<u32, OpenError> {
    let own = device.map_or(0, |device| device.logical);
    let size = options.block_size.unwrap_or(own.max(SECTOR));
    // Smaller than the device's would need read-modify-write.
    let possible = (SECTOR..=MAX_BLOCK).contains(&size) && size.is_power_of_two() && size >= own;
    if possible {
        Ok(size)
    } else {
        let kind = OpenErrorKind::BlockSize {
            asked: size,
            device: own,
        };
        Err(OpenError::new(&options.path, kind))
    }
}

/// A block size from the host, made one that a guest can be told.
fn sane_block(size: u32) -> u32 {
    size.clamp(SECTOR, MAX_BLOCK).next_power_of_two()
}

/// Switches to O_DIRECT if it is wanted and works. Returns the alignment that it asks of memory.
pub(crate) fn direct(
    file: &File,
    options: &RawOptions,
    logical: u32,
) -> Result<Option<usize>, OpenError> {
    if options.direct == Direct::Off {
        return Ok(None);
    }
    match try_direct(file, logical) {
        Ok(alignment) => Ok(Some(alignment)),
        Err(error) if options.direct == Direct::Auto => {
            tracing::info!(path = %options.path.display(), %error, "no O_DIRECT: using the page cache");
            set_flags(file, OFlags::empty())
                .map_err(|e| OpenError::because(&options.path, OpenErrorKind::Io, e))?;
            Ok(None)
        }
        Err(error) => Err(OpenError::because(
            &options.path,
            OpenErrorKind::Direct,
            error,
        )),
    }
}

pub(super) fn try_direct(file: &File, logical: u32) -> io::Result<usize> {
    set_flags(file, OFlags::DIRECT)?;
    let block = logical as usize;
    // Some file systems take the flag and refuse the transfers, so one is made. It tells what is possible; what memory
    // alignment is enough, only statx does.
    let memory = Aligned::new(block);
    read_block(file, &memory, block)?;
    let known = StatxFlags::from_bits_retain(libc::STATX_DIOALIGN);
    let statx = rustix::fs::statx(file.as_fd(), "", AtFlags::EMPTY_PATH, known).ok();
    let alignment = statx
        .filter(|statx| statx.stx_mask & libc::STATX_DIOALIGN != 0)
        .map(|statx| (statx.stx_dio_mem_align, statx.stx_dio_offset_align));
    match alignment {
        None => Ok(block),
        Some((address, offset)) if address > 0 && offset <= logical => Ok(address as usize),
        Some(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[expect(unsafe_code, reason = "reads into raw memory")]
fn read_block(file: &File, memory: &Aligned, length: usize) -> io::Result<()> {
    let segment = memory.segment(length);
    // SAFETY: the segment belongs to `memory`, which nobody else uses.
    match unsafe { libc::pread(file.as_raw_fd(), segment.iov_base, segment.iov_len, 0) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the file system makes holes, tried behind the end of the file, where there is nothing.
pub(super) fn punches_holes(file: &File, size: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, size, u64::from(MAX_BLOCK)).is_ok()
}
