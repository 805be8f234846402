//! An open image, and how a request is carried out on it.
//!
//! On the threads of its disk's queues. The guest chooses operations, offsets, lengths and their timing. Its memory is never lent to imago,
//! which wants Rust slices: data goes through memory of the thread's, piece by piece.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::file::File as Storage;
use imago::format::PreallocateMode;
use imago::{FormatAccess, Mapping};

use super::header::Header;
use crate::threads::Work;
use crate::{Buffer, Capabilities, IoError, Operation, RawOptions, Request, ResizeError};

/// Bytes of a block that the guest sees.
const LOGICAL_BLOCK: u32 = 512;
/// What hosts' disks and guests' file systems have.
const PHYSICAL_BLOCK: u32 = 4096;

/// The most bytes that a thread reads or writes at once.
const CHUNK: usize = 256 << 10;

/// What O_DIRECT may ask of memory.
const ALIGNMENT: usize = 4096;

/// The most requests that imago works on at once: each may hold on to some of its cached tables, of which there are 128 and 32, and it
/// gives up when none can be replaced.
const AT_ONCE: usize = 16;

/// What opening gives.
pub(super) struct Layer {
    pub access: FormatAccess<Storage>,
    pub header: Header,
    /// Bytes of the disk that this one is an overlay of.
    pub backing_size: Option<u64>,
    pub is_direct: bool,
}

/// An open image.
#[derive(Debug)]
pub(super) struct Image {
    path: PathBuf,
    /// Who changes what existing clusters are used for must be alone: imago's readers and writers hold on to places in the file that they
    /// looked up.
    access: RwLock<FormatAccess<Storage>>,
    /// The same open file, to be synchronised: imago would keep all others from it meanwhile.
    file: File,
    /// All but the size, which may change.
    capabilities: Capabilities,
    size: AtomicU64,
    backing_size: Option<u64>,
    /// Whether clusters can be said to be zero: version 3.
    zeroes: bool,
    is_direct: bool,
    gate: Gate,
}

impl Image {
    pub(super) fn new(options: &RawOptions, file: File, layer: Layer) -> Self {
        let header = &layer.header;
        let zeroes = header.version >= 3;
        let unmap = zeroes && !options.read_only;
        let granularity = u32::try_from(header.cluster_size()).unwrap_or(u32::MAX);
        Self {
            path: options.path.clone(),
            capabilities: Capabilities {
                size: header.size,
                logical_block_size: LOGICAL_BLOCK,
                physical_block_size: PHYSICAL_BLOCK,
                read_only: options.read_only,
                discard: unmap,
                discard_granularity: if unmap { granularity } else { 0 },
                write_zeroes: unmap,
                flush: true,
            },
            size: AtomicU64::new(header.size),
            access: RwLock::new(layer.access),
            file,
            backing_size: layer.backing_size,
            zeroes,
            is_direct: layer.is_direct,
            gate: Gate::new(AT_ONCE),
        }
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        Capabilities {
            size: self.size.load(Ordering::Acquire),
            ..self.capabilities.clone()
        }
    }

    pub(super) fn is_direct(&self) -> bool {
        self.is_direct
    }

    fn together(&self) -> RwLockReadGuard<'_, FormatAccess<Storage>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, FormatAccess<Storage>> {
        self.access.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the disk `wanted` bytes large; what is new reads as zeros. Nobody else changes the size of a disk that is in an image.
    pub(super) fn resize(&self, wanted: Option<u64>) -> Result<u64, ResizeError> {
        let access = self.alone();
        let size = self.size.load(Ordering::Acquire);
        let wanted = wanted.unwrap_or(size);
        if wanted < size {
            return Err(ResizeError::Smaller { size, wanted });
        }
        if !wanted.is_multiple_of(u64::from(LOGICAL_BLOCK)) {
            let block = LOGICAL_BLOCK;
            return Err(ResizeError::Block { block });
        }
        if wanted == size {
            return Ok(size);
        }
        if self.capabilities.read_only {
            return Err(ResizeError::ReadOnly);
        }
        // What a longer backing file has there must not appear.
        let mode = match self.backing_size {
            Some(backing) if backing > size => PreallocateMode::Zero,
            _ => PreallocateMode::None,
        };
        access.resize_grow(wanted, mode)?;
        access.flush()?;
        self.file.sync_data()?;
        self.size.store(wanted, Ordering::Release);
        Ok(wanted)
    }

