//! Filling a new volume with what an image has. It is all zeros, so zeros are not written; holes are not even read.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use paddock_storage::longhorn::{Mode, Volume, VolumeOptions};
use paddock_storage::{Buffer, Completion, Disk, DiskQueue, Operation, Request, raw};

use super::open::{Stage, close, open};
use super::{Session, VolumeFailure};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// Bytes of zeros that are not worth to be written.
const BLOCK: usize = 4096;

/// Writes under way at once.
const DEPTH: u16 = 16;

/// How long a write may take: replicas are given up earlier.
const DEADLINE: Duration = Duration::from_secs(120);

/// How images of other formats begin.
const FORMATS: [(&[u8], &str); 3] = [
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "vmdk"),
    (b"vhdxfile", "vhdx"),
];

/// A raw image, or a block device. Nobody writes it meanwhile.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Image {
    /// Opens it.
    pub fn open(path: &Path) -> Result<Self, VolumeFailure> {
        let wrong = |problem: String| VolumeFailure::Image {
            path: path.to_owned(),
            problem,
        };
        let fail = |error: io::Error| wrong(error.to_string());
        let mut file = raw::open_to_read(path).map_err(VolumeFailure::Open)?;
        let size = file.seek(SeekFrom::End(0)).map_err(fail)?;
        if size == 0 {
            return Err(wrong("it is empty".to_owned()));
        }
        let mut start = [0; 8];
        let length = start.len().min(usize::try_from(size).unwrap_or(usize::MAX));
        file.read_exact_at(&mut start[..length], 0).map_err(fail)?;
        if let Some((_, format)) = FORMATS.iter().find(|(magic, _)| start.starts_with(magic)) {
            return Err(wrong(format!(
                "it is a {format} image; make a raw one of it first, with: qemu-img convert -O raw IMAGE disk.raw"
            )));
        }
        let path = path.to_owned();
        Ok(Self { path, file, size })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn wrong(&self, offset: u64, error: &io::Error) -> VolumeFailure {
        VolumeFailure::Image {
            path: self.path.clone(),
            problem: format!("reading at {offset}: {error}"),
        }
    }

    /// Where there is something from an offset on, a multiple of [`BLOCK`]; `None` if nothing is. Where holes are not known, everything is something.
    fn next_data(&self, offset: u64) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => Some(data - data % BLOCK as u64),
            Err(rustix::io::Errno::NXIO) => None,
            Err(_) => Some(offset),
        }
    }

    /// What is at an offset, with zeros up to a multiple of [`BLOCK`] behind its end.
    fn read(&self, offset: u64) -> Result<Vec<u8>, VolumeFailure> {
        let left = usize::try_from(self.size - offset).unwrap_or(usize::MAX);
        let length = left.min(PIECE);
        let mut piece = vec![0; length.next_multiple_of(BLOCK)];
        self.file
            .read_exact_at(&mut piece[..length], offset)
            .map_err(|error| self.wrong(offset, &error))?;
        Ok(piece)
    }
}

