//! Names and numbers that are right by construction: interface names, MAC addresses, VLAN ids.

use std::fmt;
use std::str::FromStr;

use crate::error::{NetworkError, NetworkErrorKind};

/// A network interface's name: 1 to 15 bytes that the kernel takes literally.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The longest name the kernel has room for, in bytes.
    pub const MAX_LEN: usize = libc::IFNAMSIZ - 1;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = NetworkError;

    /// Takes what the kernel's `dev_valid_name` takes, without `%`, which it would expand to a number.
    fn from_str(name: &str) -> Result<Self, NetworkError> {
        let problem = if name.is_empty() {
            "it is empty".to_owned()
        } else if name.len() > Self::MAX_LEN {
            format!(
                "it has {} bytes and the kernel has room for {}",
                name.len(),
                Self::MAX_LEN
            )
        } else if name == "." || name == ".." {
            "it names a directory".to_owned()
        } else if let Some(bad) = name
            .chars()
            .find(|c| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control())
        {
            format!("it contains {bad:?}")
        } else {
            return Ok(Self(name.to_owned()));
        };
        Err(NetworkError::new(
            NetworkErrorKind::InvalidName,
            &name.escape_debug(),
            problem,
        ))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address made of these bytes, in the order they are sent.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// A random address of the locally administered, unicast kind.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn random() -> Result<Self, NetworkError> {
        let mut bytes = [0_u8; 6];
        let got = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
        if got != Ok(bytes.len()) {
            return Err(NetworkError::new(
                NetworkErrorKind::InvalidMac,
                &"(random)",
                "the kernel gave no random bytes for it",
            )
            .because(got.err().unwrap_or(rustix::io::Errno::AGAIN)));
        }
        bytes[0] = (bytes[0] & !MULTICAST) | LOCAL;
        Ok(Self(bytes))
    }

    /// The bytes, in the order they are sent.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// Whether a NIC can have it: not multicast and not all zero.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & MULTICAST == 0 && self.0 != [0; 6]
    }
}

/// The group bit of an address's first byte.
const MULTICAST: u8 = 0x01;
/// The locally-administered bit of an address's first byte.
const LOCAL: u8 = 0x02;

impl FromStr for MacAddress {
    type Err = NetworkError;

    /// Takes `52:54:00:12:34:56`, in either case, and refuses addresses no NIC can have.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let invalid = |problem: &str| {
            NetworkError::new(NetworkErrorKind::InvalidMac, &text.escape_debug(), problem)
        };
        let mut bytes = [0_u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| invalid("write it as six hexadecimal pairs, 52:54:00:12:34:56"))?;
        }
        if parts.next().is_some() {
            return Err(invalid("it has more than six bytes"));
        }
        let mac = Self(bytes);
        if mac.is_unicast() {
            Ok(mac)
        } else {
            Err(invalid(
                "a NIC needs a unicast address: first byte even, not all zero",
            ))
        }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An 802.1Q VLAN id, 1 to 4094.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(u16);

impl VlanId {
    /// The id as a number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for VlanId {
    type Error = NetworkError;

    fn try_from(id: u16) -> Result<Self, NetworkError> {
        if (1..=4094).contains(&id) {
            Ok(Self(id))
        } else {
            Err(NetworkError::new(
                NetworkErrorKind::InvalidVlan,
                &id,
                "VLAN ids are 1 to 4094; leave it out for no VLAN",
            ))
        }
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::{InterfaceName, MacAddress, VlanId};
    use crate::NetworkErrorKind;

    #[test]
    fn interface_names_are_what_the_kernel_takes() {
        for good in ["tap0", "a", "fifteen-bytes-x", "br.100", "mgmt-br"] {
            assert_eq!(good.parse::<InterfaceName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "sixteen-bytes-xy",
            "a/b",
            "a b",
            "a:1",
            "tap%d",
            "tap\n",
            "t\0p",
        ] {
            let error = bad.parse::<InterfaceName>().unwrap_err();
            assert_eq!(error.kind(), NetworkErrorKind::InvalidName, "{bad:?}");
        }
    }

    #[test]
    fn mac_addresses_read_as_they_are_written() {
        let mac: MacAddress = "52:54:00:AB:cd:0f".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:0f:01",
            "52-54-00-ab-cd-0f",
            "52:54:00:ab:cd:+f",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(
                bad.parse::<MacAddress>().unwrap_err().kind(),
                NetworkErrorKind::InvalidMac,
                "{bad}"
            );
        }
    }

    #[test]
    fn random_macs_are_local_unicast_and_differ() {
        let some: Vec<_> = (0..64).map(|_| MacAddress::random().unwrap()).collect();
        for mac in &some {
            assert!(mac.is_unicast());
            assert_eq!(mac.bytes()[0] & 2, 2);
        }
        assert!(some.windows(2).any(|two| two[0] != two[1]));
    }

    #[test]
    fn vlan_ids_leave_out_the_reserved_ones() {
        assert!(VlanId::try_from(0).is_err());
        assert!(VlanId::try_from(4095).is_err());
        assert_eq!(VlanId::try_from(4094).unwrap().get(), 4094);
    }
}