    fn read(&self, offset: u64, buffer: &Buffer, scratch: &mut Scratch) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let bytes = scratch.bytes(buffer.len() - done);
            self.together().read(&mut *bytes, offset + done)?;
            buffer.copy_from_at(done, bytes);
            done += bytes.len() as u64;
        }
        Ok(())
    }

    fn write(&self, offset: u64, buffer: &Buffer, scratch: &mut Scratch) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let bytes = scratch.bytes(buffer.len() - done);
            buffer.copy_to_from(done, bytes);
            self.together().write(&*bytes, offset + done)?;
            done += bytes.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.together().flush()?;
        self.file.sync_data()
    }

    /// Calls `clear` for what of a range does not read as zeros already without having clusters. Else imago would make tables that say so.
    fn for_each_piece(
        &self,
        mut offset: u64,
        length: u64,
        mut clear: impl FnMut(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset + length;
        while offset < end {
            let (is_zero, length) = {
                let access = self.together();
                let (mapping, length) = access.get_mapping(offset, end - offset)?;
                (matches!(mapping, Mapping::Zero { .. }), length)
            };
            if length == 0 {
                // The end of the disk, which is not before the end of a request.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !is_zero {
                clear(offset, length)?;
            }
            offset += length;
        }
        Ok(())
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_unmap: bool,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        self.for_each_piece(offset, length, |offset, length| {
            match (self.zeroes, may_unmap) {
                (true, true) => self.alone().discard_to_zero(offset, length),
                (true, false) => self.together().write_zeroes(offset, length),
                (false, _) => {
                    let mut done = 0;
                    while done < length {
                        let bytes = scratch.bytes(length - done);
                        bytes.fill(0);
                        self.together().write(&*bytes, offset + done)?;
                        done += bytes.len() as u64;
                    }
                    Ok(())
                }
            }
        })
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.for_each_piece(offset, length, |offset, length| {
            self.alone().discard_to_any(offset, length)
        })
    }
}

impl Work for Image {
    type Task = Operation;
    type Scratch = Scratch;

    fn path(&self) -> &Path {
        &self.path
    }

    fn scratch() -> Scratch {
        Scratch::default()
    }

    fn accept(&self, request: Request) -> Result<Operation, Result<(), IoError>> {
        let operation = request.operation;
        self.capabilities().check(&operation).map_err(Err)?;
        match operation.range() {
            Some((_, 0)) => Err(Ok(())),
            _ => Ok(operation),
        }
    }

    fn carry_out(&self, operation: Operation, scratch: &mut Scratch) -> Result<(), IoError> {
        let _permit = self.gate.enter();
        let result = match operation {
            Operation::Read { offset, buffer } => self.read(offset, &buffer, scratch),
            Operation::Write { offset, buffer } => self.write(offset, &buffer, scratch),
            Operation::Flush => self.flush(),
            Operation::Discard { offset, length } => self.discard(offset, length),
            Operation::WriteZeroes {
                offset,
                length,
                may_unmap,
            } => self.write_zeroes(offset, length, may_unmap, scratch),
        };
        Ok(result?)
    }
}

/// Memory of a thread's that data goes through.
#[derive(Debug, Default)]
pub(super) struct Scratch(Vec<u8>);

impl Scratch {
    /// Memory for the next piece of so many bytes, at an address that O_DIRECT takes.
    fn bytes(&mut self, wanted: u64) -> &mut [u8] {
        let length = usize::try_from(wanted).map_or(CHUNK, |wanted| wanted.min(CHUNK));
        if self.0.len() < length + ALIGNMENT {
            self.0 = vec![0; length + ALIGNMENT];
        }
        let start = self.0.as_ptr().align_offset(ALIGNMENT);
        &mut self.0[start..start + length]
    }
}

/// Lets so many in at once.
#[derive(Debug)]
struct Gate {
    free: Mutex<usize>,
    freed: Condvar,
}

/// Leaves when it is dropped.
struct Permit<'a>(&'a Gate);

impl Gate {
    fn new(at_once: usize) -> Self {
        Self {
            free: Mutex::new(at_once),
            freed: Condvar::new(),
        }
    }

    fn enter(&self) -> Permit<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.freed.wait_while(free, |free| *free == 0);
        *waited.unwrap_or_else(PoisonError::into_inner) -= 1;
        Permit(self)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}
