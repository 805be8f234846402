//! Clocks, and the hardware random number generator.

use super::Result;
use crate::sysfs;
use paddock_probe::protocol::{Bytes, ClockReply, Random, RandomReply};
use rustix::time::ClockId;
use std::fs::File;
use std::io::Read;

const MAX_RANDOM: u32 = 1 << 20;

/// A clock's reading in ns.
pub fn now_ns(clock: ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    let (seconds, rest) = (
        u64::try_from(time.tv_sec).unwrap_or(0),
        u64::try_from(time.tv_nsec).unwrap_or(0),
    );
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// Answers `clock`.
pub fn clock() -> ClockReply {
    ClockReply {
        realtime_ns: now_ns(ClockId::Realtime),
        monotonic_ns: now_ns(ClockId::Monotonic),
        boottime_ns: now_ns(ClockId::Boottime),
        rtc: sysfs::number("/sys/class/rtc/rtc0/since_epoch"),
    }
}

/// Answers `random`.
pub fn random(request: Random) -> Result<RandomReply> {
    if request.bytes > MAX_RANDOM {
        return Err(format!("`bytes` {} is above {MAX_RANDOM}", request.bytes));
    }
    let mut bytes = vec![0; usize::try_from(request.bytes).unwrap_or(0)];
    File::open("/dev/hwrng")
        .and_then(|mut device| device.read_exact(&mut bytes))
        .map_err(|error| format!("cannot read /dev/hwrng: {error}"))?;
    Ok(RandomReply {
        data: Bytes(bytes),
        source: sysfs::text("/sys/class/misc/hw_random/rng_current"),
    })
}
