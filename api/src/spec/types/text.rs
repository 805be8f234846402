//! Names: texts with an alphabet and a length.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::super::problem::quoted;
use super::ValueError;

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $valid:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                if $valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(ValueError::malformed(format!(
                        concat!("{} is not ", $rule),
                        quoted(text)
                    )))
                }
            }
        }
    };
}

text!(
    /// What people call a VM: 1 to 63 of `a-z`, `0-9` and `-`.
    VmName,
    is_vm_name,
    "a VM name: 1 to 63 of a-z, 0-9 and -"
);

text!(
    /// A device's name in the API: 1 to 32 of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`, a letter or digit first, so that it can
    /// be a segment of a URL or of a path.
    DeviceId,
    is_device_id,
    "a device id: 1 to 32 of A-Z, a-z, 0-9, '.', '_' and '-', a letter or digit first"
);

text!(
    /// The name of a virtio console port: 1 to 63 of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`, a letter or digit first.
    PortName,
    is_port_name,
    "a port name: 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-', a letter or digit first"
);

text!(
    /// The name of a host's network interface, as the kernel takes it: 1 to 15 bytes without white space, `/` and `:`, not
    /// `.` or `..`; nor with `%`, which would be a pattern.
    InterfaceName,
    is_interface_name,
    "the name of a network interface: 1 to 15 bytes without white space, '/', ':' and '%'"
);

text!(
    /// A disk's serial number: 1 to 20 printable ASCII characters (VIRTIO 1.2 §5.2.6).
    DiskSerial,
    is_disk_serial,
    "a disk serial number: 1 to 20 printable ASCII characters"
);

text!(
    /// The name of a replicated volume: 1 to 128 of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`, a letter or digit first.
    VolumeName,
    is_volume_name,
    "a volume's name: 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', a letter or digit first"
);

fn is_vm_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_device_id(text: &str) -> bool {
    text.len() <= 32 && is_identifier(text)
}

fn is_port_name(text: &str) -> bool {
    text.len() <= 63 && is_identifier(text)
}

fn is_volume_name(text: &str) -> bool {
    text.len() <= 128 && is_identifier(text)
}

fn is_interface_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text
            .contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%'))
}

fn is_disk_serial(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|b| matches!(b, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table<T: FromStr<Err = ValueError>>(good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(text.parse::<T>().is_ok(), "{text:?} is good");
        }
        for text in bad {
            assert!(text.parse::<T>().is_err(), "{text:?} is bad");
        }
    }

    #[test]
    fn alphabets_and_lengths() {
        let long = "a".repeat(64);
        table::<VmName>(
            &["a", "web-1", &long[..63]],
            &["", "A", "a.b", "a b", &long, "ä"],
        );
        table::<DeviceId>(
            &["a", "Disk.0_x-y", &long[..32]],
            &["", ".", "..", "-a", "a/b", "a b", &long[..33], "ä"],
        );
        table::<PortName>(
            &["org.qemu.guest_agent.0", &long[..63]],
            &["", ".", "a/b", &long],
        );
        table::<VolumeName>(
            &["a", "pvc-6ba7b810-9dad-11d1-80b4-00c04fd430c8", &long[..63]],
            &["", ".", "a/b", "a b", &"a".repeat(129)],
        );
        table::<InterfaceName>(
            &["tap0", "mgmt-br", "br.100", "ä", &long[..15]],
            &[
                "",
                ".",
                "..",
                "a/b",
                "a:b",
                "tap%d",
                "a b",
                "a\tb",
                "a\0",
                "a\u{2003}b",
                &long[..16],
            ],
        );
        table::<DiskSerial>(
            &["x", "a b~", &long[..20]],
            &["", "tab\t", "ä", &long[..21]],
        );
    }

    #[test]
    fn messages_are_short_and_safe() {
        let error = format!("\x1b[2J{}", "x".repeat(1000))
            .parse::<VmName>()
            .unwrap_err();
        assert!(error.detail.len() < 200, "{error}");
        assert!(!error.detail.contains('\x1b'), "{error}");
    }
}
