//! The header of a qcow2 image, read and judged before anything else is done with the image.
//!
//! The image is hostile. Whatever number in it would have something allocated, read or computed is checked here, by the limits that
//! qemu has, too; what comes after may rely on it. Pure: bytes in, a [`Header`] or a [`Qcow2Problem`] out.
//!
//! The format's specification is docs/interop/qcow2.rst in qemu's sources; the names here are its.

use super::problem::{Feature, Qcow2Problem};

/// The most that is looked at: a header fits in the first cluster, and no cluster is larger.
pub const MAX_HEADER: usize = 2 << 20;

/// Bytes of a block that a guest can be given; the size of a disk is a multiple of it.
const SECTOR: u64 = 512;

const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a version 2 header, and the fewest of a version 3 one.
const V2_LENGTH: u32 = 72;
const V3_LENGTH: u32 = 104;
/// Clusters of 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// 64-bit reference counts.
const MAX_REFCOUNT_ORDER: u32 = 6;
/// The order of version 2: 16 bits.
const V2_REFCOUNT_ORDER: u32 = 4;
/// Bytes of the L1 table.
const MAX_L1: u64 = 32 << 20;
/// Bytes of the reference count table.
const MAX_REFTABLE: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65536;
/// Bytes of a backing file's name.
const MAX_NAME: usize = 1023;
/// Bytes of an entry of the feature name table.
const FEATURE_NAME: usize = 48;

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;

/// What an image says of itself. Every number is within its limits, every table within the file and aligned to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Two to this power are a cluster's bytes: 9 to 21.
    pub cluster_bits: u32,
    /// Bytes of the disk, a multiple of 512.
    pub size: u64,
    /// Where the L1 table is, in bytes.
    pub l1_offset: u64,
    /// Its entries: enough for the size.
    pub l1_entries: u32,
    /// Where the table of reference counts is, in bytes.
    pub reftable_offset: u64,
    /// Its clusters.
    pub reftable_clusters: u32,
    /// Two to this power are the bits of a reference count: 0 to 6.
    pub refcount_order: u32,
    /// The image that this one is an overlay of.
    pub backing: Option<BackingName>,
}

/// What an image says of its backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingName {
    /// The name, of up to 1023 bytes: a path from the image's directory on, or anything that qemu would take.
    pub name: String,
    /// The format, where it is said.
    pub format: Option<String>,
}

impl Header {
    /// Judges the first bytes of an image, [`MAX_HEADER`] or all there are, whose file has so many bytes.
    ///
    /// # Errors
    /// When it is no image that can be used, whether it is damaged or has features that are not supported.
    pub fn parse(bytes: &[u8], file_size: u64) -> Result<Self, Qcow2Problem> {
        let fields = Fields(bytes);
        if fields.u32(0).ok() != Some(MAGIC) {
            return Err(Qcow2Problem::NotQcow2);
        }
        let version = fields.u32(4)?;
        if !(2..=3).contains(&version) {
            return Err(Qcow2Problem::Version(version));
        }
        let cluster_bits = fields.u32(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(damaged(format!("clusters of 2^{cluster_bits} bytes")));
        }
        let length = if version == 2 {
            V2_LENGTH
        } else {
            header_length(fields, cluster_bits)?
        };
        features(fields, version, length)?;
        if fields.u32(32)? != 0 {
            return Err(Qcow2Problem::Unsupported(Feature::Encryption));
        }
        // What is beyond the first cluster is none of the header's.
        let first = Fields(&bytes[..bytes.len().min(1 << cluster_bits)]);
        let format = extensions(first, version, length)?;
        let header = Self {
            version,
            cluster_bits,
            size: fields.u64(24)?,
            l1_offset: fields.u64(40)?,
            l1_entries: fields.u32(36)?,
            reftable_offset: fields.u64(48)?,
            reftable_clusters: fields.u32(56)?,
            refcount_order: if version == 2 {
                V2_REFCOUNT_ORDER
            } else {
                fields.u32(96)?
            },
            backing: backing(first, format)?,
        };
        header.check(file_size)?;
        header.check_snapshots(fields, file_size)?;
        Ok(header)
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table.
    #[must_use]
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() / 8
    }

    /// Clusters that a block of reference counts speaks of.
    #[must_use]
    pub fn refblock_entries(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    fn check(&self, file_size: u64) -> Result<(), Qcow2Problem> {
        if self.refcount_order > MAX_REFCOUNT_ORDER {
            let order = self.refcount_order;
            return Err(damaged(format!("reference counts of 2^{order} bits")));
        }
        let size = self.size;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(Qcow2Problem::Size(size));
        }
        let l1 = u64::from(self.l1_entries) * 8;
        self.check_table("the L1 table", self.l1_offset, l1, MAX_L1, file_size)?;
        // At the most 2^22 entries of 2^18 clusters of 2^21 bytes: no overflow.
        let covered = u64::from(self.l1_entries) * (self.l2_entries() << self.cluster_bits);
        if size > covered {
            let entries = self.l1_entries;
            return Err(damaged(format!(
                "an L1 table of {entries} entries, too few for {size} bytes"
            )));
        }
        let reftable = u64::from(self.reftable_clusters) << self.cluster_bits;
        if reftable == 0 {
            return Err(damaged("no table of reference counts"));
        }
        let name = "the table of reference counts";
        self.check_table(
            name,
            self.reftable_offset,
            reftable,
            MAX_REFTABLE,
            file_size,
        )
    }

