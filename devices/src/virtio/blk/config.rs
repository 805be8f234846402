//! What the driver is told of the disk: feature bits and configuration space (VIRTIO 1.2 §5.2.3, §5.2.4).
//!
//! Read on vCPU threads. Nothing in it is writable.

use paddock_storage::Capabilities;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::bus::read_bytes;

/// The unit of the protocol's sectors, whatever the disk's block size.
pub(super) const SECTOR: u64 = 512;

/// The longest discard, in sectors (1 GiB): the host works on it as one.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 21;

/// The longest write-zeroes, in sectors (64 MiB): it may come down to writing them.
pub(super) const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 17;

/// Bytes of the configuration up to and with `write_zeroes_may_unmap` and its padding.
const CONFIG_SIZE: usize = 60;

/// The feature bits for a disk that can do this.
pub(super) fn features(disk: &Capabilities, queues: u16) -> u64 {
    let bit = |number: u32, on: bool| u64::from(on) << number;
    bit(VIRTIO_RING_F_INDIRECT_DESC, true)
        | bit(VIRTIO_RING_F_EVENT_IDX, true)
        | bit(VIRTIO_BLK_F_SEG_MAX, true)
        | bit(VIRTIO_BLK_F_BLK_SIZE, true)
        | bit(VIRTIO_BLK_F_TOPOLOGY, true)
        | bit(VIRTIO_BLK_F_MQ, queues > 1)
        | bit(VIRTIO_BLK_F_RO, disk.read_only)
        | bit(VIRTIO_BLK_F_FLUSH, disk.flush)
        | bit(VIRTIO_BLK_F_DISCARD, disk.discard && !disk.read_only)
        | bit(
            VIRTIO_BLK_F_WRITE_ZEROES,
            disk.write_zeroes && !disk.read_only,
        )
}

/// Copies the configuration from `offset` on to `data`; beyond its end are zeros.
pub(super) fn read(
    disk: &Capabilities,
    queues: u16,
    queue_size: u16,
    offset: u64,
    data: &mut [u8],
) {
    read_bytes(&layout(disk, queues, queue_size), offset, data);
}

/// `struct virtio_blk_config`.
fn layout(disk: &Capabilities, queues: u16, queue_size: u16) -> [u8; CONFIG_SIZE] {
    let logical = disk.logical_block_size.max(512);
    let physical = disk.physical_block_size.max(logical);
    let exponent = physical.ilog2() - logical.ilog2();
    let alignment = disk.discard_granularity.max(logical) / 512;
    let mut bytes = [0; CONFIG_SIZE];
    let mut put =
        |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
    put(0, &(disk.size / SECTOR).to_le_bytes()); // capacity
    put(12, &seg_max(queue_size).to_le_bytes());
    put(20, &logical.to_le_bytes()); // blk_size
    put(24, &[u8::try_from(exponent).unwrap_or(0)]); // physical_block_exp
    put(
        26,
        &u16::try_from(physical / logical).unwrap_or(1).to_le_bytes(),
    ); // min_io_size
    put(34, &queues.to_le_bytes()); // num_queues
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &1_u32.to_le_bytes()); // max_discard_seg
    put(44, &alignment.to_le_bytes()); // discard_sector_alignment
    put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
    put(52, &1_u32.to_le_bytes()); // max_write_zeroes_seg
    put(56, &[u8::from(disk.discard)]); // write_zeroes_may_unmap
    bytes
}

/// Data segments of one request: those of a full queue without the header's and the status's.
fn seg_max(queue_size: u16) -> u32 {
    u32::from(queue_size.saturating_sub(2).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Capabilities {
        Capabilities {
            size: 3 << 30,
            logical_block_size: 512,
            physical_block_size: 4096,
            read_only: false,
            discard: true,
            discard_granularity: 65536,
            write_zeroes: true,
            flush: true,
        }
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let mut bytes = [0; 60];
        read(&disk(), 4, 256, 0, &mut bytes);
        assert_eq!(bytes[0..8], (6_u64 << 20).to_le_bytes());
        assert_eq!(bytes[12..16], 254_u32.to_le_bytes());
        assert_eq!(bytes[20..24], 512_u32.to_le_bytes());
        assert_eq!(bytes[24..28], [3, 0, 8, 0]);
        assert_eq!(bytes[34..36], [4, 0]);
        assert_eq!(bytes[44..48], 128_u32.to_le_bytes());
        assert_eq!(bytes[56], 1);
    }

    #[test]
    fn reads_of_any_offset_and_width_stay_inside() {
        let mut whole = [0; 128];
        read(&disk(), 1, 2, 0, &mut whole);
        assert_eq!(whole[60..], [0; 68]);
        for offset in [0, 1, 33, 59, 60, 61, 4096, u64::MAX] {
            for width in 0..9 {
                let mut data = vec![0xff; width];
                read(&disk(), 1, 2, offset, &mut data);
                let expected = (0..width as u64).map(|i| {
                    let at = usize::try_from(offset.saturating_add(i)).unwrap();
                    whole.get(at).copied().unwrap_or(0)
                });
                assert!(data.iter().copied().eq(expected), "{offset} {width}");
            }
        }
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_writes() {
        let mut disk = disk();
        disk.read_only = true;
        let bits = features(&disk, 1);
        assert_ne!(bits & 1 << VIRTIO_BLK_F_RO, 0);
        let writing = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        assert_eq!(bits & writing, 0);
        assert_eq!(bits & 1 << VIRTIO_BLK_F_MQ, 0);
    }
}
