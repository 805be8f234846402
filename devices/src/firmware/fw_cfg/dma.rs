//! One DMA transfer: what its descriptor in guest RAM asks for, done whole or not at all.

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend};

use super::{FwCfg, PADDING_MAX, State};
use crate::virtio::GuestMap;

/// Control bits. The upper half is the key to select.
const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;

/// Bytes that are filled with zeros at a time.
const ZEROS: [u8; 4096] = [0; 4096];

/// A descriptor: three big-endian fields.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    control: u32,
    length: u32,
    address: u64,
}

impl Descriptor {
    fn read(map: &GuestMap, at: GuestAddress) -> Option<Self> {
        let mut bytes = [0; 16];
        // Nothing can be told to a guest whose descriptor is not all there.
        if !map.check_range(at, bytes.len()) {
            return None;
        }
        map.read_slice(&mut bytes, at).ok()?;
        let [control, length, high, low] = [0, 4, 8, 12]
            .map(|at| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        Some(Self {
            control,
            length,
            address: u64::from(high) << 32 | u64::from(low),
        })
    }
}

/// Why a transfer failed, for the log.
#[derive(Debug, Clone, Copy)]
enum Failure {
    OutsideRam,
    TooLong,
    NotToBeWritten,
}

impl FwCfg {
    /// Does what the descriptor at `at` asks for.
    pub(super) fn transfer(&self, state: &mut State, at: u64) {
        let map = self.memory.memory();
        let at = GuestAddress(at);
        let Some(descriptor) = Descriptor::read(&map, at) else {
            self.complain("descriptor outside RAM", at.0, 0);
            return;
        };
        let control = descriptor.control;
        if control & SELECT != 0 {
            let [high, low, ..] = control.to_be_bytes();
            self.select(state, u16::from_be_bytes([high, low]));
        }
        let length = usize::try_from(descriptor.length).unwrap_or(usize::MAX);
        let target = GuestAddress(descriptor.address);
        let result = if control & READ != 0 {
            read(state, &map, target, length)
        } else if control & WRITE != 0 {
            write(state, &map, target, length)
        } else {
            if control & SKIP != 0 {
                state.selection.advance(length);
            }
            Ok(())
        };
        let status = match result {
            Ok(()) => 0,
            Err(failure) => {
                let what = match failure {
                    Failure::OutsideRam => "transfer outside RAM",
                    Failure::TooLong => "transfer far beyond an item",
                    Failure::NotToBeWritten => "write to what it may not write",
                };
                self.complain(what, descriptor.address, descriptor.length);
                ERROR
            }
        };
        // It was RAM before the transfer; who takes it away meanwhile does not hear of its end.
        let _ = map.write_slice(&status.to_be_bytes(), at);
    }

    fn complain(&self, what: &str, address: u64, length: u32) {
        if let Some(held_back) = self.log.pass() {
            tracing::info!(
                address,
                length,
                held_back,
                "fw_cfg: guest asks for a {what}"
            );
        }
    }
}

/// Copies the next `length` bytes of the item to the guest, zeros behind its end.
fn read(
    state: &mut State,
    map: &GuestMap,
    target: GuestAddress,
    length: usize,
) -> Result<(), Failure> {
    let rest = state.selection.rest();
    let known = rest.get(..length.min(rest.len())).unwrap_or_default();
    if length - known.len() > PADDING_MAX {
        return Err(Failure::TooLong);
    }
    if !map.check_range(target, length) {
        return Err(Failure::OutsideRam);
    }
    let outside = |_| Failure::OutsideRam;
    map.write_slice(known, target).map_err(outside)?;
    let mut done = known.len();
    while done < length {
        let zeros = ZEROS.get(..length - done).unwrap_or(&ZEROS);
        // The range was checked: no overflow.
        let at = GuestAddress(target.0.saturating_add(done as u64));
        map.write_slice(zeros, at).map_err(outside)?;
        done += zeros.len();
    }
    state.selection.advance(length);
    Ok(())
}

/// Copies `length` bytes from the guest into the item.
fn write(
    state: &mut State,
    map: &GuestMap,
    source: GuestAddress,
    length: usize,
) -> Result<(), Failure> {
    let selection = &mut state.selection;
    let item = selection.item.as_ref().ok_or(Failure::NotToBeWritten)?;
    let mut outside = false;
    let fill = |bytes: &mut [u8]| {
        let read = map.check_range(source, length) && map.read_slice(bytes, source).is_ok();
        outside = !read;
        read
    };
    match item.write(selection.offset, length, fill) {
        Some(contents) => {
            selection.contents = Some(contents);
            selection.advance(length);
            Ok(())
        }
        None if outside => Err(Failure::OutsideRam),
        None => Err(Failure::NotToBeWritten),
    }
}
