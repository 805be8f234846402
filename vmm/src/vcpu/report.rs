//! The report of a guest that cannot go on: what happened and where.
//!
//! Collected on the thread of the vCPU that failed, printed by the state driver. Register contents are the guest's data.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::exits::{Access, Exits, FatalExit};

/// Everything known about the end of a vCPU.
#[derive(Debug, Clone)]
pub struct CrashReport {
    /// The vCPU's number.
    pub vcpu: usize,
    /// Why it cannot go on.
    pub exit: FatalExit,
    /// Its last device access, with the device's name.
    pub last_access: Option<(Access, Option<String>)>,
    /// General registers, if KVM still gave them.
    pub regs: Option<kvm_regs>,
    /// Segment and control registers, likewise.
    pub sregs: Option<kvm_sregs>,
}

impl CrashReport {
    /// Collects what the vCPU can still tell.
    #[must_use]
    pub fn collect(vcpu: usize, exit: FatalExit, fd: &VcpuFd, exits: &Exits) -> Self {
        Self {
            vcpu,
            exit,
            last_access: exits.last_access(),
            regs: fd.get_regs().ok(),
            sregs: fd.get_sregs().ok(),
        }
    }

    /// One line: what happened and where.
    #[must_use]
    pub fn summary(&self) -> String {
        let place = self
            .regs
            .map_or_else(String::new, |regs| format!(" at RIP {:#x}", regs.rip));
        format!("vCPU {}: {}{place}", self.vcpu, self.exit)
    }
}

impl fmt::Display for FatalExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => f.write_str("triple fault (KVM_EXIT_SHUTDOWN)"),
            Self::FailEntry { reason } => write!(
                f,
                "the CPU refused to enter the guest (KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x}); \
                 nested virtualization that is incomplete is a usual cause"
            ),
            Self::InternalError { suberror, data } => write!(
                f,
                "KVM internal error {suberror} ({}){}",
                suberror_name(*suberror),
                if data.is_empty() {
                    String::new()
                } else {
                    format!(", data {data:x?}")
                }
            ),
            Self::Unexpected(exit) => write!(f, "unhandled exit {exit}"),
            Self::RunFailed(errno) => write!(
                f,
                "KVM_RUN failed: {}",
                std::io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        1 => "instruction emulation failed",
        2 => "exception while delivering an exception",
        3 => "vector delivery failed",
        4 => "unexpected exit reason",
        _ => "unknown",
    }
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.summary())?;
        match &self.last_access {
            Some((access, device)) => writeln!(f, "  last device access: {access} ({})", {
                device.as_deref().unwrap_or("no device there")
            })?,
            None => writeln!(f, "  last device access: none")?,
        }
        if let Some(regs) = &self.regs {
            write_regs(f, regs)?;
        }
        if let Some(sregs) = &self.sregs {
            write_sregs(f, sregs)?;
        }
        Ok(())
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} bytes {} {} {:#x}, value {:#x}",
            if self.write { "write" } else { "read" },
            self.width,
            if self.write { "to" } else { "from" },
            if self.port { "port" } else { "address" },
            self.address,
            self.value,
        )
    }
}

fn write_regs(f: &mut fmt::Formatter<'_>, r: &kvm_regs) -> fmt::Result {
    for row in [
        [
            ("RIP", r.rip),
            ("RFLAGS", r.rflags),
            ("RSP", r.rsp),
            ("RBP", r.rbp),
        ],
        [
            ("RAX", r.rax),
            ("RBX", r.rbx),
            ("RCX", r.rcx),
            ("RDX", r.rdx),
        ],
        [("RSI", r.rsi), ("RDI", r.rdi), ("R8", r.r8), ("R9", r.r9)],
        [
            ("R10", r.r10),
            ("R11", r.r11),
            ("R12", r.r12),
            ("R13", r.r13),
        ],
        [("R14", r.r14), ("R15", r.r15), ("", 0), ("", 0)],
    ] {
        f.write_str(" ")?;
        for (name, value) in row.iter().filter(|(name, _)| !name.is_empty()) {
            write!(f, " {name:<6} {value:016x}")?;
        }
        writeln!(f)?;
    }
    Ok(())
}

fn write_sregs(f: &mut fmt::Formatter<'_>, s: &kvm_sregs) -> fmt::Result {
    writeln!(
        f,
        "  CR0    {:016x} CR2    {:016x} CR3    {:016x} CR4    {:016x} EFER   {:016x}",
        s.cr0, s.cr2, s.cr3, s.cr4, s.efer
    )?;
    for (name, segment) in [("CS", &s.cs), ("SS", &s.ss), ("DS", &s.ds), ("TR", &s.tr)] {
        write_segment(f, name, segment)?;
    }
    writeln!(
        f,
        "  GDT base {:#x} limit {:#x}; IDT base {:#x} limit {:#x}",
        s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit
    )
}

fn write_segment(f: &mut fmt::Formatter<'_>, name: &str, s: &kvm_segment) -> fmt::Result {
    writeln!(
        f,
        "  {name} selector {:#06x} base {:#x} limit {:#x} type {:#x} l {} db {} present {}",
        s.selector, s.base, s.limit, s.type_, s.l, s.db, s.present
    )
}

#[cfg(test)]
mod tests {
    use super::{Access, CrashReport, FatalExit};
    use kvm_bindings::{kvm_regs, kvm_sregs};

    #[test]
    fn a_report_says_what_and_where() {
        let report = CrashReport {
            vcpu: 3,
            exit: FatalExit::InternalError {
                suberror: 1,
                data: vec![0x10, 0x20],
            },
            last_access: Some((
                Access {
                    port: true,
                    write: true,
                    address: 0x3f8,
                    width: 1,
                    value: 0x41,
                },
                Some("com1".to_owned()),
            )),
            regs: Some(kvm_regs {
                rip: 0xffff_8000_0000_1234,
                ..Default::default()
            }),
            sregs: Some(kvm_sregs::default()),
        };
        let text = report.to_string();
        assert!(
            text.starts_with("vCPU 3: KVM internal error 1 (instruction emulation failed), data")
        );
        assert!(text.contains("at RIP 0xffff800000001234"));
        assert!(text.contains("write of 1 bytes to port 0x3f8, value 0x41 (com1)"));
        assert!(text.contains("CR0"));
    }
}
