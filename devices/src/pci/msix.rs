//! MSI-X: the vector table, the pending bits, and the capability (PCI Local Bus 3.0 §6.8.2).
//!
//! Each vector is an [`MsiLine`]. A worker signals it by writing an event and needs no lock; what the guest programs here only
//! connects and disconnects lines. A masked line holds its event, which is what the pending bit array shows.

use std::io;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::interrupt::{MsiAllocator, MsiLine, MsiMessage};
use crate::throttle::Throttle;
use crate::virtio::worker::borrow;

/// Capability id.
pub const CAPABILITY_ID: u8 = 0x11;
/// Bytes of a table entry: address, upper address, data, vector control.
pub const ENTRY_SIZE: usize = 16;
/// Vector control: masked.
const MASKED: u8 = 1;
/// Message control: MSI-X enable.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: all vectors masked.
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// The most vectors a function can have.
pub const MAX_VECTORS: u16 = 2048;

/// The vectors of one function.
#[derive(Debug)]
pub struct Msix {
    lines: Vec<Box<dyn MsiLine>>,
    state: Mutex<State>,
    log: Throttle,
}

#[derive(Debug)]
struct State {
    table: Vec<u8>,
    control: u16,
    /// What each line was last set to, so that only changes reach the kernel.
    set: Vec<Option<MsiMessage>>,
}

impl Msix {
    /// Allocates `vectors` lines (1 to [`MAX_VECTORS`]), all masked.
    ///
    /// # Errors
    /// When the machine has no lines left.
    pub fn new(allocator: &dyn MsiAllocator, vectors: u16) -> io::Result<Self> {
        assert!((1..=MAX_VECTORS).contains(&vectors));
        let lines = (0..vectors)
            .map(|_| allocator.allocate())
            .collect::<io::Result<Vec<_>>>()?;
        let count = usize::from(vectors);
        let mut table = vec![0; count * ENTRY_SIZE];
        for entry in table.chunks_exact_mut(ENTRY_SIZE) {
            entry[12] = MASKED;
        }
        Ok(Self {
            lines,
            state: Mutex::new(State {
                table,
                control: 0,
                set: vec![None; count],
            }),
            log: Throttle::new(),
        })
    }

