//! The drive `cdrom0` of a VM under test: its medium is changed by the API, and looked at in the guest.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::host::run;
use crate::vm::{BOOT_DEADLINE, text};
use crate::{Answer, Api, Vm};

/// The drive.
pub const DRIVE: &str = "/vm/cdroms/cdrom0";
const MEDIUM: &str = "/vm/cdroms/cdrom0/medium";
/// How long a guest may take to read a whole medium of some 30 MiB.
const READ_DEADLINE: Duration = Duration::from_secs(120);

/// Asks for another medium in the drive; `query` may be `?force=true`.
#[must_use]
pub fn insert(api: &Api, path: &Path, query: &str) -> Answer {
    let medium = json!({ "path": path });
    api.request("PUT", &format!("{MEDIUM}{query}"), Some(&medium))
}

/// Asks for none.
#[must_use]
pub fn eject(api: &Api, query: &str) -> Answer {
    api.request("DELETE", &format!("{MEDIUM}{query}"), None)
}

/// Waits until the guest's kernel has found the drive, which it looks for behind its init's back.
///
/// # Panics
/// When it does not in time.
pub fn wait_for_drive(vm: &Vm) {
    vm.wait_until("there is no /dev/sr0", BOOT_DEADLINE, || {
        vm.shell("[ -b /dev/sr0 ] && echo there || true")
            .contains("there")
    });
}

/// Checks that the guest reads this medium in its first drive, and all of it.
///
/// # Panics
/// When it reads something else.
#[track_caller]
pub fn holds(vm: &Vm, medium: &Path) {
    wait_for_drive(vm);
    let sum = |output: &str| output.split_whitespace().next().map(str::to_owned);
    let wanted = sum(&run(&format!("sha256sum {}", text(medium))));
    let mut read = paddock_probe::protocol::Exec::shell("sha256sum /dev/sr0");
    read.timeout_ms = u64::try_from(READ_DEADLINE.as_millis()).unwrap_or(u64::MAX);
    let reply = vm.call_within(read, READ_DEADLINE + Duration::from_secs(10));
    if !reply.success() || sum(&reply.stdout.to_text()) != wanted {
        vm.fail(&format!("{} is read as {reply:?}", medium.display()));
    }
}
