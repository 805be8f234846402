//! Sizes in bytes.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{KnownFormat, RefOr, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};

use super::super::problem::quoted;
use super::ValueError;

/// A number of bytes.
///
/// As a text: an integer with one of the binary units `KiB`, `MiB`, `GiB` and `TiB`, or their short forms `K`, `M`, `G` and
/// `T`, which mean the same powers of 1024 and never of 1000; without a unit it is bytes. Capitals do not matter. `MB` and
/// its like are refused, because people disagree on what they mean. In JSON a plain integer is bytes, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// Units from the largest down, each with its power of two.
const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl ByteSize {
    /// A size in bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size in MiB.
    #[must_use]
    pub const fn from_mib(mib: u32) -> Self {
        // 32 + 20 bits fit.
        Self((mib as u64) << 20)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Whether this is a whole number of `unit`s. Nothing is a multiple of zero.
    #[must_use]
    pub const fn is_multiple_of(self, unit: Self) -> bool {
        unit.0 != 0 && self.0.is_multiple_of(unit.0)
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that says it exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS
            .iter()
            .find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift);
        match exact {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, suffix) = text.split_at(end);
        let unit = suffix.trim_start_matches(' ');
        let shift = if unit.is_empty() && suffix.is_empty() {
            Some(0)
        } else {
            UNITS
                .iter()
                .find(|(name, _)| {
                    unit.eq_ignore_ascii_case(name) || unit.eq_ignore_ascii_case(&name[..1])
                })
                .map(|(_, shift)| *shift)
        };
        let (Some(shift), false) = (shift, digits.is_empty()) else {
            return Err(ValueError::malformed(format!(
                "{} is not a size; write an integer and KiB, MiB, GiB or TiB, such as \"512MiB\"",
                quoted(text)
            )));
        };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|value| value.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| {
                ValueError::out_of_range(format!("{} is more than 2^64 bytes", quoted(text)))
            })
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;

        impl Visitor<'_> for SizeVisitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512MiB\", or a number of bytes")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes)
                    .map(ByteSize)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(SizeVisitor)
    }
}

impl PartialSchema for ByteSize {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[0-9]+( *[KkMmGgTt]([Ii][Bb])?)?$"))
            .description(Some("With a unit: KiB, MiB, GiB, TiB, or K, M, G, T."))
            .examples(["512MiB"]);
        let bytes = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(0))
            .description(Some("Bytes."));
        OneOfBuilder::new()
            .item(text)
            .item(bytes)
            .description(Some(
                "A number of bytes. Units are powers of 1024. Answers have the text.",
            ))
            .into()
    }
}

impl ToSchema for ByteSize {}

/// A size of the host's huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePageSize {
    /// 2 MiB.
    TwoMib,
    /// 1 GiB.
    OneGib,
}

impl HugePageSize {
    /// The size.
    #[must_use]
    pub const fn size(self) -> ByteSize {
        match self {
            Self::TwoMib => ByteSize::from_mib(2),
            Self::OneGib => ByteSize::from_mib(1024),
        }
    }
}

impl TryFrom<ByteSize> for HugePageSize {
    type Error = ValueError;

    fn try_from(size: ByteSize) -> Result<Self, ValueError> {
        [Self::TwoMib, Self::OneGib]
            .into_iter()
            .find(|page| page.size() == size)
            .ok_or_else(|| {
                ValueError::out_of_range(format!("huge pages are 2MiB or 1GiB, not {size}"))
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parses_what_it_documents() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1 << 10),
            ("1kib", 1 << 10),
            ("512M", 512 << 20),
            ("512MiB", 512 << 20),
            ("512 MiB", 512 << 20),
            ("3g", 3 << 30),
            ("16TiB", 16 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "", " ", "M", "MiB", "1MB", "1.5G", "-1", "+1", "1 ", " 1", "0x10", "1e3", "1PiB",
            "1Mi", "１M", "1M\n", "1M1",
        ] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.detail.contains("is not a size"), "{text}: {error}");
        }
        for text in [
            "18446744073709551616",
            "16777216T",
            "99999999999999999999999G",
        ] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.detail.contains("2^64"), "{text}: {error}");
        }
    }

    #[test]
    fn json_takes_both_forms() {
        let read = |text| serde_json::from_str::<ByteSize>(text);
        assert_eq!(read("1024").unwrap(), ByteSize(1024));
        assert_eq!(read("\"1K\"").unwrap(), ByteSize(1024));
        for bad in ["-1", "1.0", "true", "null", "\"x\"", "{}"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(
            serde_json::to_string(&ByteSize(1 << 30)).unwrap(),
            "\"1GiB\""
        );
    }

    proptest! {
        #[test]
        fn shown_and_read_back(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn round_sizes_are_short(mib in 1u32..1 << 20) {
            let size = ByteSize::from_mib(mib);
            prop_assert!(size.to_string().ends_with("iB"));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn any_text_is_answered(text: String) {
            let _ = text.parse::<ByteSize>();
        }
    }
}
