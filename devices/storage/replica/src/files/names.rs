//! The names of a replica's files. They come from metadata and from peers, and become paths: whatever is not a plain name is refused.

/// The file that says what the volume is.
pub const VOLUME_META: &str = "volume.meta";

/// The file that counts writes.
pub const REVISION_COUNTER: &str = "revision.counter";

/// What is appended to an image's name for its metadata.
pub const META: &str = ".meta";

/// What is appended to an image's name for its checksum.
pub const CHECKSUM: &str = ".checksum";

/// What is appended to a file's name while it is written anew.
pub const TEMPORARY: &str = ".tmp";

/// What is appended to a file's name while it is received.
const RECEIVING: &str = ".receiving";

const HEAD: &str = "volume-head-";
const SNAPSHOT: &str = "volume-snap-";
const IMAGE: &str = ".img";

/// What a head is called where its number does not matter.
pub const ANY_HEAD: &str = "volume-head";

/// Bytes of the longest name, so that each suffix still fits.
const LONGEST: usize = 255 - 24;

/// Whether it is the name of a file in a directory, and nothing else.
#[must_use]
pub fn is_plain(name: &str) -> bool {
    is_file_name(name) && name.len() <= LONGEST
}

/// The same, with a suffix or two.
#[must_use]
pub(super) fn is_file_name(name: &str) -> bool {
    let special = name.is_empty() || name == "." || name == "..";
    !special && name.len() <= 255 && !name.contains(['/', '\0'])
}

/// The snapshot's file.
#[must_use]
pub fn snapshot_file(snapshot: &str) -> String {
    format!("{SNAPSHOT}{snapshot}{IMAGE}")
}

/// The file of a head; numbers begin anew after 999.
#[must_use]
pub fn head_file(number: u32) -> String {
    format!("{HEAD}{:03}{IMAGE}", number % 1000)
}

/// The number of a head's file, if it is one.
#[must_use]
pub fn head_number(file: &str) -> Option<u32> {
    let number = file.strip_prefix(HEAD)?.strip_suffix(IMAGE)?;
    let digits = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    digits.then(|| number.parse().ok())?
}

/// The snapshot's name, if it is a snapshot's file.
#[must_use]
pub fn snapshot_name(file: &str) -> Option<&str> {
    let name = file.strip_prefix(SNAPSHOT)?.strip_suffix(IMAGE)?;
    (!name.is_empty()).then_some(name)
}

/// Whether it is the file of a layer.
#[must_use]
pub fn is_image(file: &str) -> bool {
    is_plain(file) && (head_number(file).is_some() || snapshot_name(file).is_some())
}

/// Whether a file may be sent and received: a layer, or its metadata.
#[must_use]
pub fn is_transferable(file: &str) -> bool {
    is_image(file.strip_suffix(META).unwrap_or(file))
}

/// What a file is called while it is received; the number is its own.
#[must_use]
pub fn receiving(file: &str, number: u64) -> String {
    format!("{file}{RECEIVING}{number}")
}

/// Whether it is the name of a file that is being received. A snapshot can be called like that, too: its file is none.
#[must_use]
pub fn is_receiving(file: &str) -> bool {
    let parts = file.rsplit_once(RECEIVING);
    !is_transferable(file)
        && parts
            .is_some_and(|(file, number)| is_transferable(file) && number.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_snapshots() {
        assert_eq!(head_file(7), "volume-head-007.img");
        assert_eq!(head_number("volume-head-010.img"), Some(10));
        for none in [
            "volume-head-.img",
            "volume-head-+1.img",
            "volume-head-001.img.meta",
        ] {
            assert_eq!(head_number(none), None, "{none}");
        }
        assert_eq!(snapshot_name(&snapshot_file("a.b")), Some("a.b"));
        assert_eq!(snapshot_name("volume-snap-.img"), None);
    }

    #[test]
    fn received_files_and_snapshots_called_like_them() {
        for file in [snapshot_file("a"), head_file(1) + META] {
            assert!(is_receiving(&receiving(&file, 18)));
            assert!(!is_receiving(&file));
        }
        let snapshot = snapshot_file(&receiving("a.img", 18));
        for file in [
            snapshot.clone(),
            format!("{snapshot}{META}"),
            "x.receiving1".to_owned(),
        ] {
            assert!(!is_receiving(&file), "{file}");
        }
        assert!(is_receiving(&receiving(&snapshot, 0)));
    }

    #[test]
    fn what_leads_elsewhere_is_no_name() {
        for bad in ["", ".", "..", "a/b", "/a", "a\0"] {
            assert!(!is_plain(bad), "{bad:?}");
        }
        assert!(!is_plain(&"x".repeat(250)));
        assert!(!is_image(&snapshot_file("../../etc/passwd")));
        assert!(is_image("volume-snap-x.img") && !is_image("volume.meta"));
    }
}
