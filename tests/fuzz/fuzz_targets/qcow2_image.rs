//! A qcow2 image that starts out sound and then has what the input says in its header, tables and data: it is refused, or it is read and
//! written without harm to the process.
//!
//! Each request is answered. An image that was opened to be written and is only used by us can be opened again: what we do to a sound
//! image leaves it sound.
#![no_main]

use std::os::unix::fs::FileExt;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use paddock_fuzz::Input;
use paddock_storage::qcow2::header::Header;
use paddock_storage::{
    Buffer, Direct, Disk, DiskQueue, Operation, Qcow2Disk, Qcow2Options, Request,
};
use vmm_sys_util::tempfile::TempFile;

const CLUSTER: usize = 512;
/// Clusters in the file: header, table of reference counts, a block of these, L1, L2, data.
const CLUSTERS: usize = 16;
const REFTABLE: usize = CLUSTER;
const REFBLOCK: usize = 2 * CLUSTER;
const L1: usize = 3 * CLUSTER;
const L2: usize = 4 * CLUSTER;
const DATA: usize = 5 * CLUSTER;
/// Bytes of the disk: an L2 table has 64 clusters.
const SIZE: u64 = 8 * 64 * CLUSTER as u64;
const COPIED: u64 = 1 << 63;

/// A sound image of version 3 with some data.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; CLUSTERS * CLUSTER];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &0x5146_49fb_u32.to_be_bytes());
    for (at, value) in [(4, 3_u32), (20, 9), (36, 8), (56, 1), (96, 4), (100, 104)] {
        put(at, &value.to_be_bytes());
    }
    for (at, value) in [(24, SIZE), (40, L1 as u64), (48, REFTABLE as u64)] {
        put(at, &value.to_be_bytes());
    }
    put(REFTABLE, &(REFBLOCK as u64).to_be_bytes());
    put(L1, &(COPIED | L2 as u64).to_be_bytes());
    for cluster in 0..CLUSTERS {
        put(REFBLOCK + cluster * 2, &1_u16.to_be_bytes());
        if let Some(index) = cluster.checked_sub(DATA / CLUSTER) {
            let entry = COPIED | (cluster * CLUSTER) as u64;
            put(L2 + index * 8, &entry.to_be_bytes());
        }
    }
    bytes
}

/// Changes what the input says.
fn change(bytes: &mut [u8], input: &mut Input) {
    for _ in 0..input.byte() % 8 {
        let place = [0, 24, 96, REFTABLE, REFBLOCK, L1, L2, DATA];
        let at = place[usize::from(input.byte() % 8)] + usize::from(input.byte() % 64) * 8;
        // Mostly an entry of a table; else anything.
        let flags = u64::from(input.byte());
        let value = match flags & 3 {
            0 => u64::from_le_bytes(input.bytes()),
            _ => flags >> 6 << 62 | u64::from(input.byte() % 32) * 512 | flags >> 2 & 3,
        };
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }
}

fn request(input: &mut Input, size: u64) -> Operation {
    // Some are beyond the end, some where no block begins.
    let offset = u64::from(input.word()) * 64 % (size + 4096).max(1) & !(input.byte() as u64 & 1);
    let length = u64::from(input.byte()) * 512;
    let buffer = Buffer::zeroed(length as usize);
    match input.byte() % 6 {
        0 => Operation::Read { offset, buffer },
        1 | 2 => Operation::Write { offset, buffer },
        3 => Operation::Discard { offset, length },
        4 => Operation::WriteZeroes {
            offset,
            length,
            may_unmap: length % 1024 == 0,
        },
        _ => Operation::Flush,
    }
}

fn use_it(queue: &mut dyn DiskQueue, input: &mut Input, size: u64) {
    let mut tag = 0;
    while !input.is_empty() && tag < 64 {
        let operation = request(input, size);
        queue.submit(Request { tag, operation });
        tag += 1;
    }
    let mut done = Vec::new();
    let drained = queue.drain(Duration::from_secs(5), &mut done);
    drained.expect("each request is answered");
    assert_eq!(done.len() as u64, tag);
}

fuzz_target!(|data: &[u8]| {
    let _ = Header::parse(data, data.len() as u64);
    let mut input = Input::new(data);
    let mut bytes = image();
    change(&mut bytes, &mut input);
    let file = TempFile::new_with_prefix("/dev/shm/paddock-fuzz-").expect("a file");
    file.as_file().write_all_at(&bytes, 0).expect("written");
    let options = Qcow2Options {
        read_only: input.byte() % 4 == 0,
        direct: Direct::Off,
        ..Qcow2Options::new(file.as_path())
    };
    let Ok(disk) = Qcow2Disk::open(&options) else {
        return;
    };
    let size = disk.size();
    use_it(
        &mut *disk.open_queue(64).expect("a queue"),
        &mut input,
        size,
    );
    if !options.read_only && input.byte() % 2 == 0 && size < 1 << 30 {
        let _ = disk.resize(Some(size + 65_536));
    }
    drop(disk);
    Qcow2Disk::open(&options).expect("as sound as it was");
});
