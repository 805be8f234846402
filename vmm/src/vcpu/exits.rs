//! What a vCPU leaves the guest for: port and MMIO accesses, and the ends that need a report.
//!
//! Runs on the vCPU's thread. Address, width and value of an access are the guest's choice; the buses cope with any.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::Buses;

/// What became of one turn in the guest.
#[derive(Debug)]
pub enum Exit {
    /// Dealt with; back into the guest.
    Handled,
    /// A signal took the vCPU out.
    Kicked,
    /// KVM has nothing to run, and did not wait for anything.
    TurnedAway,
    /// This vCPU cannot go on.
    Fatal(FatalExit),
}

/// Why a vCPU cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FatalExit {
    /// A triple fault, or whatever else makes a CPU shut down.
    TripleFault,
    /// KVM could not enter the guest.
    FailEntry {
        /// Hardware reason (a VMX instruction error or SVM exit code).
        reason: u64,
    },
    /// KVM gave up.
    InternalError {
        /// KVM_INTERNAL_ERROR_*.
        suberror: u32,
        /// What KVM added.
        data: Vec<u64>,
    },
    /// An exit that this VMM never asked for.
    Unexpected(String),
    /// `KVM_RUN` itself failed.
    RunFailed(i32),
}

/// Why a vCPU left the guest for the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// A read of an I/O port.
    PortRead,
    /// A write to an I/O port.
    PortWrite,
    /// A read of device memory.
    MmioRead,
    /// A write to device memory, but for doorbells, which the kernel takes.
    MmioWrite,
    /// A signal.
    Signal,
    /// It cannot go on.
    Fatal,
}

impl ExitKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::PortRead,
        Self::PortWrite,
        Self::MmioRead,
        Self::MmioWrite,
        Self::Signal,
        Self::Fatal,
    ];

    /// As metrics call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PortRead => "port-read",
            Self::PortWrite => "port-write",
            Self::MmioRead => "mmio-read",
            Self::MmioWrite => "mmio-write",
            Self::Signal => "signal",
            Self::Fatal => "fatal",
        }
    }
}

/// A vCPU's exits so far, resets of the VM included: one cache line, which only its thread writes.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ExitCounters([AtomicU64; ExitKind::ALL.len()]);

impl ExitCounters {
    /// Exits of this kind.
    #[must_use]
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    /// Without a locked instruction: a vCPU has one thread at a time.
    fn count(&self, kind: ExitKind) {
        let counter = &self.0[kind as usize];
        let next = counter.load(Ordering::Relaxed) + 1;
        counter.store(next, Ordering::Relaxed);
    }
}

/// The last device access of a vCPU.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Whether it was to an I/O port.
    pub port: bool,
    /// Whether it was a write.
    pub write: bool,
    /// Port or guest-physical address.
    pub address: u64,
    /// Bytes.
    pub width: usize,
    /// Value written or read, little-endian, at most 8 bytes.
    pub value: u64,
}

/// Runs a vCPU and serves its exits.
#[derive(Debug)]
pub struct Exits {
    buses: Buses,
    last_access: Option<Access>,
    counters: Arc<ExitCounters>,
}

impl Exits {
    /// Serves accesses on `buses`, and counts in `counters`.
    #[must_use]
    pub fn new(buses: Buses, counters: Arc<ExitCounters>) -> Self {
        Self {
            buses,
            counters,
            last_access: None,
        }
    }

    /// The last device access and the name of the device, if one was there.
    #[must_use]
    pub fn last_access(&self) -> Option<(Access, Option<String>)> {
        let access = self.last_access?;
        let bus = if access.port {
            &self.buses.ports
        } else {
            &self.buses.mmio
        };
        let device = bus.device_at(access.address);
        Some((access, device.map(|d| d.name().to_owned())))
    }

    /// Enters the guest once.
    pub fn run_once(&mut self, fd: &mut VcpuFd) -> Exit {
        let exit = self.run(fd);
        match exit {
            Exit::Handled => {}
            Exit::Kicked | Exit::TurnedAway => self.counters.count(ExitKind::Signal),
            Exit::Fatal(_) => self.counters.count(ExitKind::Fatal),
        }
        exit
    }

