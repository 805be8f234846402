//! Small readers for `/proc` and `/sys`. What cannot be read is absent, never an error: guests differ.

use std::fs;
use std::path::Path;
use std::str::FromStr;

/// A file's text without the white space around it; empty where there is none.
pub fn text(path: impl AsRef<Path>) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
        .unwrap_or_default()
}

/// A file's number.
pub fn number<T: FromStr>(path: impl AsRef<Path>) -> Option<T> {
    text(path).parse().ok()
}

/// A file's hexadecimal number, with or without `0x`.
pub fn hex(path: impl AsRef<Path>) -> Option<u64> {
    let text = text(path);
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).ok()
}

/// The names in a directory, sorted.
pub fn names(path: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Where a symbolic link points: the last part of its target.
pub fn link(path: impl AsRef<Path>) -> String {
    fs::read_link(path)
        .ok()
        .and_then(|target| Some(target.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_default()
}

/// A list such as `0-3,8`.
pub fn list(path: impl AsRef<Path>) -> Vec<u32> {
    parse_list(&text(path))
}

/// The CPUs that are online.
pub fn online_cpus() -> Vec<u32> {
    list("/sys/devices/system/cpu/online")
}

fn parse_list(text: &str) -> Vec<u32> {
    text.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(parse_list("0-3,8"), [0, 1, 2, 3, 8]);
        assert_eq!(parse_list("0"), [0]);
        assert_eq!(parse_list(""), [0; 0]);
    }
}
