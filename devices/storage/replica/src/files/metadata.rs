//! The metadata in a replica's directory, as JSON of Longhorn's form. It may have been written by anybody.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `volume.meta`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeMeta {
    /// Bytes.
    pub size: i64,
    /// The file that is written.
    pub head: String,
    /// It was not closed.
    pub dirty: bool,
    /// A rebuild was begun and not finished.
    pub rebuilding: bool,
    /// What is wrong with it; empty for nothing.
    pub error: String,
    /// The file below the head; empty for none.
    pub parent: String,
    /// In bytes: 512.
    pub sector_size: i64,
    /// The image at the bottom; empty for none.
    pub backing_file_path: String,
    /// What is stored is encrypted by its user.
    pub encrypted: bool,
    /// What later versions of Longhorn may write.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// `*.img.meta`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct DiskMeta {
    /// What the file was called first; its present name counts.
    pub name: String,
    /// The file below it; empty for none.
    pub parent: String,
    /// A snapshot that is to go.
    pub removed: bool,
    /// A snapshot that a user asked for.
    pub user_created: bool,
    /// RFC 3339.
    pub created: String,
    /// The user's.
    pub labels: Option<BTreeMap<String, String>>,
    /// What later versions of Longhorn may write.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// Reads the first JSON value, as Longhorn does; `None` where there is none at all.
///
/// # Errors
/// When it is of another form.
pub fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<Option<T>, serde_json::Error> {
    serde_json::Deserializer::from_slice(bytes)
        .into_iter()
        .next()
        .transpose()
}

/// The bytes of a file of metadata.
#[must_use]
pub fn format<T: Serialize>(value: &T) -> Vec<u8> {
    // Strings, numbers and maps of them always have a form.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_longhorn_writes_it() {
        let text = r#"{"Size":1048576,"Head":"volume-head-000.img","Dirty":true,"Rebuilding":false,"Error":"","Parent":"","SectorSize":512,"BackingFilePath":"","Encrypted":false}
"#;
        let meta: VolumeMeta = parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!((meta.size, meta.dirty), (1_048_576, true));
        assert_eq!(format(&meta), text.as_bytes());
        let text = r#"{"Name":"volume-head-000.img","Parent":"","Removed":false,"UserCreated":false,"Created":"2026-01-02T03:04:05Z","Labels":null}
"#;
        let meta: DiskMeta = parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(format(&meta), text.as_bytes());
    }

    #[test]
    fn what_is_unknown_stays_and_what_lacks_is_nothing() {
        let text = br#"{"Size":512,"Novelty":[1,2]} trailing"#;
        let meta: VolumeMeta = parse(text).unwrap().unwrap();
        assert_eq!(meta.head, "");
        assert!(
            String::from_utf8(format(&meta))
                .unwrap()
                .contains(r#""Novelty":[1,2]"#)
        );
        assert_eq!(parse::<VolumeMeta>(b" \n").unwrap(), None);
        assert!(parse::<VolumeMeta>(b"{\"Size\":\"x\"}").is_err());
        assert!(parse::<VolumeMeta>(b"{\"Size\":5").is_err());
    }
}