    /// A table is neither absurd nor in the header, and not beyond the end.
    fn check_table(
        &self,
        name: &str,
        offset: u64,
        length: u64,
        limit: u64,
        file_size: u64,
    ) -> Result<(), Qcow2Problem> {
        if length > limit {
            return Err(damaged(format!(
                "{name} has {length} bytes; {limit} are the most"
            )));
        }
        let place = format!("{name} is at byte {offset}");
        if offset == 0 || !offset.is_multiple_of(self.cluster_size()) {
            return Err(damaged(format!("{place}, where no cluster begins")));
        }
        match offset.checked_add(length) {
            Some(end) if end <= file_size => Ok(()),
            _ => Err(damaged(format!("{place}, which is beyond the end"))),
        }
    }

    fn check_snapshots(&self, fields: Fields<'_>, file_size: u64) -> Result<(), Qcow2Problem> {
        let snapshots = fields.u32(60)?;
        if snapshots == 0 {
            return Ok(());
        }
        if snapshots > MAX_SNAPSHOTS {
            return Err(damaged(format!("{snapshots} snapshots")));
        }
        let name = "the table of snapshots";
        self.check_table(name, fields.u64(64)?, 0, 0, file_size)
    }
}

fn damaged(what: impl Into<String>) -> Qcow2Problem {
    Qcow2Problem::Damaged(what.into())
}

/// Bytes at places in the header.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(self, at: usize, length: usize) -> Result<&'a [u8], Qcow2Problem> {
        let end = at.checked_add(length);
        end.and_then(|end| self.0.get(at..end))
            .ok_or_else(|| damaged("the header ends too early"))
    }

    fn u32(self, at: usize) -> Result<u32, Qcow2Problem> {
        let bytes = self.bytes(at, 4)?;
        Ok(bytes.iter().fold(0, |n, byte| n << 8 | u32::from(*byte)))
    }

    fn u64(self, at: usize) -> Result<u64, Qcow2Problem> {
        let bytes = self.bytes(at, 8)?;
        Ok(bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }
}

fn header_length(fields: Fields<'_>, cluster_bits: u32) -> Result<u32, Qcow2Problem> {
    let length = fields.u32(100)?;
    if length < V3_LENGTH || length > 1 << cluster_bits || !length.is_multiple_of(8) {
        return Err(damaged(format!("a header of {length} bytes")));
    }
    Ok(length)
}

/// Features without which an image cannot be understood.
fn features(fields: Fields<'_>, version: u32, length: u32) -> Result<(), Qcow2Problem> {
    if version == 2 {
        return Ok(());
    }
    let features = fields.u64(72)?;
    let known = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
    let problems = [
        (CORRUPT, Qcow2Problem::Corrupt),
        (DIRTY, Qcow2Problem::Dirty),
        (
            EXTERNAL_DATA,
            Qcow2Problem::Unsupported(Feature::ExternalData),
        ),
        (
            COMPRESSION_TYPE,
            Qcow2Problem::Unsupported(Feature::Compression),
        ),
        (EXTENDED_L2, Qcow2Problem::Unsupported(Feature::ExtendedL2)),
        (
            !known,
            Qcow2Problem::Unsupported(Feature::Unknown(features & !known)),
        ),
    ];
    for (bits, problem) in problems {
        if features & bits != 0 {
            return Err(problem);
        }
    }
    // Without the feature, compressed clusters are zlib's.
    if length > V3_LENGTH && fields.bytes(104, 1)? != [0] {
        return Err(damaged("a type of compression that is not declared"));
    }
    Ok(())
}

/// Goes through the header's extensions, for the format of the backing file.
fn extensions(
    fields: Fields<'_>,
    version: u32,
    length: u32,
) -> Result<Option<String>, Qcow2Problem> {
    let mut format: Option<String> = None;
    let mut at = length as usize;
    // Old images of version 2 have the backing file's name where others have extensions.
    let end = match fields.u64(8)? {
        offset if version == 2 && offset != 0 => offset,
        _ => u64::MAX,
    };
    loop {
        if at as u64 >= end {
            return Ok(format);
        }
        let kind = fields.u32(at)?;
        if kind == END {
            return Ok(format);
        }
        let length = fields.u32(at + 4)? as usize;
        let data = fields.bytes(at + 8, length)?;
        match kind {
            BACKING_FORMAT => {
                let text = String::from_utf8(data.to_vec())
                    .map_err(|_| damaged("a backing format that is no text"))?;
                if format.replace(text).is_some() {
                    return Err(damaged("two backing formats"));
                }
            }
            FEATURE_NAMES if !length.is_multiple_of(FEATURE_NAME) => {
                return Err(damaged("an incomplete table of feature names"));
            }
            _ => {}
        }
        // Inside the first cluster, as the data is: no overflow.
        at += 8 + length.next_multiple_of(8);
    }
}

fn backing(
    fields: Fields<'_>,
    format: Option<String>,
) -> Result<Option<BackingName>, Qcow2Problem> {
    let offset = fields.u64(8)?;
    if offset == 0 {
        return Ok(None);
    }
    let length = fields.u32(16)? as usize;
    if length == 0 || length > MAX_NAME {
        return Err(damaged(format!("a backing file's name of {length} bytes")));
    }
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let name = fields.bytes(offset, length)?;
    let name = String::from_utf8(name.to_vec())
        .map_err(|_| damaged("a backing file's name that is no text"))?;
    Ok(Some(BackingName { name, format }))
}
