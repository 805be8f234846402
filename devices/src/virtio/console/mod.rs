//! Console device (VIRTIO 1.2 §5.3) with named ports: text consoles (hvc0, …) and byte channels such as the guest agent's.
//!
//! What stands behind the ports ([`ConsolePorts`]: sockets with their clients, or the host's console code) is made once and outlives the
//! device, which a VM reset replaces. One worker thread serves all queues, from the first that starts to the last that stops.
//!
//! The guest chooses data, buffers, control messages and their pace. Nothing it does makes the host buffer more than a piece of 64
//! KiB, and a port that is stuck does not hold up another.

mod control;
mod data;
mod engine;
mod error;
mod ports;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use virtio_queue::Queue;

pub use error::ConsoleError;
pub use ports::{
    ConsolePorts, MAX_NAME, MAX_PORTS, PortBackend, PortCounters, PortEvents, PortSpec,
};

use self::engine::Engine;
use super::service::Service;
use super::{DeviceError, QueueResources, VirtioDevice};
use crate::bus::read_bytes;
use crate::throttle::Throttle;

/// VIRTIO_ID_CONSOLE.
const DEVICE_TYPE: u16 = 3;
/// VIRTIO_CONSOLE_F_SIZE: the configuration has columns and rows.
const F_SIZE: u64 = 1 << 0;
/// VIRTIO_CONSOLE_F_MULTIPORT: ports and control queues.
const F_MULTIPORT: u64 = 1 << 1;
/// Buffers of a queue; Linux fills each receive queue with pages.
const QUEUE_SIZE: u16 = 64;
/// The control queue towards the driver.
const CONTROL_RX: u16 = 2;
/// The control queue from the driver.
const CONTROL_TX: u16 = 3;

/// Queues of a device with this many ports.
fn queue_count(ports: usize) -> usize {
    2 * ports + 2
}

/// The queue towards the driver of a port, which is below [`MAX_PORTS`].
fn rx_queue(port: usize) -> u16 {
    let port = u16::try_from(port).unwrap_or_default();
    if port == 0 { 0 } else { 2 * port + 2 }
}

/// The queue from the driver of a port.
fn tx_queue(port: usize) -> u16 {
    rx_queue(port) + 1
}

/// A console device.
#[derive(Debug)]
pub struct VirtioConsole {
    id: String,
    ports: Arc<ConsolePorts>,
    queue_sizes: Vec<u16>,
    log: Arc<Throttle>,
    service: Service<Engine>,
}

impl VirtioConsole {
    /// `id` as in the VM spec. Only one device at a time may have the ports.
    #[must_use]
    pub fn new(id: impl Into<String>, ports: Arc<ConsolePorts>) -> Self {
        Self {
            id: id.into(),
            queue_sizes: vec![QUEUE_SIZE; queue_count(ports.count())],
            ports,
            log: Arc::default(),
            service: Service::default(),
        }
    }
}

impl VirtioDevice for VirtioConsole {
    fn id(&self) -> &str {
        &self.id
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_SIZE | F_MULTIPORT
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr (§5.3.4).
        let [columns, rows] = self.ports.size();
        let ports = u32::try_from(self.ports.count()).unwrap_or(u32::MAX);
        let mut config = Vec::with_capacity(12);
        config.extend(columns.to_le_bytes());
        config.extend(rows.to_le_bytes());
        config.extend(ports.to_le_bytes());
        read_bytes(&config, offset, data);
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        if usize::from(index) >= self.queue_sizes.len() {
            return Err(DeviceError {
                device: self.id.clone(),
                action: format!("starting queue {index}"),
                source: io::ErrorKind::InvalidInput.into(),
            });
        }
        let make = || {
            let (ports, log) = (Arc::clone(&self.ports), Arc::clone(&self.log));
            Engine::new(self.id.clone(), ports, log)
        };
        self.service.start(&self.id, index, resources, make, |_| ())
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        self.service.stop(index)
    }

    fn reset(&mut self) {
        self.service.reset();
    }
}
