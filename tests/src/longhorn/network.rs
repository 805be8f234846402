//! A network of two hosts, this machine and a network namespace, whose cable can lose everything, and whose connections can be reset.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

/// The host's end of the cable.
const FAR: &str = "eth0";

/// A network namespace that one cable connects with this machine; gone on drop.
#[derive(Debug)]
pub struct Network {
    /// Of the namespace, and of this machine's end of the cable.
    name: String,
    net: u8,
}

impl Network {
    /// A new one.
    ///
    /// # Panics
    /// When it cannot be made: it takes root, and iproute2.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        // Those of other processes have other numbers, with luck; the kernel says where not.
        let process = std::process::id().to_le_bytes()[0];
        for _ in 0..u8::MAX {
            let net = process.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let name = format!("pdnet{net}");
            if !try_ip(&["netns", "add", &name]) {
                continue;
            }
            let this = Self { name, net };
            let (name, far) = (this.name.as_str(), FAR);
            let near_address = format!("{}/24", this.near_address());
            let far_address = format!("{}/24", this.address());
            ip(&[
                "link", "add", name, "type", "veth", "peer", "name", far, "netns", name,
            ]);
            ip(&["address", "add", &near_address, "dev", name]);
            ip(&["link", "set", name, "up"]);
            ip(&["-n", name, "address", "add", &far_address, "dev", far]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
            ip(&["-n", name, "link", "set", far, "up"]);
            return this;
        }
        panic!("no network namespace can be made: is this root, and is there ip(8)?");
    }

    /// Where its host is to be found.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 98, self.net, 2)
    }

    /// Where this machine is to be found from there.
    #[must_use]
    pub fn near_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 98, self.net, 1)
    }

    /// Pulls the cable out of the host.
    pub fn unplug(&self) {
        ip(&["-n", &self.name, "link", "set", FAR, "down"]);
    }

    /// Puts it back.
    pub fn plug(&self) {
        ip(&["-n", &self.name, "link", "set", FAR, "up"]);
    }

    /// Loses what the host sends from now on, acknowledgements too, and tells nobody: as a switch would that has forgotten it.
    pub fn cut(&self) {
        ip(&["-n", &self.name, "route", "add", "blackhole", &self.near()]);
    }

    /// Loses nothing any more.
    pub fn mend(&self) {
        ip(&[
            "-n",
            &self.name,
            "route",
            "delete",
            "blackhole",
            &self.near(),
        ]);
    }

    /// Resets all TCP connections that the host has now, as one does that has forgotten them: both ends hear of it, and none is there to go on with.
    ///
    /// # Panics
    /// When it cannot be done: it takes a kernel with `CONFIG_INET_DIAG_DESTROY`, and there has to be one.
    pub fn reset(&self) {
        let mut command = self.command("ss");
        command.args(["--no-header", "--kill", "--tcp", "state", "established"]);
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("ss: {error}"));
        let killed = output.stdout.iter().filter(|byte| **byte == b'\n').count();
        assert!(
            output.status.success() && killed > 0,
            "ss --kill has reset {killed} connections: {output:?}"
        );
    }

    /// This machine, as seen from there.
    fn near(&self) -> String {
        format!("{}/32", self.near_address())
    }

    /// A command that runs there.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // With it goes the cable.
        try_ip(&["netns", "delete", &self.name]);
    }
}

fn try_ip(arguments: &[&str]) -> bool {
    let output = Command::new("ip").args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

#[track_caller]
fn ip(arguments: &[&str]) {
    assert!(try_ip(arguments), "ip {} failed", arguments.join(" "));
}
