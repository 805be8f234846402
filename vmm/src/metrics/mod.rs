//! What there is to measure of the process and its VM, and how it is told to Prometheus.
//!
//! ```text
//!  vCPU threads, device workers ──count──▶ Meters ◀──read── families ──▶ GET /metrics
//!                                          (atomics)   ▲
//!                      /proc/self ──blocking thread──▶ process
//! ```
//!
//! Reading is the control plane's work and stops nobody: counters are atomics that live longer than the devices they are of, so that a
//! reset does not turn them back. They go with the device when it is removed, and with the VM.

mod cdroms;
mod consoles;
mod disks;
mod families;
mod meters;
mod nics;
mod process;
pub mod timeline;
mod volumes;

pub use families::{describe_process, describe_vm};
pub use meters::{DeviceMeter, Meters};
pub use process::{Sample, Sampler, Share};