/// The blocks that are not zero, as few ranges as there can be. The piece is a multiple of [`BLOCK`] long.
fn written(piece: &[u8]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (number, block) in piece.chunks(BLOCK).enumerate() {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let start = number * BLOCK;
        let end = start + block.len();
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// Writes to a volume, many at once.
struct Writer {
    volume: String,
    queue: Box<dyn DiskQueue>,
    done: Vec<Completion>,
    tag: u64,
}

impl Writer {
    fn new(volume: &Volume) -> Result<Self, VolumeFailure> {
        Ok(Self {
            volume: volume.name().to_owned(),
            queue: volume.open_queue(DEPTH).map_err(VolumeFailure::Host)?,
            done: Vec::new(),
            tag: 0,
        })
    }

    fn submit(&mut self, operation: Operation) {
        self.tag += 1;
        let tag = self.tag;
        self.queue.submit(Request { tag, operation });
    }

    /// Waits until no more than so many are under way.
    fn wait(&mut self, most: usize) -> Result<(), VolumeFailure> {
        let end = Instant::now() + DEADLINE;
        self.queue.kick();
        loop {
            self.queue.reap(&mut self.done);
            let failed = self.done.drain(..).find_map(|done| done.result.err());
            if let Some(error) = failed {
                return Err(self.failed(&error.to_string()));
            }
            if self.queue.in_flight() <= most {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(self.failed("it takes too long"));
            }
            self.queue
                .await_completion(end)
                .map_err(VolumeFailure::Host)?;
        }
    }

    fn failed(&self, problem: &str) -> VolumeFailure {
        VolumeFailure::Found(format!(
            "volume {}: it was made and is not filled: {problem}; empty the directories of its replicas, and begin again",
            self.volume
        ))
    }
}

/// Fills a volume that is all zeros.
pub fn fill(session: &Session, options: VolumeOptions, image: &Image) -> Result<(), VolumeFailure> {
    let volume = open(session, options)?;
    let filled = write(session, &volume, image);
    let closed = close(&volume);
    filled?;
    closed
}

fn write(session: &Session, volume: &Volume, image: &Image) -> Result<(), VolumeFailure> {
    let mut writer = Writer::new(volume)?;
    let mut stage = Stage::start("filling the volume, in MiB");
    let mut next = 0;
    while let Some(offset) = image.next_data(next) {
        if session.interrupt.is_wanted() {
            return Err(writer.failed("interrupted"));
        }
        let piece = image.read(offset)?;
        for range in written(&piece) {
            writer.wait(usize::from(DEPTH) - 1)?;
            let offset = offset + range.start as u64;
            let buffer = Buffer::from(piece[range].to_vec());
            writer.submit(Operation::Write { offset, buffer });
        }
        next = offset + piece.len() as u64;
        stage.tell(next.min(image.size) >> 20, image.size >> 20);
    }
    writer.submit(Operation::Flush);
    writer.wait(0)?;
    let replicas = volume.replicas();
    match replicas.iter().find(|r| r.mode != Mode::ReadWrite) {
        None => Ok(()),
        Some(_) => Err(writer.failed("a replica failed")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use paddock_storage::{RawDisk, RawOptions};
    use proptest::prelude::*;

    use super::*;

    fn image(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        (directory, path)
    }

    #[test]
    fn images_of_other_formats_are_refused() {
        for start in [&b"QFI\xfb...."[..], b"KDMV", b"vhdxfile"] {
            let (_directory, path) = image(start);
            let error = Image::open(&path).unwrap_err().to_string();
            assert!(error.contains("qemu-img convert"), "{error}");
        }
        let (directory, path) = image(b"");
        let empty = Image::open(&path).unwrap_err().to_string();
        assert!(empty.ends_with("it is empty"), "{empty}");
        assert!(Image::open(directory.path()).is_err());
        assert!(Image::open(&directory.path().join("none")).is_err());
        // One that nobody writes to would be waited for.
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        let told = Image::open(&pipe).unwrap_err().to_string();
        assert!(told.contains("neither a regular file nor"), "{told}");
        let (_directory, path) = image(b"QFI");
        assert_eq!(Image::open(&path).unwrap().size(), 3);
    }

    #[test]
    fn an_image_that_is_written_is_refused() {
        let (_directory, path) = image(&[1; 4096]);
        let disk = RawDisk::open(&RawOptions::new(&path)).unwrap();
        let told = Image::open(&path).unwrap_err().to_string();
        assert!(
            told.contains("is being written by another process"),
            "{told}"
        );
        drop(disk);
        let image = Image::open(&path).unwrap();
        assert!(RawDisk::open(&RawOptions::new(&path)).is_err());
        drop(image);
    }

    #[test]
    fn holes_are_skipped_and_the_end_is_filled_up() {
        let (_directory, path) = image(b"");
        let file = File::options().write(true).open(&path).unwrap();
        let size = (8 << 20) + 5;
        file.set_len(size).unwrap();
        file.write_all_at(b"x", size - 1).unwrap();
        let image = Image::open(&path).unwrap();
        let data = image.next_data(0).unwrap();
        assert_eq!(data % BLOCK as u64, 0);
        assert!(data <= 8 << 20);
        let last = image.read(8 << 20).unwrap();
        assert_eq!(last.len(), BLOCK);
        assert_eq!((last[4], last[5]), (b'x', 0));
        assert_eq!(image.next_data(size), None);
        assert_eq!(image.next_data((8 << 20) + BLOCK as u64), None);
    }

    proptest! {
        #[test]
        fn what_is_not_written_is_zero(
            blocks in proptest::collection::vec(proptest::option::of((0..BLOCK, 1_u8..)), 0..20),
        ) {
            let mut piece = vec![0; blocks.len() * BLOCK];
            for (number, block) in blocks.iter().enumerate() {
                if let Some((place, byte)) = block {
                    piece[number * BLOCK + place] = *byte;
                }
            }
            let ranges = written(&piece);
            let mut copy = vec![0; piece.len()];
            let mut end = None;
            for range in ranges {
                prop_assert!(range.start < range.end && range.end <= piece.len());
                prop_assert!(end < Some(range.start), "they meet, or are not in order");
                end = Some(range.end);
                for block in piece[range.clone()].chunks(BLOCK) {
                    prop_assert!(block.iter().any(|byte| *byte != 0));
                }
                copy[range.clone()].copy_from_slice(&piece[range]);
            }
            prop_assert_eq!(copy, piece);
        }
    }
}
