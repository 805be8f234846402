//! Numbers with bounds.

use std::fmt;

use serde::Serialize;

use super::ValueError;

/// Checks that `value` lies in `range` and fits `T`. `what` starts the message: "the MTU must be …".
pub(crate) fn in_range<T: TryFrom<u64>>(
    what: &str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<T, ValueError> {
    let error = || {
        ValueError::out_of_range(format!(
            "{what} must be {} to {}, not {value}",
            range.start(),
            range.end()
        ))
    };
    if !range.contains(&value) {
        return Err(error());
    }
    T::try_from(value).map_err(|_| error())
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $what:literal, $range:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// The number.
            #[must_use]
            pub fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl TryFrom<u64> for $name {
            type Error = ValueError;

            fn try_from(value: u64) -> Result<Self, ValueError> {
                in_range($what, value, $range).map(Self)
            }
        }
    };
}

number!(
    /// An IEEE 802.1Q VLAN id: 1 to 4094.
    VlanId(u16),
    "the VLAN id",
    1..=4094
);

number!(
    /// A NIC's MTU in bytes: 1280 (the least IPv6 works with) to 65521 (the most a tap carries).
    Mtu(u16),
    "the MTU",
    1280..=65521
);

/// The number of descriptors of a virtqueue: a power of two, 16 to 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct QueueSize(u16);

impl QueueSize {
    /// The number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for QueueSize {
    fn default() -> Self {
        Self(256)
    }
}

impl fmt::Display for QueueSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u64> for QueueSize {
    type Error = ValueError;

    fn try_from(value: u64) -> Result<Self, ValueError> {
        match u16::try_from(value) {
            Ok(size) if size.is_power_of_two() && (16..=1024).contains(&size) => Ok(Self(size)),
            _ => Err(ValueError::out_of_range(format!(
                "the queue size must be a power of two, 16 to 1024, not {value}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        assert_eq!(VlanId::try_from(4094).unwrap().get(), 4094);
        assert_eq!(
            VlanId::try_from(4095).unwrap_err().detail,
            "the VLAN id must be 1 to 4094, not 4095"
        );
        assert!(VlanId::try_from(0).is_err());
        assert!(Mtu::try_from(u64::MAX).is_err());
        assert!(Mtu::try_from(1279).is_err());
        assert_eq!(Mtu::try_from(9000).unwrap().get(), 9000);
        for good in [16, 32, 1024] {
            assert_eq!(u64::from(QueueSize::try_from(good).unwrap().get()), good);
        }
        for bad in [0, 8, 17, 2048, 65536 + 256] {
            assert!(QueueSize::try_from(bad).is_err(), "{bad}");
        }
    }
}
