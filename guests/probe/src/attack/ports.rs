//! I/O ports, by the instructions for them.
#![expect(unsafe_code, reason = "port instructions and the right to use them")]

use paddock_probe::hostile::machine::Ports;
use std::arch::asm;

/// Number of ports.
const COUNT: libc::c_ulong = 0x1_0000;

/// Gives the calling thread the right to every port.
///
/// # Errors
/// When the kernel refuses.
pub fn allow() -> Result<(), String> {
    // SAFETY: takes numbers only; what ports do is between the devices and whoever uses them.
    let result = unsafe { libc::ioperm(0, COUNT, 1) };
    if result == 0 {
        Ok(())
    } else {
        let error = std::io::Error::last_os_error();
        Err(format!("no right to use I/O ports: {error}"))
    }
}

/// Every port, for a thread that has had itself [`allow`]ed.
#[derive(Debug)]
pub struct Allowed;

impl Ports for Allowed {
    fn read(&self, port: u16, width: usize) -> u32 {
        let value: u32;
        // SAFETY: a port access touches no memory of this process. Without the right to it, the kernel ends the process.
        unsafe {
            match width {
                1 => {
                    let byte: u8;
                    asm!("in al, dx", out("al") byte, in("dx") port, options(nomem, nostack, preserves_flags));
                    value = byte.into();
                }
                2 => {
                    let half: u16;
                    asm!("in ax, dx", out("ax") half, in("dx") port, options(nomem, nostack, preserves_flags));
                    value = half.into();
                }
                _ => {
                    asm!("in eax, dx", out("eax") value, in("dx") port, options(nomem, nostack, preserves_flags));
                }
            }
        }
        value
    }

    fn write(&self, port: u16, width: usize, value: u32) {
        let [a, b, _, _] = value.to_le_bytes();
        // SAFETY: as for a read.
        unsafe {
            match width {
                1 => {
                    asm!("out dx, al", in("al") a, in("dx") port, options(nomem, nostack, preserves_flags));
                }
                2 => {
                    asm!("out dx, ax", in("ax") u16::from_le_bytes([a, b]), in("dx") port, options(nomem, nostack, preserves_flags));
                }
                _ => {
                    asm!("out dx, eax", in("eax") value, in("dx") port, options(nomem, nostack, preserves_flags));
                }
            }
        }
    }
}
