//! A volume of a guest in the lab, on Paddock's own replicas, and what its VM's API says of it and does to it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Replica, ReplicaOptions, own_replica};
use crate::host::FileSystem;
use crate::{Vm, files, within};

/// How long replicas may take to be found failed, or to be compared.
const SOON: Duration = Duration::from_secs(60);

/// The volume's name.
const NAME: &str = "guest";

/// Where the VM's API has its replicas.
const REPLICAS: &str = "/vm/disks/data/replicas";

/// A volume on replicas of ours.
#[derive(Debug)]
pub struct GuestVolume {
    /// Their processes.
    pub replicas: Vec<Replica>,
    /// Last: the replicas end before it goes.
    place: FileSystem,
}

impl GuestVolume {
    /// How one of its replicas is run.
    ///
    /// # Panics
    /// When it was not built.
    #[must_use]
    pub fn options() -> ReplicaOptions {
        ReplicaOptions::by(own_replica(), NAME)
    }

    /// Starts so many replicas of `size` bytes on a file system of `space` bytes.
    ///
    /// # Panics
    /// When they do not serve in time.
    #[must_use]
    pub fn start(count: usize, size: u64, space: u64) -> Self {
        Self::of(vec![Self::options(); count], size, space)
    }

    /// Starts replicas that are run in these ways.
    ///
    /// # Panics
    /// When they do not serve in time.
    #[must_use]
    pub fn of(ways: Vec<ReplicaOptions>, size: u64, space: u64) -> Self {
        let place = FileSystem::ext4(space);
        let replicas = ways.into_iter().enumerate().map(|(number, options)| {
            let directory = place.path().join(format!("r{number}"));
            Replica::start(&directory, size, options)
        });
        Self {
            replicas: replicas.collect(),
            place,
        }
    }

    /// Where its replicas' directories are.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.place.path()
    }

    /// Boots a guest with an API and the volume as its disk `data`, on 4 queues. `more` goes to the end of what `--disk` says.
    ///
    /// # Panics
    /// When the guest is not up in time.
    #[must_use]
    pub fn boot(&self, more: &str) -> Vm {
        let mut disk = format!("volume={NAME},id=data,queues=4{more}");
        for replica in &self.replicas {
            disk += &format!(",replica={}", replica.control());
        }
        let builder = Vm::builder().cpus(&4).api();
        builder.args(["--disk", &disk]).boot()
    }

    /// Starts all replicas anew.
    ///
    /// # Panics
    /// When they do not serve in time.
    pub fn restart(&mut self) {
        for replica in &mut self.replicas {
            replica.restart();
        }
    }

    /// The addresses of some of the replicas, as the command line takes them.
    #[must_use]
    pub fn addresses(&self, numbers: &[usize]) -> String {
        let addresses = numbers.iter().map(|&number| &self.replicas[number]);
        let addresses: Vec<_> = addresses.map(|r| r.control().to_string()).collect();
        addresses.join(",")
    }

    /// Runs `paddock volume` on some of the replicas. No VM has them open.
    ///
    /// # Panics
    /// When it does not go well.
    #[track_caller]
    pub fn paddock(&self, command: &str, numbers: &[usize], more: &[&str]) -> String {
        let addresses = self.addresses(numbers);
        let done = Command::new(files::paddock())
            .args(["volume", command, NAME, "--replica", &addresses])
            .args(more)
            .output()
            .unwrap_or_else(|error| panic!("paddock volume {command}: {error}"));
        assert!(done.status.success(), "{command}: {done:?}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Reads some of the replicas, which no VM has open.
    ///
    /// # Panics
    /// When they do not hold the same.
    #[track_caller]
    pub fn assert_alike(&self, numbers: &[usize]) {
        let told = self.paddock("check", numbers, &[]);
        let same = format!("{} replicas hold the same", numbers.len());
        assert!(told.starts_with(&same), "{told}");
    }
}

/// What the VM does with each replica, by where they are.
///
/// # Panics
/// When it does not say.
#[must_use]
pub fn modes_by_address(vm: &Vm) -> Vec<(String, String)> {
    let replicas = vm.api().get(REPLICAS).body;
    let text = |replica: &Value, name: &str| replica[name].as_str().map(str::to_owned);
    let mode = |replica| Some((text(replica, "address")?, text(replica, "mode")?));
    let modes = replicas
        .as_array()
        .map(|list| list.iter().map(mode).collect());
    modes
        .flatten()
        .unwrap_or_else(|| panic!("no replicas: {replicas}"))
}

/// What the VM does with each replica: `rw`, `wo` or `failed`.
///
/// # Panics
/// When it does not say.
#[must_use]
pub fn modes(vm: &Vm) -> Vec<String> {
    let modes = modes_by_address(vm);
    modes.into_iter().map(|(_, mode)| mode).collect()
}

/// Waits until the VM does this with the replicas.
///
/// # Panics
/// When it does not in time.
#[track_caller]
pub fn wait_for_modes(vm: &Vm, wanted: &[&str]) {
    assert!(within(SOON, || modes(vm) == wanted), "{:?}", modes(vm));
}

/// Waits until the replicas are known to have the same: all of them are read from then on.
///
/// # Panics
/// When that is not in time.
#[track_caller]
pub fn wait_until_compared(vm: &Vm) {
    let volume = || vm.api().get("/vm/disks/data").body["volume"].clone();
    let compared = || {
        let volume = volume();
        volume.is_object() && volume["comparison"].is_null()
    };
    assert!(within(SOON, compared), "{}", volume());
}

/// Has the VM let go of a replica.
///
/// # Panics
/// When it refuses.
#[track_caller]
pub fn remove_replica(vm: &Vm, address: SocketAddr) {
    let path = format!("{REPLICAS}/{address}");
    let removed = vm.api().request("DELETE", &path, None);
    assert_eq!(removed.status, 200, "{removed:?}");
}

/// Has the VM begin to rebuild a replica. Gives the job.
///
/// # Panics
/// When it refuses.
#[track_caller]
#[must_use]
pub fn add_replica(vm: &Vm, address: SocketAddr) -> Value {
    let body = json!({"address": address.to_string()});
    let added = vm.api().request("POST", REPLICAS, Some(&body));
    assert_eq!(added.status, 202, "{added:?}");
    added.body
}
