//! What a `paddock` process has in memory besides its guest's RAM.

/// Resident memory of process `pid` in KiB, without the mappings that are at least half as large as the guest's RAM of `ram` bytes: guest
/// RAM is mapped as one or two large pieces.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn besides_ram(pid: u32, ram: u64) -> u64 {
    let path = format!("/proc/{pid}/smaps");
    match std::fs::read_to_string(&path) {
        Ok(smaps) if !smaps.is_empty() => resident(&smaps, ram / 1024 / 2),
        Ok(_) => panic!("{path}: the process has ended"),
        Err(error) => panic!("{path}: {error}"),
    }
}

/// Adds up what is resident of the mappings below `limit` KiB.
fn resident(smaps: &str, limit: u64) -> u64 {
    let (mut sum, mut counts) = (0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next(), words.next());
        let value: u64 = value.and_then(|value| value.parse().ok()).unwrap_or(0);
        match name {
            Some("Size:") => counts = value < limit,
            Some("Rss:") if counts => sum += value,
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_does_not_count() {
        let smaps = "\
5500-5600 r-xp 0 08:01 1 /usr/bin/paddock
Size:               3000 kB
Rss:                1000 kB
7f00-8f00 rw-p 0 00:00 0
Size:             262144 kB
Rss:               90000 kB
9000-9100 rw-p 0 00:00 0 [heap]
Size:                132 kB
Rss:                 100 kB
";
        assert_eq!(resident(smaps, 131_072), 1100);
    }

    #[test]
    fn this_process_has_some() {
        assert!(besides_ram(std::process::id(), 1 << 60) > 100);
    }
}
