//! What firmware needs beside the PC's usual devices: the flash it lies in, the file that keeps its variables, and fw_cfg, through which
//! the host tells it about the machine.
//!
//! ```text
//! vCPU threads ─▶ flash ──changed──▶ vars (a thread of its own) ──▶ the VM's variable store, a file
//!            └──▶ fw_cfg ──▶ items: given beforehand, made when first read, or written by the guest
//! ```
//!
//! Registers and commands are those of QEMU's pflash and fw_cfg as far as Debian's OVMF and SeaBIOS use them.

pub mod flash;
pub mod fw_cfg;
pub mod vars;
pub mod volume;
