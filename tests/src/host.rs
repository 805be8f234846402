//! The lab's host as tests change it, by the commands an operator would use, and put back on drop.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::files;

/// Runs a command and returns what it printed.
///
/// # Panics
/// When it cannot be run or fails.
pub fn run(command: &str) -> String {
    let output = shell(command);
    assert!(
        output.status.success(),
        "{command}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command that may fail.
///
/// # Panics
/// When there is no shell.
#[must_use]
pub fn shell(command: &str) -> Output {
    match Command::new("sh").args(["-c", command]).output() {
        Ok(output) => output,
        Err(error) => panic!("sh: {error}"),
    }
}

/// A file system with room for little, which is unmounted on drop.
#[derive(Debug)]
pub struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    /// One of `size`, as `mount` takes it, in a new directory.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(directory: PathBuf, size: &str) -> Self {
        let at = directory.display();
        run(&format!(
            "mkdir {at} && mount -t tmpfs -o size={size} tmpfs {at}"
        ));
        Self(directory)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Gives it so much room.
    ///
    /// # Panics
    /// When it does not get it.
    pub fn grow(&self, size: &str) {
        run(&format!(
            "mount -o remount,size={size} {}",
            self.0.display()
        ));
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // Also where somebody still has a file of it open, as after a test that failed.
        let _ = shell(&format!("umount -l {}", self.0.display()));
    }
}

/// A network interface, which is deleted on drop.
#[derive(Debug)]
pub struct Link(String);

impl Link {
    /// One that `command` makes by the name of `name`.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    pub fn made_by(command: &str, name: &str) -> Self {
        run(command);
        Self(name.to_owned())
    }

    /// A tap that stays while nobody has it open, and is up. `flag` is `vnet_hdr` or `multi_queue`.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn tap(name: &str, flag: &str) -> Self {
        let make = format!("ip tuntap add dev {name} mode tap {flag} && ip link set {name} up");
        Self::made_by(&make, name)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = shell(&format!("ip link delete {}", self.0));
    }
}

/// A bridge with VLAN filtering and an address of the host's in one of its VLANs.
#[derive(Debug)]
pub struct Bridge(Link);

impl Bridge {
    /// Makes the bridge; the host's own port in it, `NAME.VLAN`, has `address` ("10.1.0.1/24") and is in `vlan`. The port goes with it.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(name: &str, vlan: u16, address: &str) -> Self {
        let make = format!(
            "ip link add {name} type bridge vlan_filtering 1 vlan_default_pvid 0 && ip link set {name} up && \
             bridge vlan add dev {name} vid {vlan} self && \
             ip link add link {name} name {name}.{vlan} type vlan id {vlan} && \
             ip address add {address} dev {name}.{vlan} && ip link set {name}.{vlan} up"
        );
        Self(Link::made_by(&make, name))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }
}

/// An ext4 file system in a file, which does what replicas want and a tmpfs does not: O_DIRECT, FIEMAP. Unmounted on drop.
#[derive(Debug)]
pub struct FileSystem(TempDir);

impl FileSystem {
    /// Makes one of `size` bytes, nearly all of which files may take.
    ///
    /// # Panics
    /// When it cannot be made or mounted.
    #[must_use]
    pub fn ext4(size: u64) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let image = files::empty_disk(directory.path(), "image", size);
        let this = Self(directory);
        run(&format!(
            "mkfs.ext4 -q -F -m 0 -N 256 -O ^has_journal {image} && mkdir {at} && mount -o loop {image} {at}",
            image = image.display(),
            at = this.path().display()
        ));
        this
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.0.path().join("mounted")
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = shell(&format!("umount -l {}", self.path().display()));
    }
}
