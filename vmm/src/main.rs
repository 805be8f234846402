//! The `paddock` command. See [`paddock_vmm::cli`].

use std::process::ExitCode;

#[expect(unsafe_code, reason = "what the process is started with is adopted")]
fn main() -> ExitCode {
    paddock_vmm::heap::limit();
    // SAFETY: this is the only thread, and nothing has been opened.
    unsafe { paddock_vmm::systemd::inherited::adopt() };
    paddock_vmm::metrics::timeline::process_started();
    paddock_vmm::cli::main(std::env::args_os())
}
