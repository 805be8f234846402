//! Against qemu-img, which makes the images and looks at what became of them.
#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers of these tests are small"
)]

mod chains;
mod hostile;
mod mixes;
mod queues;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;

use super::problem::{Feature, Qcow2Problem};
use super::{Backing, BackingFormat, Qcow2Disk, Qcow2Options};
use crate::testing::{read, run};
use crate::{Buffer, Direct, Disk, DiskQueue, IoError, OpenError, OpenErrorKind, Operation};

/// Runs qemu-img, whatever comes of it.
fn try_qemu_img<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new("qemu-img");
    command.args(arguments);
    let start = Instant::now();
    loop {
        let output = command.output();
        let output = output
            .unwrap_or_else(|error| panic!("qemu-img cannot be run, install qemu-utils: {error}"));
        // What another test is starting has our files, and with them the locks, until it has become another program.
        let locked = String::from_utf8_lossy(&output.stderr).contains(" lock");
        if !locked || start.elapsed() > Duration::from_secs(2) {
            return output;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs qemu-img.
fn qemu_img<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) {
    let output = try_qemu_img(arguments);
    assert!(output.status.success(), "{output:?}");
}

/// Makes an image with these options.
fn create(path: &Path, options: &str, size: u64) {
    let size = size.to_string();
    let mut arguments = vec![
        "create".as_ref(),
        "-q".as_ref(),
        "-f".as_ref(),
        "qcow2".as_ref(),
    ];
    if !options.is_empty() {
        arguments.extend([OsStr::new("-o"), options.as_ref()]);
    }
    arguments.extend([path.as_os_str(), size.as_ref()]);
    qemu_img(arguments);
}

/// The disk as qemu sees it.
fn seen_by_qemu(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("seen");
    let format = ["convert", "-f", "qcow2", "-O", "raw"].map(OsStr::new);
    qemu_img(
        format
            .into_iter()
            .chain([path.as_os_str(), raw.as_os_str()]),
    );
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

/// That qemu finds neither errors nor lost clusters.
fn assert_sound(path: &Path) {
    let check = ["check", "-f", "qcow2"].map(OsStr::new);
    let output = try_qemu_img(check.into_iter().chain([path.as_os_str()]));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

fn open(options: &Qcow2Options) -> Qcow2Disk {
    Qcow2Disk::open(options).unwrap_or_else(|error| panic!("{error} ({:?})", error.source))
}

fn read_only(path: &Path) -> Qcow2Options {
    Qcow2Options {
        read_only: true,
        ..Qcow2Options::new(path)
    }
}

/// Why an image is refused.
fn refused(options: &Qcow2Options) -> OpenError {
    Qcow2Disk::open(options).expect_err("it was opened")
}

/// What is wrong with an image.
fn problem(options: &Qcow2Options) -> Qcow2Problem {
    match refused(options).kind {
        OpenErrorKind::Qcow2(problem) => problem,
        kind => panic!("{kind:?}"),
    }
}

fn write(queue: &mut dyn DiskQueue, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
    let buffer = Buffer::from(bytes.to_vec());
    run(queue, Operation::Write { offset, buffer })
}

/// Bytes in which no two blocks nearby are the same.
fn pattern(seed: u8, length: u64) -> Vec<u8> {
    let byte = |at: u64| seed.wrapping_add((at / 512) as u8).wrapping_mul(31) ^ (at % 251) as u8;
    (0..length).map(byte).collect()
}

/// All that a disk has.
fn contents(disk: &dyn Disk) -> Vec<u8> {
    let mut queue = disk.open_queue(4).unwrap();
    let length = usize::try_from(disk.size()).unwrap();
    read(&mut *queue, 0, &[length], 0)
}
