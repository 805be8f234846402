//! The `paddock` command. See [`paddock_vmm::cli`].

use std::process::ExitCode;

/// Heaps that threads share. The C library would give each of them one, of which it never gives anything back; ours allocate little.
const HEAPS: libc::c_int = 2;

#[expect(
    unsafe_code,
    reason = "what the process is started with is adopted; the C library is told how to allocate"
)]
fn main() -> ExitCode {
    // SAFETY: it sets a number, and this is the only thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS) };
    // SAFETY: this is the only thread, and nothing has been opened.
    unsafe { paddock_vmm::systemd::inherited::adopt() };
    paddock_vmm::metrics::timeline::process_started();
    paddock_vmm::cli::main(std::env::args_os())
}
