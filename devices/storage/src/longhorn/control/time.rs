//! Times as Longhorn writes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, as RFC 3339 has it, to the second.
pub(in crate::longhorn) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// Nanoseconds since 1970 as a duration.
pub(super) fn since_epoch(nanoseconds: i64) -> Duration {
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
}

/// A name that nothing else has.
pub(super) fn unique_name() -> String {
    // The time it was made at, for people who look at it, and what the kernel says that nobody can guess.
    let mut random = [0; 8];
    let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let random = u64::from_le_bytes(random) ^ filled.map_or(u64::from(std::process::id()), |_| 0);
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    format!("{seconds:08x}-{random:016x}")
}
