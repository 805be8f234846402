//! The host's files as the doctor reads them: `/proc`, `/sys` and a few of `/etc`, below a root, so that tests make up hosts.
//!
//! What is in the files is the host's, and may be anything: reads are bounded, and what does not parse counts as absent.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;

/// The most of a file that is read, in bytes. `/proc/cpuinfo` of a large host is the longest.
const MAX_FILE: u64 = 4 << 20;

/// Where the files are.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// The host this process runs on.
    #[must_use]
    pub fn live() -> Self {
        Self::at("/")
    }

    /// A host whose files lie below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text, trimmed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, path: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        File::open(self.path(path))?
            .take(MAX_FILE)
            .read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A file's text, trimmed, if there is one that can be read.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        self.read(path).ok()
    }

    /// A number.
    #[must_use]
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// A switch: Y or N, or a number that is 0 or not.
    #[must_use]
    pub fn switch(&self, path: &str) -> Option<bool> {
        match self.text(path)?.as_str() {
            "Y" => Some(true),
            "N" => Some(false),
            number => number.parse::<i64>().ok().map(|number| number != 0),
        }
    }

    /// Whether something is there.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The names in a directory, in order; none if there is no directory.
    #[must_use]
    pub fn list(&self, path: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path(path))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }
}

/// Who this process is and what it may do, by `/proc/self/status`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// The effective user.
    pub uid: u32,
    /// The effective group and the supplementary ones.
    pub groups: Vec<u32>,
    /// The effective capabilities, by their numbers.
    pub capabilities: u64,
}

/// `CAP_NET_ADMIN`'s number.
pub const CAP_NET_ADMIN: u32 = 12;

impl Identity {
    /// This process.
    #[must_use]
    pub fn of(host: &Host) -> Option<Self> {
        let status = host.text("/proc/self/status")?;
        let line = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        };
        let numbers = |text: &str| -> Vec<u32> {
            text.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect()
        };
        let mut groups = vec![*numbers(line("Gid")?).get(1)?];
        groups.extend(numbers(line("Groups").unwrap_or_default()));
        Some(Self {
            uid: *numbers(line("Uid")?).get(1)?,
            groups,
            capabilities: u64::from_str_radix(line("CapEff")?.trim(), 16).ok()?,
        })
    }

    /// The user's name, or number.
    #[must_use]
    pub fn name(&self, host: &Host) -> String {
        name_of(host, "/etc/passwd", self.uid)
    }

    /// Whether it has a capability.
    #[must_use]
    pub fn has(&self, capability: u32) -> bool {
        self.capabilities.checked_shr(capability).unwrap_or(0) & 1 == 1
    }
}

/// The release of the kernel, as numbers: 6.1 of "6.1.0-32-amd64".
#[must_use]
pub fn release(host: &Host) -> Option<(u64, u64)> {
    let text = host.text("/proc/sys/kernel/osrelease")?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Bytes for people: three digits, and at most one of them behind the point.
#[must_use]
pub fn size(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    // The largest unit of which there is one.
    let power = bytes.checked_ilog2().unwrap_or(0) / 10;
    let unit = units.get(power as usize).copied().unwrap_or("bytes");
    let shift = power * 10;
    let whole = bytes >> shift;
    let tenth = (((bytes - (whole << shift)) >> shift.saturating_sub(10)) * 10) >> 10;
    if power == 0 || tenth == 0 || whole >= 100 {
        format!("{whole} {unit}")
    } else {
        format!("{whole}.{tenth} {unit}")
    }
}

/// The name of a user or group in `/etc/passwd` or `/etc/group`, or its number.
#[must_use]
pub fn name_of(host: &Host, file: &str, id: u32) -> String {
    let text = host.text(file).unwrap_or_default();
    text.lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
        })
        .unwrap_or_else(|| id.to_string())
}

/// The number of a group in `/etc/group`.
#[must_use]
pub fn gid_of(host: &Host, group: &str) -> Option<u32> {
    let text = host.text("/etc/group")?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group)
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::testing::FakeHost;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (64 << 20, "64 MiB"),
            ((100 << 20) + (900 << 10), "100 MiB"),
            (2040 << 20, "1.9 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn releases() {
        for (text, want) in [
            ("6.1.0-32-amd64\n", Some((6, 1))),
            ("6.18.44-fc", Some((6, 18))),
            ("5.10", Some((5, 10))),
            ("six", None),
            ("", None),
            ("99999999999999999999.1", None),
        ] {
            let fake = FakeHost::new(&[("proc/sys/kernel/osrelease", text)]);
            assert_eq!(release(&fake.host()), want, "{text}");
        }
    }

    #[test]
    fn who_this_is() {
        let fake = FakeHost::new(&[
            (
                "proc/self/status",
                "Name:\tx\nUid:\t1\t1000\t1\t1\nGid:\t5\t6\t7\t8\nGroups:\t20 30 \nCapEff:\t0000000000001000\n",
            ),
            (
                "etc/passwd",
                "root:x:0:0::/:/bin/sh\njoe:x:1000:1000::/:/bin/sh\n",
            ),
        ]);
        let host = fake.host();
        let who = Identity::of(&host).unwrap();
        assert_eq!((who.uid, &who.groups[..]), (1000, &[6, 20, 30][..]));
        assert!(who.has(CAP_NET_ADMIN) && !who.has(0) && !who.has(64));
        assert_eq!(who.name(&host), "joe");
        assert_eq!(name_of(&host, "/etc/passwd", 7), "7");
        assert_eq!(Identity::of(&FakeHost::new::<&str, &str>(&[]).host()), None);
    }
}