    fn run(&mut self, fd: &mut VcpuFd) -> Exit {
        match fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.counters.count(ExitKind::MmioRead);
                self.buses.mmio.read(address, data);
                self.note(false, false, address, data.len(), data);
                Exit::Handled
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.counters.count(ExitKind::MmioWrite);
                self.buses.mmio.write(address, data);
                self.note(false, true, address, data.len(), data);
                Exit::Handled
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.counters.count(ExitKind::PortRead);
                let data = (data.as_mut_ptr(), data.len());
                self.port_in(fd, port, data)
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                self.counters.count(ExitKind::PortWrite);
                let data = (data.as_ptr(), data.len());
                self.port_out(fd, port, data)
            }
            Ok(VcpuExit::Intr) => Exit::Kicked,
            Ok(VcpuExit::Shutdown) => Exit::Fatal(FatalExit::TripleFault),
            Ok(VcpuExit::FailEntry(reason, _)) => Exit::Fatal(FatalExit::FailEntry { reason }),
            Ok(VcpuExit::InternalError) => Exit::Fatal(internal_error(fd)),
            Ok(other) => Exit::Fatal(FatalExit::Unexpected(format!("{other:?}"))),
            Err(error) => match error.errno() {
                libc::EINTR => Exit::Kicked,
                libc::EAGAIN => Exit::TurnedAway,
                errno => Exit::Fatal(FatalExit::RunFailed(errno)),
            },
        }
    }

    fn note(&mut self, port: bool, write: bool, address: u64, width: usize, data: &[u8]) {
        let mut value = [0; 8];
        let part = data.len().min(8);
        value[..part].copy_from_slice(&data[..part]);
        self.last_access = Some(Access {
            port,
            write,
            address,
            width,
            value: u64::from_le_bytes(value),
        });
    }

    /// A port read; `rep ins` asks for several elements of the same port at once.
    fn port_in(&mut self, fd: &mut VcpuFd, port: u16, (data, length): (*mut u8, usize)) -> Exit {
        let width = element_width(fd, length);
        // SAFETY: KVM's buffer lies in the run mapping of `fd`, which is borrowed for as long as the slice is used;
        // `length` is what kvm-ioctls computed for it.
        #[expect(unsafe_code, reason = "the exit's buffer, after asking for its width")]
        let data = unsafe { std::slice::from_raw_parts_mut(data, length) };
        for element in data.chunks_mut(width) {
            self.buses.ports.read(port.into(), element);
        }
        self.note(true, false, port.into(), width, data);
        Exit::Handled
    }

    /// A port write, likewise.
    fn port_out(&mut self, fd: &mut VcpuFd, port: u16, (data, length): (*const u8, usize)) -> Exit {
        let width = element_width(fd, length);
        // SAFETY: as in `port_in`.
        #[expect(unsafe_code, reason = "the exit's buffer, after asking for its width")]
        let data = unsafe { std::slice::from_raw_parts(data, length) };
        // Before the write: it may be the one that resets or powers off.
        self.note(true, true, port.into(), width, data);
        for element in data.chunks(width) {
            self.buses.ports.write(port.into(), element);
        }
        Exit::Handled
    }
}

/// The width in bytes of one element of the port access that `fd` exited with; never 0.
fn element_width(fd: &mut VcpuFd, length: usize) -> usize {
    // SAFETY: the exit was KVM_EXIT_IO, for which KVM fills this member of the union; it is plain data.
    #[expect(unsafe_code, reason = "kvm_run is a union")]
    let io = unsafe { fd.get_kvm_run().__bindgen_anon_1.io };
    usize::from(io.size).clamp(1, length.max(1))
}

fn internal_error(fd: &mut VcpuFd) -> FatalExit {
    // SAFETY: the exit was KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member of the union; it is plain data.
    #[expect(unsafe_code, reason = "kvm_run is a union")]
    let internal = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
    let count = (internal.ndata as usize).min(internal.data.len());
    FatalExit::InternalError {
        suberror: internal.suberror,
        data: internal.data[..count].to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_of_each_kind_are_counted_on_one_cache_line() {
        let counters = ExitCounters::default();
        for (index, kind) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
            for _ in 0..=index {
                counters.count(kind);
            }
            assert_eq!(counters.get(kind), index as u64 + 1);
        }
        let size = size_of::<ExitCounters>();
        assert_eq!((size, align_of::<ExitCounters>()), (64, 64));
    }
}
