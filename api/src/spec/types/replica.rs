//! Where a replica of a volume is.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::super::problem::quoted;
use super::ValueError;

/// Host names have at most so many bytes (RFC 1035 §2.3.4).
const MAX_HOST: usize = 253;
/// The last that can be the first of a replica's three.
const MAX_PORT: u16 = 65533;

/// The host and port of a replica's control service, `HOST:PORT`; its data are on the next port, its sync agent on the one after.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaAddress {
    host: String,
    port: u16,
}

impl fmt::Display for ReplicaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for ReplicaAddress {
    type Err = ValueError;

    /// Also reads `tcp://HOST:PORT`, as Longhorn writes it.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError::malformed(format!(
                "{} is not a replica's address: HOST:PORT of its control service, an IPv6 address in brackets, the port from 1 to {MAX_PORT}",
                quoted(text)
            ))
        };
        let rest = text.strip_prefix("tcp://").unwrap_or(text);
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
        if !is_host(host) || !(1..=MAX_PORT).contains(&port) {
            return Err(wrong());
        }
        let host = host.to_owned();
        Ok(Self { host, port })
    }
}

fn is_host(text: &str) -> bool {
    let bracketed = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    if let Some(address) = bracketed {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let mut bytes = text.bytes();
    (1..=MAX_HOST).contains(&text.len())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, address) in [
            ("10.0.0.1:10000", "10.0.0.1:10000"),
            ("tcp://node-1.example:1", "node-1.example:1"),
            ("[::1]:65533", "[::1]:65533"),
        ] {
            let parsed: ReplicaAddress = text.parse().unwrap();
            assert_eq!(parsed.to_string(), address);
        }
        let long = format!("{}:1", "a".repeat(254));
        for text in [
            "",
            "a",
            "a:",
            ":1",
            "a:0",
            "a:65534",
            "a:+1",
            "a b:1",
            "::1:1",
            "[a]:1",
            "[::1:1",
            "http://a:1",
            "a:1/",
            &long,
        ] {
            let error = text.parse::<ReplicaAddress>().unwrap_err();
            assert!(error.detail.contains("HOST:PORT"), "{error}");
        }
    }
}
