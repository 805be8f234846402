//! MAC addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::super::problem::quoted;
use super::ValueError;

/// A MAC address that a NIC can have: unicast and not all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// The address, most significant octet first, as on the wire.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }

    /// A locally administered unicast address made of the low 46 bits of `seed`, the same for the same seed.
    #[must_use]
    pub fn locally_administered(seed: u64) -> Self {
        let [_, _, mut first, rest @ ..] = seed.to_be_bytes();
        // IEEE 802: bit 0 of the first octet is group, bit 1 is local.
        first = (first & !0b01) | 0b10;
        let [b, c, d, e, f] = rest;
        Self([first, b, c, d, e, f])
    }
}

impl TryFrom<[u8; 6]> for MacAddr {
    type Error = ValueError;

    fn try_from(octets: [u8; 6]) -> Result<Self, ValueError> {
        if octets[0] & 1 == 1 {
            return Err(ValueError::out_of_range(
                "a NIC's MAC address cannot be a group address: the first octet must be even",
            ));
        }
        if octets == [0; 6] {
            return Err(ValueError::out_of_range(
                "a NIC's MAC address cannot be all zeros",
            ));
        }
        Ok(Self(octets))
    }
}

impl FromStr for MacAddr {
    type Err = ValueError;

    /// Six pairs of hexadecimal digits, joined by `:` throughout or by `-` throughout.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let malformed = || {
            ValueError::malformed(format!(
                "{} is not a MAC address; write six pairs of hexadecimal digits, such as \"02:00:5e:10:00:01\"",
                quoted(text)
            ))
        };
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut parts = text.split(separator);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(malformed)?;
            let two_digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            *octet = u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| two_digits)
                .ok_or_else(malformed)?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        Self::try_from(octets)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, fmt: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(fmt, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms() {
        let mac = MacAddr([0x02, 0, 0x5e, 0x10, 0, 0xab]);
        for text in [
            "02:00:5e:10:00:ab",
            "02:00:5E:10:00:AB",
            "02-00-5e-10-00-ab",
        ] {
            assert_eq!(text.parse(), Ok(mac), "{text}");
        }
        for text in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ab:cd",
            "2:0:5e:10:0:ab",
            "02:00-5e:10:00:ab",
            "02005e1000ab",
            "02:00:5e:10:00:+b",
            "02:00:5e:10:00:ab ",
            "0２:00:5e:10:00:ab",
        ] {
            assert!(
                text.parse::<MacAddr>()
                    .unwrap_err()
                    .detail
                    .contains("is not a MAC address"),
                "{text}"
            );
        }
        assert!(
            "01:00:5e:10:00:ab"
                .parse::<MacAddr>()
                .unwrap_err()
                .detail
                .contains("group")
        );
        assert!(
            "ff:ff:ff:ff:ff:ff"
                .parse::<MacAddr>()
                .unwrap_err()
                .detail
                .contains("group")
        );
        assert!(
            "00:00:00:00:00:00"
                .parse::<MacAddr>()
                .unwrap_err()
                .detail
                .contains("zeros")
        );
    }

    proptest! {
        #[test]
        fn generated_addresses_are_valid(seed: u64) {
            let mac = MacAddr::locally_administered(seed);
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            prop_assert_eq!(mac.octets()[0] & 0b11, 0b10);
        }
    }
}
