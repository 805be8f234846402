//! Whether the tables of an image contradict each other, asked before anything is written to it.
//!
//! Who writes an image trusts its reference counts: a cluster that is in use and counted as free is given to somebody else, and what was in
//! it is lost. They are wrong in a hostile image, and may be in one whose host lost power. So each cluster that the disk uses is looked up:
//! it must be counted, and used once. Clusters that are counted and not used are only lost space; those of snapshots and bitmaps are
//! not looked at.
//!
//! Reads the L1, L2 and reference count tables once, before the guest runs: for each TiB of data in clusters of 64 KiB that is about 160 MiB.

use std::fs::File;
use std::io;

use super::header::Header;
use super::problem::Qcow2Problem;
use crate::raw::open::{read_fully, size_of};

/// The most clusters that a file may have: 16 TiB in clusters of 64 KiB. Each takes 2 bytes of memory during the check.
const MAX_CLUSTERS: u64 = 1 << 28;
/// The most bytes of L2 tables: as many as that many clusters can have entries for.
const MAX_L2_BYTES: u64 = MAX_CLUSTERS * 8;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const RESERVED_L1: u64 = 0x7f00_0000_0000_01ff;
const RESERVED_L2: u64 = 0x3f00_0000_0000_01fe;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The low bits of an entry of the reference count table.
const RESERVED_REFTABLE: u64 = 0x1ff;

/// Why an image cannot be trusted.
#[derive(Debug)]
pub(super) enum CheckError {
    /// It could not be read.
    Io(io::Error),
    /// It is not as it should be.
    Problem(Qcow2Problem),
}

impl From<io::Error> for CheckError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn damaged<T>(what: String) -> Result<T, CheckError> {
    Err(CheckError::Problem(Qcow2Problem::Damaged(what)))
}

/// Checks an image that is to be written. The file is locked, and its header is sound.
pub(super) fn check(file: &File, header: &Header) -> Result<(), CheckError> {
    let clusters = size_of(file)?.div_ceil(header.cluster_size());
    let too_large = || CheckError::Problem(Qcow2Problem::TooLarge);
    if clusters > MAX_CLUSTERS {
        return Err(too_large());
    }
    let mut used = Used {
        header,
        counts: vec![0; usize::try_from(clusters).map_err(|_| too_large())?],
    };
    used.table(0, 1, "the header")?;
    let entries = u64::from(header.l1_entries);
    used.table(header.l1_offset, entries * 8, "the L1 table")?;
    let reftable_bytes = u64::from(header.reftable_clusters) << header.cluster_bits;
    let name = "the table of reference counts";
    used.table(header.reftable_offset, reftable_bytes, name)?;
    let reftable = read_table(file, header.reftable_offset, reftable_bytes)?;
    for (index, &entry) in reftable.iter().enumerate() {
        if entry & RESERVED_REFTABLE != 0 {
            return damaged(format!(
                "block {index} of reference counts is at {entry:#x}"
            ));
        }
        if entry != 0 {
            used.take(entry, ALONE, "a block of reference counts")?;
        }
    }
    let l1 = read_table(file, header.l1_offset, entries * 8)?;
    let tables = l1.iter().filter(|entry| *entry & OFFSET != 0).count() as u64;
    if tables << header.cluster_bits > MAX_L2_BYTES {
        return Err(too_large());
    }
    for &entry in &l1 {
        if entry & RESERVED_L1 != 0 {
            return damaged(format!("an L1 entry is {entry:#x}"));
        }
        let offset = entry & OFFSET;
        if offset == 0 {
            continue;
        }
        used.take(offset, state(entry), "an L2 table")?;
        let l2 = read_table(file, offset, header.cluster_size())?;
        used.l2_table(&l2)?;
    }
    used.counted(file, &reftable)
}

/// How often each cluster of the file is used.
struct Used<'a> {
    header: &'a Header,
    counts: Vec<u16>,
}

/// A cluster that nothing else has.
const ALONE: u16 = 1 << 15;
/// A cluster that a snapshot has, too, as the image says.
const SHARED: u16 = ALONE | 1;

/// What an entry of a table says of its cluster.
fn state(entry: u64) -> u16 {
    if entry & COPIED == 0 { SHARED } else { ALONE }
}

