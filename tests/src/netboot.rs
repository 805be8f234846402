//! A network to boot from: a bridge, and on its host's side a DHCP and TFTP server, as an operator would set it up.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::files;
use crate::host::{Bridge, run};
use crate::transcript::Transcript;
use crate::vm::text;

const VLAN: u16 = 42;
const HOST: &str = "10.97.0.1";
const GUEST: &str = "10.97.0.20";

/// The bridge and its server. Both end on drop.
#[derive(Debug)]
pub struct BootNetwork {
    // The server first: it is at the bridge's address.
    server: Server,
    bridge: Bridge,
    _directory: TempDir,
}

#[derive(Debug)]
struct Server {
    child: Child,
    log: Transcript,
}

impl Server {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program()));
        let log = Transcript::follow(child.stderr.take());
        Self { child, log }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl BootNetwork {
    /// A bridge of this name with a server that offers one of the files that guests/build made.
    ///
    /// # Panics
    /// When the bridge or the server cannot be had.
    #[must_use]
    pub fn new(name: &str, file: &str) -> Self {
        let bridge = Bridge::new(name, VLAN, &format!("{HOST}/24"));
        let directory = tempfile::tempdir();
        let directory = directory.unwrap_or_else(|error| panic!("temporary directory: {error}"));
        let original = files::guest(file);
        run(&format!(
            "cp {} {}",
            original.display(),
            directory.path().display()
        ));
        let server = Server::start(&mut dnsmasq(name, directory.path(), file));
        Self {
            server,
            bridge,
            _directory: directory,
        }
    }

    /// What `--net` says for a NIC in this network.
    #[must_use]
    pub fn nic(&self) -> String {
        format!("bridge={},vlan={VLAN}", self.bridge.name())
    }

    /// What the server has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.log.text()
    }
}

/// The DHCP server, which is the TFTP server as well. It offers the file to PXE, and to all others an address only.
fn dnsmasq(name: &str, directory: &Path, file: &str) -> Command {
    let mut command = Command::new("dnsmasq");
    command
        .args(["--keep-in-foreground", "--log-facility=-", "--log-dhcp"])
        .args(["--conf-file=/dev/null", "--pid-file=", "--leasefile-ro"])
        // No DNS; as root it may read the directory.
        .args(["--port=0", "--user=root", "--bind-interfaces"])
        .arg(format!("--interface={name}.{VLAN}"))
        .arg(format!("--dhcp-range={GUEST},{GUEST},255.255.255.0,1h"))
        .args(["--dhcp-authoritative", "--enable-tftp"])
        .arg(format!("--tftp-root={}", text(directory)))
        .arg("--dhcp-vendorclass=set:asks,PXEClient")
        .arg(format!("--dhcp-boot=tag:asks,{file}"));
    command
}
