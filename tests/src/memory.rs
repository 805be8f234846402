//! What a process has in memory: all of it, or what it has besides its guest's RAM.

/// Bytes of physical memory that process `pid` has: its resident set (RSS), and its proportional set (PSS).
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn held(pid: u32) -> (u64, u64) {
    let rollup = read(pid, "smaps_rollup");
    let bytes = |name: &str| {
        let found = fields(&rollup).find(|(field, _)| *field == name);
        found.map_or_else(|| panic!("no {name} in {rollup}"), |(_, kib)| kib * 1024)
    };
    (bytes("Rss:"), bytes("Pss:"))
}

/// Resident memory of process `pid` in KiB, without the mappings that are at least half as large as the guest's RAM of `ram` bytes: guest
/// RAM is mapped as one or two large pieces.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn besides_ram(pid: u32, ram: u64) -> u64 {
    sum_besides_ram(&read(pid, "smaps"), "Rss:", ram)
}

/// Adds up a field of `smaps`, in KiB, of the mappings that are smaller than half of `ram` bytes.
pub(crate) fn sum_besides_ram(smaps: &str, field: &str, ram: u64) -> u64 {
    let (mut sum, mut counts) = (0, false);
    for (name, value) in fields(smaps) {
        match name {
            "Size:" => counts = value < ram / 1024 / 2,
            name if name == field && counts => sum += value,
            _ => {}
        }
    }
    sum
}

/// The fields of `smaps` or `smaps_rollup`, in KiB where they have a unit.
fn fields(smaps: &str) -> impl Iterator<Item = (&str, u64)> {
    smaps.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?, words.next()?.parse().ok()?))
    })
}

fn read(pid: u32, name: &str) -> String {
    let path = format!("/proc/{pid}/{name}");
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.is_empty() => text,
        Ok(_) => panic!("{path}: the process has ended"),
        Err(error) => panic!("{path}: {error}"),
    }
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
Pss:                 500 kB
Anonymous:             8 kB
7f00-8f00 rw-p 0 00:00 0
Size:             262144 kB
Rss:               90000 kB
Pss:               90000 kB
Anonymous:         90000 kB
9000-9100 rw-p 0 00:00 0 [heap]
Size:                132 kB
Rss:                 100 kB
Pss:                 100 kB
Anonymous:           100 kB
";
        for (field, sum) in [("Rss:", 1100), ("Pss:", 600), ("Anonymous:", 108)] {
            assert_eq!(sum_besides_ram(smaps, field, 256 << 20), sum);
        }
    }

    #[test]
    fn this_process_has_some() {
        let pid = std::process::id();
        assert!(besides_ram(pid, u64::MAX) > 100);
        let (resident, proportional) = held(pid);
        assert!(resident >= proportional && proportional > 0);
    }
}
