//! The lab's host as tests change it, by the commands an operator would use, and put back on drop.

use std::process::{Command, Output};

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

/// A bridge with VLAN filtering and an address of the host's in one of its VLANs.
#[derive(Debug)]
pub struct Bridge {
    name: String,
}

impl Bridge {
    /// Makes the bridge; the host's own port in it, `NAME.VLAN`, has `address` ("10.1.0.1/24") and is in `vlan`.
    #[must_use]
    pub fn new(name: &str, vlan: u16, address: &str) -> Self {
        run(&format!(
            "ip link add {name} type bridge vlan_filtering 1 vlan_default_pvid 0 && ip link set {name} up && \
             bridge vlan add dev {name} vid {vlan} self && \
             ip link add link {name} name {name}.{vlan} type vlan id {vlan} && \
             ip address add {address} dev {name}.{vlan} && ip link set {name}.{vlan} up"
        ));
        Self {
            name: name.to_owned(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // The VLAN interface goes with it.
        let _ = shell(&format!("ip link delete {}", self.name));
    }
}
