//! The `paddock` command. See [`paddock_vmm::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    paddock_vmm::metrics::timeline::process_started();
    paddock_vmm::cli::main(std::env::args_os())
}
