//! A network to boot from: a bridge, and on its host's side a DHCP, TFTP and HTTP server, as an operator would set them up.

use std::fmt::Write as _;
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
const PORT: u16 = 8080;

/// How a NIC's firmware asks for what it boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// PXE: the file by TFTP.
    Pxe,
    /// UEFI's HTTP Boot.
    Http,
}

/// The bridge and its servers. All of it ends on drop.
#[derive(Debug)]
pub struct BootNetwork {
    // The servers first: they are on the bridge's address.
    servers: Vec<Server>,
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
    /// A bridge of this name with servers that offer one of the files that guests/build made.
    ///
    /// # Panics
    /// When the bridge or the servers cannot be had.
    #[must_use]
    pub fn new(name: &str, protocol: Protocol, file: &str) -> Self {
        let bridge = Bridge::new(name, VLAN, &format!("{HOST}/24"));
        let directory = tempfile::tempdir();
        let directory = directory.unwrap_or_else(|error| panic!("temporary directory: {error}"));
        let original = files::guest(file);
        run(&format!(
            "cp {} {}",
            original.display(),
            directory.path().display()
        ));
        let mut servers = vec![Server::start(&mut dnsmasq(
            name,
            protocol,
            directory.path(),
            file,
        ))];
        if protocol == Protocol::Http {
            servers.push(Server::start(&mut http_server(directory.path())));
        }
        Self {
            servers,
            bridge,
            _directory: directory,
        }
    }

    /// What `--net` says for a NIC in this network.
    #[must_use]
    pub fn nic(&self) -> String {
        format!("bridge={},vlan={VLAN}", self.bridge.name())
    }

    /// What the servers have logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut all = String::new();
        for server in &self.servers {
            let _ = writeln!(all, "{}", server.log.text());
        }
        all
    }
}

/// The DHCP server, which is the TFTP server as well. It offers the file to those who ask by `protocol`, and all others an address only: who
/// gets no answer at all asks for a minute.
fn dnsmasq(name: &str, protocol: Protocol, directory: &Path, file: &str) -> Command {
    let mut command = Command::new("dnsmasq");
    command
        .args(["--keep-in-foreground", "--log-facility=-", "--log-dhcp"])
        .args(["--conf-file=/dev/null", "--pid-file=", "--leasefile-ro"])
        // No DNS; as root it may read the directory.
        .args(["--port=0", "--user=root", "--bind-interfaces"])
        .arg(format!("--interface={name}.{VLAN}"))
        .arg(format!("--dhcp-range={GUEST},{GUEST},255.255.255.0,1h"))
        .arg("--dhcp-authoritative");
    match protocol {
        Protocol::Pxe => command
            .arg("--enable-tftp")
            .arg(format!("--tftp-root={}", text(directory)))
            .arg("--dhcp-vendorclass=set:asks,PXEClient")
            .arg(format!("--dhcp-boot=tag:asks,{file}")),
        Protocol::Http => command
            .arg("--dhcp-vendorclass=set:asks,HTTPClient")
            // The answer has to say what it is an answer to.
            .arg("--dhcp-option-force=tag:asks,60,HTTPClient")
            .arg(format!("--dhcp-boot=tag:asks,http://{HOST}:{PORT}/{file}")),
    };
    command
}

fn http_server(directory: &Path) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command
        .args(["-m", "http.server", "--protocol", "HTTP/1.1"])
        .args(["--bind", HOST, "--directory", text(directory)])
        .arg(PORT.to_string());
    command
}