    /// The number of vectors.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.lines.len()).unwrap_or(MAX_VECTORS)
    }

    /// The body of the capability, behind its two header bytes: table at `table`, pending bits at `pending`, both in BAR `bar`.
    #[must_use]
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> [u8; 10] {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.vectors() - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        body
    }

    /// Bits of message control that the guest may write, as a mask for configuration space.
    #[must_use]
    pub const fn control_mask() -> [u8; 2] {
        (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes()
    }

    /// Raises a vector; one that does not exist (0xFFFF is "none") is ignored.
    pub fn signal(&self, vector: u16) {
        if let Some(line) = self.lines.get(usize::from(vector)) {
            // Fails only when the counter is full: then the interrupt is pending already.
            let _ = line.event().write(1);
        }
    }

    /// Takes over message control after the guest wrote it.
    pub fn set_control(&self, control: u16) {
        let mut state = self.state.lock();
        state.control = control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        for vector in 0..self.lines.len() {
            self.refresh(&mut state, vector);
        }
    }

    /// Reads the table; beyond its end reads as zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = start
                .checked_add(i)
                .and_then(|at| state.table.get(at))
                .copied()
                .unwrap_or(0);
        }
    }

    /// Writes the table; beyond its end is ignored.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut state = self.state.lock();
        let Ok(start) = usize::try_from(offset) else {
            return;
        };
        let end = start.saturating_add(data.len()).min(state.table.len());
        if start >= end {
            return;
        }
        for at in start..end {
            let reserved = at % ENTRY_SIZE > 12;
            let byte = data[at - start];
            state.table[at] = match at % ENTRY_SIZE {
                _ if reserved => 0,
                12 => byte & MASKED,
                _ => byte,
            };
        }
        for vector in start / ENTRY_SIZE..=(end - 1) / ENTRY_SIZE {
            self.refresh(&mut state, vector);
        }
    }

    /// Reads the pending bits: vectors that were raised and could not be delivered.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock();
        for (i, byte) in data.iter_mut().enumerate() {
            let first = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .saturating_add(i)
                .saturating_mul(8);
            *byte = (0..8)
                .filter(|bit| self.is_pending(&state, first.saturating_add(*bit)))
                .fold(0, |bits, bit| bits | 1 << bit);
        }
    }

    fn is_pending(&self, state: &State, vector: usize) -> bool {
        let Some(line) = self.lines.get(vector) else {
            return false;
        };
        if state.set[vector].is_some() {
            return false;
        }
        let event = borrow(line.event());
        let mut polled = [PollFd::new(&event, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut polled, Some(&now)), Ok(1))
    }

    /// Connects or disconnects one line as the table and the control bits now want it.
    fn refresh(&self, state: &mut State, vector: usize) {
        let entry = &state.table[vector * ENTRY_SIZE..][..ENTRY_SIZE];
        let word = |at: usize| {
            u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
        };
        let live = state.control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) == CONTROL_ENABLE
            && entry[12] & MASKED == 0;
        let wanted = live.then(|| MsiMessage {
            address: (u64::from(word(4)) << 32) | u64::from(word(0)),
            data: word(8),
        });
        if state.set[vector] == wanted {
            return;
        }
        match self.lines[vector].set(wanted) {
            Ok(()) => state.set[vector] = wanted,
            Err(error) => {
                if let Some(held_back) = self.log.pass() {
                    tracing::warn!(vector, held_back, "an MSI-X vector is lost: {error}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use vmm_sys_util::eventfd::EventFd;

    use super::Msix;
    use crate::interrupt::{MsiAllocator, MsiLine, MsiMessage};

    #[derive(Debug)]
    struct Line(EventFd, Arc<Mutex<Vec<Option<MsiMessage>>>>);

    impl MsiLine for Line {
        fn event(&self) -> &EventFd {
            &self.0
        }
        fn set(&self, message: Option<MsiMessage>) -> io::Result<()> {
            self.1.lock().push(message);
            Ok(())
        }
    }

    #[derive(Debug, Default)]
    struct Lines(Arc<Mutex<Vec<Option<MsiMessage>>>>);

    impl MsiAllocator for Lines {
        fn allocate(&self) -> io::Result<Box<dyn MsiLine>> {
            Ok(Box::new(Line(
                EventFd::new(libc::EFD_NONBLOCK)?,
                Arc::clone(&self.0),
            )))
        }
    }

    #[test]
    fn a_vector_is_connected_only_while_enabled_and_unmasked() {
        let lines = Lines::default();
        let msix = Msix::new(&lines, 2).unwrap();
        msix.write_table(16, &0xfee0_1000_u64.to_le_bytes());
        msix.write_table(24, &0x4041_u64.to_le_bytes());
        assert!(lines.0.lock().is_empty(), "not enabled yet");
        msix.set_control(1 << 15);
        let message = Some(MsiMessage {
            address: 0xfee0_1000,
            data: 0x4041,
        });
        assert_eq!(*lines.0.lock(), [message]);
        msix.set_control(1 << 15 | 1 << 14);
        msix.set_control(1 << 15 | 1 << 14);
        assert_eq!(*lines.0.lock(), [message, None], "no needless calls");
    }

    #[test]
    fn a_masked_vector_is_pending() {
        let msix = Msix::new(&Lines::default(), 10).unwrap();
        msix.signal(9);
        msix.signal(0xffff);
        let mut bits = [0; 8];
        msix.read_pending(0, &mut bits);
        assert_eq!(bits, [0, 2, 0, 0, 0, 0, 0, 0]);
        let mut odd = [0xff; 3];
        msix.read_pending(u64::MAX, &mut odd);
        assert_eq!(odd, [0; 3]);
    }

    #[test]
    fn accesses_beyond_the_table_are_harmless() {
        let msix = Msix::new(&Lines::default(), 1).unwrap();
        msix.write_table(u64::MAX, &[0; 8]);
        msix.write_table(12, &[0xff; 16]);
        let mut data = [0xff; 8];
        msix.read_table(12, &mut data);
        assert_eq!(data, [1, 0, 0, 0, 0, 0, 0, 0]);
    }
}
