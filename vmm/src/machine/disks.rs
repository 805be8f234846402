//! The backends of a VM's disks, opened as the spec says.
//!
//! Opening may block, as storage does, and runs on a blocking thread. What the guest does with a disk is the backend's business.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use paddock_api::spec::{
    self, DirectIo, DiskEngine, DiskFile, DiskSource, ImageFormat, NbdExport, PassedFd,
};
use paddock_storage::hold::Opener;
use paddock_storage::longhorn::EngineSocket;
use paddock_storage::nbd::{NbdIdentity, NbdTls};
use paddock_storage::{
    Backing, BackingFormat, Direct, Disk, Engine, NbdDisk, NbdOptions, NbdUri, OpenError,
    Qcow2Disk, Qcow2Options, RawDisk, RawOptions,
};

use super::devices::take_passed;
use super::volumes::OpenVolume;
use crate::Error;
use crate::volumes::Watch;

/// What stands behind a disk, and the way to open it anew, if it has a name for that.
type Backend = (Arc<dyn Disk>, Option<Opener>);

/// What stands behind a disk.
pub(super) struct Opened {
    pub(super) disk: Arc<dyn Disk>,
    /// The way to open it anew, if it has a name for that.
    pub(super) opener: Option<Opener>,
    /// The volume that it is, if its engine is ours.
    pub(super) volume: Option<OpenVolume>,
}

/// Opens what stands behind a disk. `pointer` is the disk's place in the spec. A volume tells `watch` what happens to it.
///
/// # Errors
/// When it cannot be had.
pub(super) fn open(pointer: &str, disk: &spec::Disk, watch: &Arc<Watch>) -> Result<Opened, Error> {
    let (backend, volume) = match &disk.source {
        DiskSource::File(file) => (open_file(pointer, disk, file)?, None),
        DiskSource::Nbd(export) => (open_nbd(pointer, disk, export)?, None),
        DiskSource::LonghornSocket(socket) => (open_socket(pointer, disk, socket)?, None),
        DiskSource::Volume(volume) => {
            let volume = OpenVolume::open(pointer, disk, volume, Arc::clone(watch) as _)?;
            ((volume.disk(), Some(volume.opener())), Some(volume))
        }
    };
    let (disk, opener) = backend;
    Ok(Opened {
        disk,
        opener,
        volume,
    })
}

/// Connects to the engine of a volume.
fn open_socket(
    pointer: &str,
    disk: &spec::Disk,
    socket: &spec::LonghornSocket,
) -> Result<Backend, Error> {
    let (path, size, read_only) = (socket.path.clone(), socket.size.bytes(), disk.read_only);
    let connect = move || EngineSocket::open(&path, size, read_only);
    let at = || format!("{pointer}/longhorn_socket/path");
    let open = connect().map_err(|error| Error::part(at(), error))?;
    tracing::info!(
        disk = disk.id.as_str(),
        socket = %socket.path.display(),
        bytes = open.size(),
        "disk opened"
    );
    let opener: Opener = Box::new(move || Ok(Arc::new(connect().map_err(io::Error::other)?)));
    Ok((Arc::new(open), Some(opener)))
}

/// Connects to an NBD server.
fn open_nbd(pointer: &str, disk: &spec::Disk, export: &NbdExport) -> Result<Backend, Error> {
    let uri: NbdUri = export
        .uri
        .parse()
        .map_err(|error| Error::part(format!("{pointer}/nbd/uri"), error))?;
    let options = NbdOptions {
        tls: export.tls.as_ref().map(|tls| NbdTls {
            ca: tls.ca.clone(),
            identity: tls
                .identity
                .clone()
                .map(|(certificate, key)| NbdIdentity { certificate, key }),
            hostname: tls.hostname.clone(),
        }),
        read_only: disk.read_only,
        connect_timeout: export.connect_timeout,
        request_timeout: export.request_timeout,
        reconnect_deadline: export.reconnect_deadline,
        ..NbdOptions::new(uri)
    };
    let open = NbdDisk::open(options).map_err(|error| Error::part(pointer, error))?;
    tracing::info!(
        disk = disk.id.as_str(),
        uri = export.uri,
        bytes = open.size(),
        many_connections = open.has_many_connections(),
        "disk opened"
    );
    // It connects anew by itself, with what was not flushed in its memory.
    Ok((Arc::new(open), None))
}

