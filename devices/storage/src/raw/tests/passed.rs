//! Images that somebody else opened.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::*;
use crate::{OpenError, OpenErrorKind};

fn adopt(file: File, options: &RawOptions) -> Result<RawDisk, OpenError> {
    RawDisk::adopt(OwnedFd::from(file), options)
}

fn named() -> RawOptions {
    RawOptions::new("fd:7")
}

fn open(path: &Path, write: bool) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(write).open(path).unwrap()
}

#[test]
fn the_very_descriptor_is_used() {
    for directory in directories() {
        let path = image(directory.path(), 1 << 20);
        let file = open(&path, true);
        let number = file.as_raw_fd();
        let other = open(&path, true);
        // Not by its name.
        std::fs::remove_file(&path).unwrap();
        let disk = adopt(file, &named()).unwrap();
        assert_eq!(disk.image.file.as_raw_fd(), number);
        assert_eq!(disk.size(), 1 << 20);
        let mut queue = disk.open_queue(8).unwrap();
        other.write_all_at(&[0x5a; 4096], 8192).unwrap();
        assert_eq!(read(&mut *queue, 8192, &[4096], 0), [0x5a; 4096]);
    }
}

#[test]
fn it_is_locked_and_known_by_how_it_was_asked_for() {
    let [directory, _] = directories();
    let path = image(directory.path(), 1 << 20);
    let first = adopt(open(&path, true), &named()).unwrap();
    let second = adopt(open(&path, true), &named()).unwrap_err();
    assert_eq!(second.kind, OpenErrorKind::InUse { writing: true });
    assert!(
        second.to_string().starts_with("disk image fd:7: "),
        "{second}"
    );
    let by_path = RawDisk::open(&RawOptions::new(&path)).unwrap_err();
    assert_eq!(by_path.kind, OpenErrorKind::InUse { writing: true });
    drop(first);
    adopt(open(&path, true), &named()).unwrap();
}

#[test]
fn the_flags_it_came_with_do_not_matter() {
    let [directory, _] = directories();
    let path = image(directory.path(), 1 << 20);
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .append(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    let buffered = RawOptions {
        direct: Direct::Off,
        ..named()
    };
    let disk = adopt(file, &buffered).unwrap();
    assert!(!disk.is_direct());
    let flags = rustix::fs::fcntl_getfl(&disk.image.file).unwrap();
    let unwanted = rustix::fs::OFlags::APPEND | rustix::fs::OFlags::DIRECT;
    assert!(!flags.intersects(unwanted), "{flags:?}");
}

#[test]
fn what_is_not_open_for_what_is_wanted() {
    let [directory, _] = directories();
    let path = image(directory.path(), 1 << 20);
    let kind = |file, options: &RawOptions| adopt(file, options).unwrap_err().kind;
    let read_only = RawOptions {
        read_only: true,
        ..named()
    };
    let write_only = || OpenOptions::new().write(true).open(&path).unwrap();
    let by_path = || {
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(libc::O_PATH);
        options.open(&path).unwrap()
    };
    let access = |writing| OpenErrorKind::Access { writing };
    assert_eq!(kind(open(&path, false), &named()), access(true));
    assert_eq!(kind(write_only(), &named()), access(true));
    assert_eq!(kind(write_only(), &read_only), access(false));
    assert_eq!(kind(by_path(), &read_only), access(false));
    adopt(open(&path, false), &read_only).unwrap();
    adopt(open(&path, true), &read_only).unwrap();
    let null = open(Path::new("/dev/null"), true);
    assert_eq!(kind(null, &named()), OpenErrorKind::WrongKind);
    let (pipe, _writer) = std::io::pipe().unwrap();
    let pipe = File::from(OwnedFd::from(pipe));
    assert_eq!(kind(pipe, &read_only), OpenErrorKind::WrongKind);
}
