//! A guest of a few instructions, to see whether KVM does what it says and what an exit costs.
//!
//! It is built by the code that builds a VM: RAM, interrupt controllers, CPUID, MSRs, boot registers. The guest's code is ours: it
//! writes a byte to an I/O port again and again. It runs on a thread of its own, see [`super::patience`].

use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::chain;
use crate::boot::{BootEntry, BootProtocol};
use crate::cpu::cpuid::{self, CpuidOptions};
use crate::cpu::registers;
use crate::cpu::topology::Topology;
use crate::kvm::{Kvm, KvmError, call};
use crate::layout;
use crate::memory::{MemoryErrorKind, PageSize, RamConfig, create_ram};

/// Where the code goes, guest-physical: in RAM, beyond the boot tables.
const CODE: u64 = 0x10_0000;
/// A port that is nobody's here.
const PORT: u16 = 0xF4;
/// What is written to it.
const BYTE: u8 = 0x5A;
/// How many exits are measured, unless time runs out.
const EXITS: u32 = 500;
/// How long they may take.
const MEASURE: Duration = Duration::from_secs(1);

/// What the guest showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// From the guest's port write to the next one, on average.
    pub exit: Duration,
    /// The rate of the guest's TSC in kHz, where KVM tells.
    pub tsc_khz: Option<u32>,
}

/// Why there is no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    /// In words.
    pub what: String,
    /// What the kernel answered, where it was the kernel and not the guest.
    pub errno: Option<i32>,
}

impl From<KvmError> for Failure {
    fn from(error: KvmError) -> Self {
        let errno = match &error {
            KvmError::Open(source) | KvmError::Call { source, .. } => source.raw_os_error(),
            _ => None,
        };
        let what = chain(&error);
        Self { what, errno }
    }
}

fn failure(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure {
        what: chain(error),
        errno: None,
    }
}

/// Runs the guest.
///
/// # Errors
/// When a step of building it fails, or it does something other than it should.
pub fn run(kvm: &Kvm) -> Result<Outcome, Failure> {
    let ram = create_ram(&RamConfig {
        size: layout::RAM_SIZE_MIN,
        max: layout::RAM_SIZE_MIN,
        shared: false,
        pages: PageSize::Base,
    })
    .map_err(|error| Failure {
        errno: (error.kind() == MemoryErrorKind::OutOfMemory).then_some(libc::ENOMEM),
        ..failure(&error)
    })?;
    let vm = kvm.create_vm(&ram, 1)?;
    let memory = ram.memory();
    let protocol = BootProtocol::Linux64;
    registers::write_boot_tables(&memory, protocol).map_err(|error| failure(&error))?;
    memory
        .write_slice(&code(), GuestAddress(CODE))
        .map_err(|error| failure(&error))?;
    let mut vcpu = vm.create_vcpu(0)?;
    let topology = Topology::new(1, 1, 1).map_err(|error| failure(&error))?;
    let options = CpuidOptions {
        nested: false,
        tsc_deadline: kvm.has_tsc_deadline(),
    };
    let cpuid = cpuid::filter(&kvm.supported_cpuid()?, &topology, 0, &options);
    vcpu.set_cpuid2(&cpuid).map_err(call("setting CPUID"))?;
    registers::setup_msrs(&vcpu, registers::FirstMsrs::AfterFirmware)?;
    let entry = BootEntry {
        protocol,
        entry: CODE,
        argument: 0,
    };
    registers::setup_boot_vcpu(&vcpu, &entry)?;
    turn(&mut vcpu)?;
    let start = Instant::now();
    let mut exits = 0;
    while exits < EXITS && start.elapsed() < MEASURE {
        turn(&mut vcpu)?;
        exits += 1;
    }
    Ok(Outcome {
        exit: start.elapsed() / exits.max(1),
        tsc_khz: vcpu.get_tsc_khz().ok().filter(|khz| *khz > 0),
    })
}

/// `mov dx, PORT; mov al, BYTE; again: out dx, al; jmp again`
fn code() -> [u8; 9] {
    let [low, high] = PORT.to_le_bytes();
    [0x66, 0xBA, low, high, 0xB0, BYTE, 0xEE, 0xEB, 0xFD]
}

/// Into the guest, and out again by its port write.
fn turn(vcpu: &mut VcpuFd) -> Result<(), Failure> {
    let wrong = loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, [BYTE])) => return Ok(()),
            Ok(VcpuExit::Intr) => {}
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return Err(call("running the trial guest")(error).into()),
            Ok(exit) => break describe(&exit),
        }
    };
    Err(Failure {
        what: format!("the trial guest {wrong}"),
        errno: None,
    })
}

fn describe(exit: &VcpuExit<'_>) -> String {
    match exit {
        VcpuExit::Shutdown => "shut down by a triple fault (KVM_EXIT_SHUTDOWN)".into(),
        VcpuExit::FailEntry(reason, _) => {
            format!("could not be entered (KVM_EXIT_FAIL_ENTRY), hardware reason {reason:#x}")
        }
        VcpuExit::InternalError => {
            "stopped by an error inside KVM (KVM_EXIT_INTERNAL_ERROR)".into()
        }
        other => format!("left its code unexpectedly: {other:?}"),
    }
}