impl Used<'_> {
    /// Takes what must be nobody else's.
    fn table(&mut self, offset: u64, bytes: u64, what: &str) -> Result<(), CheckError> {
        let clusters = bytes.div_ceil(self.header.cluster_size());
        for cluster in 0..clusters {
            // Within the end, by the header's checks.
            self.take(offset + (cluster << self.header.cluster_bits), ALONE, what)?;
        }
        Ok(())
    }

    fn take(&mut self, offset: u64, state: u16, what: &str) -> Result<(), CheckError> {
        let count = self.at(offset, what)?;
        if *count != 0 {
            return damaged(format!(
                "{what} is at byte {offset}, which is used otherwise"
            ));
        }
        *count = state;
        Ok(())
    }

    fn at(&mut self, offset: u64, what: &str) -> Result<&mut u16, CheckError> {
        if !offset.is_multiple_of(self.header.cluster_size()) {
            return damaged(format!(
                "{what} is at byte {offset}, where no cluster begins"
            ));
        }
        let index = usize::try_from(offset >> self.header.cluster_bits);
        let count = index.ok().and_then(|index| self.counts.get_mut(index));
        match count {
            Some(count) => Ok(count),
            None => damaged(format!("{what} is at byte {offset}, beyond the end")),
        }
    }

    fn l2_table(&mut self, table: &[u64]) -> Result<(), CheckError> {
        for &entry in table {
            if entry & COMPRESSED != 0 {
                self.compressed(entry)?;
                continue;
            }
            if entry & RESERVED_L2 != 0 || (self.header.version == 2 && entry & 1 != 0) {
                return damaged(format!("an L2 entry is {entry:#x}"));
            }
            let offset = entry & OFFSET;
            if offset == 0 {
                if entry & COPIED != 0 {
                    return damaged(format!("an L2 entry is {entry:#x}"));
                }
                continue;
            }
            // Data is as much its own as a table: a cluster that is shared is shared with a snapshot, which is not looked at.
            self.take(offset, state(entry), "data")?;
        }
        Ok(())
    }

    /// Compressed clusters may share a cluster of the file with each other.
    fn compressed(&mut self, entry: u64) -> Result<(), CheckError> {
        if entry & COPIED != 0 {
            return damaged(format!("an L2 entry is {entry:#x}"));
        }
        let bits = self.header.cluster_bits;
        let offset_bits = 62 - (bits - 8);
        let offset = entry & ((1 << offset_bits) - 1) & 0x00ff_ffff_ffff_ffff;
        let sectors = ((entry & !COMPRESSED) >> offset_bits) + 1;
        let last = (offset & !511) + sectors * 512 - 1;
        for cluster in offset >> bits..=last >> bits {
            let count = self.at(cluster << bits, "compressed data")?;
            if *count >= ALONE - 1 {
                return damaged(format!(
                    "compressed data is at byte {offset}, which is used otherwise"
                ));
            }
            *count += 1;
        }
        Ok(())
    }

    /// Compares with the reference counts.
    fn counted(&self, file: &File, reftable: &[u64]) -> Result<(), CheckError> {
        let per_block = usize::try_from(self.header.refblock_entries()).unwrap_or(usize::MAX);
        for (block, counts) in self.counts.chunks(per_block).enumerate() {
            if counts.iter().all(|count| *count == 0) {
                continue;
            }
            let Some(&offset) = reftable.get(block).filter(|offset| **offset != 0) else {
                return damaged(format!("block {block} of reference counts is missing"));
            };
            let mut bytes = vec![0; usize::try_from(self.header.cluster_size()).unwrap_or(0)];
            read_fully(file, &mut bytes, offset)?;
            for (index, &used) in counts.iter().enumerate().filter(|(_, used)| **used != 0) {
                let cluster = (block * per_block + index) as u64;
                let counted = refcount(&bytes, index, self.header.refcount_order);
                let enough = match used {
                    SHARED => counted > 1,
                    ALONE => counted == 1,
                    used => counted >= u64::from(used),
                };
                if !enough {
                    let at = cluster << self.header.cluster_bits;
                    return damaged(format!(
                        "the cluster at byte {at} is counted {counted} times, which is wrong"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The reference count of a cluster in a block of them, big-endian; those of less than a byte begin at its lowest bit.
fn refcount(block: &[u8], index: usize, order: u32) -> u64 {
    if order < 3 {
        let bit = index << order;
        let mask = (1_u16 << (1 << order)) - 1;
        let byte = block.get(bit / 8).copied().unwrap_or(0);
        return u64::from(u16::from(byte) >> (bit % 8) & mask);
    }
    let width = 1 << (order - 3);
    let bytes = block.get(index * width..(index + 1) * width);
    let bytes = bytes.unwrap_or_default();
    bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// Big-endian numbers. A table's length was checked against its limit.
fn read_table(file: &File, offset: u64, bytes: u64) -> io::Result<Vec<u64>> {
    let mut raw = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
    read_fully(file, &mut raw, offset)?;
    let numbers = raw.chunks_exact(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    Ok(numbers.map(number).collect())
}
