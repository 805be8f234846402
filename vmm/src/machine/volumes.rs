//! Replicated volumes behind disks, from the VM's beginning to its orderly end.
//!
//! Opening and closing wait for replicas, several seconds where one does not answer, and run on a blocking thread. Replicas of a volume that was not closed, for
//! the process was killed, have to be started anew by whoever runs them before they are opened again.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use paddock_api::spec;
use paddock_storage::hold::Opener;
use paddock_storage::longhorn::{
    Controller, ControllerOptions, Listener, ReplicaAddress, Taking, Volume, VolumeError,
    VolumeHandle, VolumeOptions,
};
use paddock_storage::{Capabilities, Disk, DiskQueue, ResizeError};

use crate::Error;

/// A volume that is the VM's until this is dropped, which closes it and blocks.
#[derive(Debug)]
pub struct OpenVolume {
    volume: Arc<Volume>,
    /// The service of Longhorn's tools, if there is one. It ends before the volume is closed.
    controller: Option<Controller>,
}

impl OpenVolume {
    /// Opens a volume, which tells `listener` what happens to it. `pointer` is the disk's place in the spec.
    ///
    /// # Errors
    /// When none of its replicas can be used.
    pub(super) fn open(
        pointer: &str,
        disk: &spec::Disk,
        volume: &spec::Volume,
        listener: Arc<dyn Listener>,
    ) -> Result<Self, Error> {
        let wrong = |error: VolumeError| Error::part(format!("{pointer}/volume"), error);
        // Before replicas are opened, which would be left open if this failed.
        let served = volume.controller.map(|address| listen(pointer, address));
        let served = served.transpose()?;
        let open = options(disk, volume).and_then(|options| Volume::open(options, listener));
        let volume = Arc::new(open.map_err(wrong)?);
        let mut open = Self {
            volume,
            controller: None,
        };
        if let Some(served) = served {
            let controller = open
                .volume
                .serve_controller(served, ControllerOptions::default());
            open.controller = Some(controller.map_err(wrong)?);
        }
        tracing::info!(
            disk = disk.id.as_str(),
            volume = open.volume.name(),
            bytes = open.volume.size(),
            replicas = open.volume.replicas().len(),
            "disk opened"
        );
        Ok(open)
    }

    /// The way to it for those who may not block.
    pub(super) fn handle(&self) -> VolumeHandle {
        self.volume.handle()
    }

    /// The disk that it is. Its users are counted apart from those of the volume.
    pub(super) fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(VolumeDisk(Arc::clone(&self.volume)))
    }

    /// The way to open its replicas again once all have failed, and whoever runs them has started them anew. Blocks.
    pub(super) fn opener(&self) -> Opener {
        let volume = Arc::clone(&self.volume);
        Box::new(move || {
            volume.reopen().map_err(io::Error::other)?;
            Ok(Arc::new(VolumeDisk(Arc::clone(&volume))))
        })
    }

    /// It is to be closed soon: replicas that do not answer are left within seconds from now on.
    pub(super) fn expect_close(&self) {
        self.volume.expect_close();
    }

    /// Begins to close it, and does not wait for that.
    pub(super) fn begin_close(&self) {
        self.volume.begin_close();
    }

    /// Closes it, so that the next to open it finds it clean; again does no harm. Blocks.
    pub(super) fn close(&self) {
        if let Err(error) = self.volume.close() {
            tracing::error!(volume = self.volume.name(), %error, "volume is not closed");
        }
    }
}

impl Drop for OpenVolume {
    fn drop(&mut self) {
        self.controller = None;
        self.close();
        tracing::info!(volume = self.volume.name(), "volume closed");
    }
}

/// A volume as a disk.
#[derive(Debug)]
struct VolumeDisk(Arc<Volume>);

impl Disk for VolumeDisk {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn size(&self) -> u64 {
        Disk::size(&*self.0)
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        self.0.resize(size)
    }

    fn repeats_flush(&self) -> bool {
        self.0.repeats_flush()
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn DiskQueue>> {
        self.0.open_queue(depth)
    }
}

/// Listens for Longhorn's tools.
fn listen(pointer: &str, address: SocketAddr) -> Result<TcpListener, Error> {
    let wrong = |error: io::Error| {
        let error = io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
        Error::part(format!("{pointer}/volume/controller"), error)
    };
    TcpListener::bind(address).map_err(wrong)
}

fn options(disk: &spec::Disk, volume: &spec::Volume) -> Result<VolumeOptions, VolumeError> {
    let replicas = volume.replicas.iter();
    let replicas = replicas.map(|replica| replica.to_string().parse::<ReplicaAddress>());
    let name = volume.name.to_string();
    Ok(VolumeOptions {
        size: volume.size.map(spec::ByteSize::bytes),
        revision_counter: volume.revision_counter,
        taking: if volume.salvage {
            Taking::Salvage
        } else {
            Taking::Open
        },
        timeout: Duration::from_secs(volume.timeout.into()),
        record: volume.record.clone(),
        read_only: disk.read_only,
        ..VolumeOptions::new(name, replicas.collect::<Result<_, _>>()?)
    })
}

#[cfg(test)]
mod tests {
    use paddock_api::spec::{DiskSource, VmSpec};
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_spec_says_is_what_is_opened() {
        let options = |volume: serde_json::Value| {
            let disk = json!({"volume": volume, "read_only": true});
            let spec = json!({"boot": {"kernel": "/k"}, "disks": [disk]});
            let spec = VmSpec::from_json(&spec.to_string()).unwrap();
            let DiskSource::Volume(volume) = &spec.disks[0].source else {
                panic!("{spec:?}");
            };
            options(&spec.disks[0], volume).unwrap()
        };
        let replica = |text: &str| text.parse().unwrap();
        let few = options(json!({"name": "v", "replicas": ["a:1", "[::1]:65533"]}));
        let mut expected = VolumeOptions::new("v", vec![replica("a:1"), replica("[::1]:65533")]);
        expected.read_only = true;
        assert_eq!(few, expected);
        let all = options(
            json!({"name": "v", "replicas": ["a:1"], "size": "1MiB", "timeout": 30,
            "revision_counter": false, "salvage": true, "record": "/r"}),
        );
        let expected = VolumeOptions {
            size: Some(1 << 20),
            timeout: Duration::from_secs(30),
            revision_counter: Some(false),
            taking: Taking::Salvage,
            record: Some("/r".into()),
            read_only: true,
            ..VolumeOptions::new("v", vec![replica("a:1")])
        };
        assert_eq!(all, expected);
    }
    #[test]
    fn an_address_that_is_taken_is_told_by_its_place() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen("/disks/0", address).unwrap_err();
        let told = crate::error::chain(&error);
        let wanted = format!("cannot listen on {address}");
        assert!(told.contains("/disks/0/volume/controller"), "{told}");
        assert!(told.contains(&wanted), "{told}");
    }
}