/// Opens an image file or a block device.
fn open_file(pointer: &str, disk: &spec::Disk, file: &DiskFile) -> Result<Backend, Error> {
    let passed = match PassedFd::in_path(&file.path) {
        Some(passed) => Some(take_passed(&format!("{pointer}/path"), passed)?),
        None => None,
    };
    let open = match file.format {
        ImageFormat::Raw => open_raw(disk, file, passed),
        ImageFormat::Qcow2 => open_qcow2(disk, file, passed),
    };
    open.map_err(|error| Error::part(pointer, error))
}

fn open_raw(
    disk: &spec::Disk,
    file: &DiskFile,
    passed: Option<OwnedFd>,
) -> Result<Backend, OpenError> {
    let options = RawOptions {
        read_only: disk.read_only,
        direct: direct(file),
        engine: match file.engine {
            DiskEngine::Auto => Engine::Auto,
            DiskEngine::IoUring => Engine::IoUring,
            DiskEngine::Threads => Engine::Threads,
        },
        block_size: file.block_size,
        ..RawOptions::new(&file.path)
    };
    let has_name = passed.is_none();
    let open = match passed {
        Some(passed) => RawDisk::adopt(passed, &options)?,
        None => RawDisk::open(&options)?,
    };
    tracing::info!(
        disk = disk.id.as_str(),
        path = %file.path.display(),
        bytes = open.size(),
        direct = open.is_direct(),
        engine = ?open.engine(),
        "disk opened"
    );
    let opener = match has_name {
        true => Some(open.opener(&options)?),
        false => None,
    };
    Ok((Arc::new(open), opener))
}

fn open_qcow2(
    disk: &spec::Disk,
    file: &DiskFile,
    passed: Option<OwnedFd>,
) -> Result<Backend, OpenError> {
    let options = Qcow2Options {
        read_only: disk.read_only,
        direct: direct(file),
        backing: file.backing.as_ref().map(backing),
        ..Qcow2Options::new(&file.path)
    };
    let open = match passed {
        Some(passed) => Qcow2Disk::adopt(passed, &options)?,
        None => Qcow2Disk::open(&options)?,
    };
    tracing::info!(
        disk = disk.id.as_str(),
        path = %file.path.display(),
        bytes = open.size(),
        direct = open.is_direct(),
        format = "qcow2",
        "disk opened"
    );
    // Its metadata are in memory, and would be lost.
    Ok((Arc::new(open), None))
}

fn backing(spec: &spec::Backing) -> Backing {
    Backing {
        path: spec.path.clone(),
        format: match spec.format {
            ImageFormat::Raw => BackingFormat::Raw,
            ImageFormat::Qcow2 => {
                let next = spec.backing.as_deref().map(backing);
                BackingFormat::Qcow2(next.map(Box::new))
            }
        },
    }
}

