//! The tun driver's ioctls, each made safe: nothing here takes more than a descriptor and plain values.
#![expect(unsafe_code, reason = "rustix and vmm-sys-util have no tun ioctls")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_int, c_ulong};
use rustix::fs::{Mode, OFlags};

/// Where the tun driver is found.
pub(crate) const TUN_DEVICE: &str = "/dev/net/tun";

/// Opens the tun driver: a queue not yet attached to any interface, non-blocking.
pub(crate) fn open_tun() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        TUN_DEVICE,
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// `TUNGETFEATURES`: the `IFF_*` flags the driver knows. Attaches nothing.
pub(crate) fn features(tun: BorrowedFd<'_>) -> io::Result<u32> {
    let mut flags: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int, and `flags` is one.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETFEATURES, &raw mut flags) })?;
    Ok(flags)
}

/// `TUNSETIFF`: attaches the queue to the interface `name`, which it makes if need and right be. A `%d` in the name becomes
/// a free number. Returns the interface's name.
pub(crate) fn attach(tun: &OwnedFd, name: &str, flags: c_int) -> io::Result<String> {
    // SAFETY: an ifreq of zero bytes is a valid one.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // The flags are an unsigned 16-bit field that libc declares as a signed one.
    let bits = u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    request.ifr_ifru.ifru_flags = i16::from_ne_bytes(bits.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one ifreq, and `request` is one.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    Ok(name_in(&request))
}

fn name_in(request: &libc::ifreq) -> String {
    let name = request.ifr_name.iter().map(|c| c.to_ne_bytes()[0]);
    let name: Vec<u8> = name.take_while(|c| *c != 0).collect();
    String::from_utf8_lossy(&name).into_owned()
}

/// `TUNGETIFF`: the interface that a queue is attached to, and its `IFF_*` flags.
pub(crate) fn attached_to(tun: BorrowedFd<'_>) -> io::Result<(String, c_int)> {
    // SAFETY: an ifreq of zero bytes is a valid one.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq, and `request` is one.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF wrote the flags, and any bytes are flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let flags = u16::from_ne_bytes(flags.to_ne_bytes());
    Ok((name_in(&request), flags.into()))
}

/// `TUNSETVNETHDRSZ`: how many bytes of header precede each frame. Of the whole interface.
pub(crate) fn set_header_size(tun: BorrowedFd<'_>, size: c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, and `size` is one.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
}

/// `TUNSETOFFLOAD`: what frames may be left unfinished. Of the whole interface.
pub(crate) fn set_offloads(tun: BorrowedFd<'_>, bits: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(bits)) })
}

/// `TUNSETQUEUE`: lets this queue of a multi-queue tap take part, or not.
pub(crate) fn set_queue_active(tun: BorrowedFd<'_>, active: bool) -> io::Result<()> {
    // SAFETY: an ifreq of zero bytes is a valid one.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // Both flags are far below 2^15.
    request.ifr_ifru.ifru_flags = if active { ATTACH_QUEUE } else { DETACH_QUEUE };
    // SAFETY: TUNSETQUEUE reads one ifreq, and `request` is one.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

const ATTACH_QUEUE: i16 = 0x0200;
const DETACH_QUEUE: i16 = 0x0400;

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
