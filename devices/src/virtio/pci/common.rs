//! The common configuration structure (VIRTIO 1.2 §4.1.4.3), register by register.
//!
//! A register answers accesses of its own width; the 64-bit addresses also by halves (§4.1.3.1). Anything else reads as
//! zero and writes nothing.

use virtio_queue::QueueT;

use super::interrupt::{Interrupts, NO_VECTOR};
use super::transport::Transport;

/// The registers that only select what the others show.
#[derive(Debug, Default)]
pub struct Selectors {
    device_feature: u32,
    driver_feature: u32,
    queue: u16,
}

/// Reads `data.len()` bytes at `offset` of the structure.
pub fn read(
    selectors: &Selectors,
    transport: &mut Transport,
    interrupts: &Interrupts,
    offset: u64,
    data: &mut [u8],
) {
    data.fill(0);
    if let (0x14, [status]) = (offset, &mut *data) {
        *status = transport.status();
        return;
    }
    let queue = transport.queue(selectors.queue);
    let (value, width): (u64, usize) = match (offset, data.len()) {
        (0x00, 4) => (selectors.device_feature.into(), 4),
        (0x04, 4) => (half(transport.offered(), selectors.device_feature), 4),
        (0x08, 4) => (selectors.driver_feature.into(), 4),
        (0x0c, 4) => (half(transport.negotiated(), selectors.driver_feature), 4),
        (0x10, 2) => (interrupts.config_vector().into(), 2),
        (0x12, 2) => (transport.queue_count().into(), 2),
        (0x15, 1) => (interrupts.generation().into(), 1),
        (0x16, 2) => (selectors.queue.into(), 2),
        (0x18, 2) => (queue.map_or(0, |q| q.size().into()), 2),
        (0x1a, 2) => (
            queue
                .map_or(NO_VECTOR, |_| interrupts.queue_vector(selectors.queue))
                .into(),
            2,
        ),
        (0x1c, 2) => (transport.queue_enabled(selectors.queue).into(), 2),
        (0x1e, 2) => (queue.map_or(0, |_| selectors.queue.into()), 2),
        (0x20, 4 | 8) => (queue.map_or(0, QueueT::desc_table), data.len()),
        (0x24, 4) => (queue.map_or(0, |q| q.desc_table() >> 32), 4),
        (0x28, 4 | 8) => (queue.map_or(0, QueueT::avail_ring), data.len()),
        (0x2c, 4) => (queue.map_or(0, |q| q.avail_ring() >> 32), 4),
        (0x30, 4 | 8) => (queue.map_or(0, QueueT::used_ring), data.len()),
        (0x34, 4) => (queue.map_or(0, |q| q.used_ring() >> 32), 4),
        _ => return,
    };
    data.copy_from_slice(&value.to_le_bytes()[..width]);
}

/// Writes `data` at `offset` of the structure.
pub fn write(
    selectors: &mut Selectors,
    transport: &mut Transport,
    interrupts: &Interrupts,
    offset: u64,
    data: &[u8],
) {
    match (offset, data) {
        (0x14, &[value]) => transport.set_status(value),
        (_, &[a, b]) => write_u16(
            selectors,
            transport,
            interrupts,
            offset,
            u16::from_le_bytes([a, b]),
        ),
        (_, &[a, b, c, d]) => {
            write_u32(
                selectors,
                transport,
                offset,
                u32::from_le_bytes([a, b, c, d]),
            );
        }
        (0x20 | 0x28 | 0x30, &[a, b, c, d, e, f, g, h]) => {
            write_u32(
                selectors,
                transport,
                offset,
                u32::from_le_bytes([a, b, c, d]),
            );
            write_u32(
                selectors,
                transport,
                offset + 4,
                u32::from_le_bytes([e, f, g, h]),
            );
        }
        _ => {}
    }
}

fn write_u16(
    selectors: &mut Selectors,
    transport: &mut Transport,
    interrupts: &Interrupts,
    offset: u64,
    value: u16,
) {
    match offset {
        0x10 => interrupts.set_config_vector(value),
        0x16 => selectors.queue = value,
        0x18 => {
            // `set_size` keeps the old size when the new one is no power of two or too large.
            if let Some(queue) = transport.queue_mut(selectors.queue) {
                queue.set_size(value);
            }
        }
        0x1a => interrupts.set_queue_vector(selectors.queue, value),
        0x1c if value == 1 => transport.enable_queue(selectors.queue),
        _ => {}
    }
}

fn write_u32(selectors: &mut Selectors, transport: &mut Transport, offset: u64, value: u32) {
    match offset {
        0x00 => selectors.device_feature = value,
        0x08 => selectors.driver_feature = value,
        0x0c => transport.set_driver_features(selectors.driver_feature, value),
        0x20..0x38 => {
            let Some(queue) = transport.queue_mut(selectors.queue) else {
                return;
            };
            match offset {
                0x20 => queue.set_desc_table_address(Some(value), None),
                0x24 => queue.set_desc_table_address(None, Some(value)),
                0x28 => queue.set_avail_ring_address(Some(value), None),
                0x2c => queue.set_avail_ring_address(None, Some(value)),
                0x30 => queue.set_used_ring_address(Some(value), None),
                0x34 => queue.set_used_ring_address(None, Some(value)),
                _ => {}
            }
        }
        _ => {}
    }
}

/// The 32 feature bits that a selector shows; selectors beyond 1 show none.
fn half(features: u64, selector: u32) -> u64 {
    match selector {
        0 => features & u64::from(u32::MAX),
        1 => features >> 32,
        _ => 0,
    }
}