fn direct(file: &DiskFile) -> Direct {
    match file.direct {
        DirectIo::Auto => Direct::Auto,
        DirectIo::On => Direct::On,
        DirectIo::Off => Direct::Off,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use paddock_api::spec::VmSpec;
    use serde_json::{Value, json};

    use super::*;

    fn qemu_img(directory: &Path, arguments: &[&str]) {
        let mut command = Command::new("qemu-img");
        let status = command.args(arguments).current_dir(directory).status();
        let status = status.unwrap_or_else(|e| panic!("qemu-img, install qemu-utils: {e}"));
        assert!(status.success(), "{arguments:?}");
    }

    fn open_all(disk: &Value) -> Result<Opened, Error> {
        let spec = json!({"boot": {"kernel": "/k"}, "disks": [disk]});
        let spec = VmSpec::from_json(&spec.to_string()).unwrap();
        let watch = Watch::new("disk0", Arc::default());
        open("/disks/0", &spec.disks[0], &Arc::new(watch))
    }

    fn open_disk(disk: &Value) -> Result<Arc<dyn Disk>, Error> {
        open_all(disk).map(|opened| opened.disk)
    }

    #[test]
    fn an_export_is_reached_by_its_uri() {
        let directory = tempfile::tempdir().unwrap();
        let [image, socket] = ["image", "socket"].map(|name| directory.path().join(name));
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        let mut command = Command::new("qemu-nbd");
        command
            .args(["-f", "raw", "-r", "-t", "-k"])
            .args([&socket, &image]);
        let server = command.spawn();
        let mut server = server.unwrap_or_else(|e| panic!("qemu-nbd, install qemu-utils: {e}"));
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let disk = json!({"nbd": {"uri": uri}, "read_only": true});
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let opened = loop {
            let opened = open_disk(&disk);
            if opened.is_ok() || std::time::Instant::now() >= end {
                break opened;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        let writing = open_disk(&json!({"nbd": {"uri": uri, "connect_timeout_ms": 1000}}));
        server.kill().unwrap();
        server.wait().unwrap();
        let opened = opened.unwrap();
        assert_eq!(opened.size(), 1 << 20);
        assert!(opened.capabilities().read_only);
        // It lets one client in, so that is all that can be said.
        writing.unwrap_err();
        let bad = open_disk(&json!({"nbd": {"uri": "nbd+unix:///?socket=relative"}}));
        let text = crate::error::chain(&bad.unwrap_err());
        assert!(text.contains("/disks/0/nbd/uri"), "{text}");
    }

    #[test]
    fn an_image_is_what_the_spec_says_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        qemu_img(place, &["create", "-qfqcow2", "base", "8M"]);
        qemu_img(
            place,
            &["create", "-qfqcow2", "-Fqcow2", "-bbase", "top", "8M"],
        );
        let [base, top] = ["base", "top"].map(|name| place.join(name));
        // Raw unless it is said.
        let file = std::fs::OpenOptions::new().append(true).open(&top);
        file.unwrap().set_len(1 << 20).unwrap();
        let raw = open_disk(&json!({"path": top})).unwrap();
        assert_eq!(raw.size(), 1 << 20);
        drop(raw);
        let alone = open_disk(&json!({"path": top, "format": "qcow2"}))
            .err()
            .unwrap();
        let text = crate::error::chain(&alone);
        let way = format!("\"backing\": {{\"path\": {base:?}, \"format\": \"qcow2\"}}");
        assert!(text.contains(&way), "{text}");
        let backing = json!({"path": base, "format": "qcow2"});
        let disk = json!({"path": top, "format": "qcow2", "backing": backing});
        assert_eq!(open_disk(&disk).unwrap().size(), 8 << 20);
    }

    #[test]
    fn a_volume_that_cannot_be_opened_says_where_and_why() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = nobody.local_addr().unwrap().to_string();
        drop(nobody);
        let volume = json!({"name": "data", "replicas": [address]});
        let error = open_disk(&json!({"volume": volume})).unwrap_err();
        assert_eq!(error.pointer(), Some("/disks/0/volume"));
        let text = crate::error::chain(&error);
        for part in ["data", &address, "is its process running"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn a_volume_behind_an_engine() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let disk = json!({"longhorn_socket": {"path": path, "size": "1MiB"}});
        let error = open_disk(&disk).unwrap_err();
        assert_eq!(error.pointer(), Some("/disks/0/longhorn_socket/path"));
        let _engine = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let open = open_all(&disk).unwrap();
        assert_eq!(open.disk.size(), 1 << 20);
        let again = open.opener.unwrap();
        assert_eq!(again().unwrap().size(), 1 << 20);
    }
}
