//! Which volume, and how.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::error::VolumeError;

/// How long a replica may be silent, by default, while another is there to go on with.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(8);

/// The shortest and the longest that it may be silent.
pub const TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(8)..=Duration::from_secs(30);

/// Ports that a replica uses, beginning with the one in its address: control, data, synchronization.
const PORTS: u16 = 3;

/// Where a replica is: the host and port of its control service. Its data are served on the next port, its sync agent on the one after.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaAddress {
    host: String,
    port: u16,
}

impl ReplicaAddress {
    /// The host: a name or an address, one of IPv6 in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The same without brackets, for those who put a host and a port together themselves.
    #[must_use]
    pub fn bare_host(&self) -> &str {
        let inner = self.host.strip_prefix('[');
        let inner = inner.and_then(|host| host.strip_suffix(']'));
        inner.unwrap_or(&self.host)
    }

    /// The port of the control service.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `HOST:PORT` of the data connection.
    #[must_use]
    pub fn data(&self) -> String {
        format!("{}:{}", self.host, self.port + 1)
    }

    /// `HOST:PORT` of the sync agent.
    #[must_use]
    pub fn sync_agent(&self) -> String {
        format!("{}:{}", self.host, self.port + 2)
    }

    /// As Longhorn writes it: `tcp://HOST:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("tcp://{self}")
    }
}

impl fmt::Display for ReplicaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for ReplicaAddress {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, VolumeError> {
        let wrong = |problem: &str| VolumeError::Address {
            address: text.to_owned(),
            problem: problem.to_owned(),
        };
        let rest = text.strip_prefix("tcp://").unwrap_or(text);
        let (host, port) = rest
            .rsplit_once(':')
            .ok_or_else(|| wrong("it has no port"))?;
        let inner = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let literal = inner.unwrap_or(host);
        let letters = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        let valid = match inner {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => literal.chars().all(letters),
        };
        if host.is_empty() || !valid {
            return Err(wrong("the host is no name and no address"));
        }
        let port: u16 = port.parse().map_err(|_| wrong("the port is no number"))?;
        if port == 0 || port > u16::MAX - (PORTS - 1) {
            return Err(wrong(
                "the port is to be from 1 to 65533, for the next two belong to the replica, too",
            ));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

/// How the replicas of a volume are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Taking {
    /// They are closed, and this engine is to be the only one that has them open.
    #[default]
    Open,
    /// They are closed, and none of them is trusted to have everything: the best is taken, and the others are left.
    Salvage,
    /// Another engine had them open, has ended its I/O, and leaves them open to this one: those that [`hand_over`](super::Volume::hand_over) has named
    /// there, and no others. They are believed to be the same.
    HandedOver,
}

/// Which volume, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOptions {
    /// The volume's name, which replicas that know theirs check.
    pub name: String,
    /// Its replicas: at least one, each once.
    pub replicas: Vec<ReplicaAddress>,
    /// Its size in bytes, a multiple of 4096; `None` for what the replicas have.
    pub size: Option<u64>,
    /// Whether the replicas count writes; `None` for what they do.
    pub revision_counter: Option<bool>,
    /// How the replicas are taken.
    pub taking: Taking,
    /// How long a replica may be silent while it is asked for something and another is there to go on with, 8 to 30 seconds. The last one
    /// has twice as long. A single request may go unanswered for four times that, while others are answered.
    pub timeout: Duration,
    /// Where it is recorded which replicas have everything: a file that the volume makes and keeps. What is on the replicas themselves does not tell it, unless they
    /// count writes: one that failed looks like the others, once none of them runs. Those that are not in it are not taken, except by
    /// [`Taking::Salvage`] and [`Taking::HandedOver`]. One engine at a time has it: a file beside it, with `.lock` behind its name, is locked. `None` where somebody
    /// else keeps such a record.
    pub record: Option<PathBuf>,
    /// Whether the guest may only read.
    pub read_only: bool,
}

impl VolumeOptions {
    /// A volume on some replicas, all else by default.
    #[must_use]
    pub fn new(name: impl Into<String>, replicas: Vec<ReplicaAddress>) -> Self {
        Self {
            name: name.into(),
            replicas,
            size: None,
            revision_counter: None,
            taking: Taking::Open,
            timeout: DEFAULT_TIMEOUT,
            record: None,
            read_only: false,
        }
    }

    pub(super) fn check(&self) -> Result<(), VolumeError> {
        let wrong = |problem: String| Err(VolumeError::Options { problem });
        if self.name.is_empty() || self.name.len() > 128 {
            return wrong("a volume's name has 1 to 128 bytes".to_owned());
        }
        if self.replicas.is_empty() {
            return wrong("a volume has at least one replica: name HOST:PORT of it".to_owned());
        }
        for (index, replica) in self.replicas.iter().enumerate() {
            if self.replicas[..index].contains(replica) {
                return wrong(format!("replica {replica} is named twice"));
            }
        }
        if self
            .size
            .is_some_and(|size| size == 0 || !size.is_multiple_of(super::SECTOR))
        {
            return wrong("a volume's size is a multiple of 4096 bytes".to_owned());
        }
        if !TIMEOUTS.contains(&self.timeout) {
            return wrong("a replica's timeout is 8 to 30 seconds".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::ReplicaAddress;

    #[test]
    fn addresses() {
        let parse = |text: &str| text.parse::<ReplicaAddress>();
        let address = parse("tcp://10.0.0.1:10000").expect("an address");
        assert_eq!(address.to_string(), "10.0.0.1:10000");
        assert_eq!(address.url(), "tcp://10.0.0.1:10000");
        assert_eq!(address.data(), "10.0.0.1:10001");
        assert_eq!(address.sync_agent(), "10.0.0.1:10002");
        assert_eq!(
            parse("[::1]:9502").expect("an address").data(),
            "[::1]:9503"
        );
        let hosts = |text: &str| {
            let address = parse(text).expect("an address");
            (address.host().to_owned(), address.bare_host().to_owned())
        };
        assert_eq!(hosts("[::1]:9502"), ("[::1]".into(), "::1".into()));
        assert_eq!(
            hosts("storage-1.example:9502"),
            ("storage-1.example".into(), "storage-1.example".into())
        );
        for wrong in [
            "",
            "host",
            "host:",
            ":1",
            "host:0",
            "host:65534",
            "host:x",
            "a b:1",
            "[x]:1",
            "::1:5",
            "http://host:1",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
