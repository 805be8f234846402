//! The devices of a VM that is nothing but its state: what is plugged in and out, how large disks are, and what lies in drives.

use std::path::PathBuf;
use std::time::Duration;

use paddock_api::cdrom::Cdrom;
use paddock_api::device::{DeviceKind, DeviceState, Disk};
use paddock_api::jobs::{Job, JobKind, JobPhase};
use paddock_api::resource::VmState;
use paddock_api::service::{AddError, Refusal, VmService};
use paddock_api::spec::{DiskConfig, DiskLimits, VmConfig, VmSpec};

use super::Fake;

impl Fake {
    /// The oldest change of a device is done.
    pub fn finish_change(&self) {
        let (id, state, handle) = self.0.changes.lock().remove(0);
        if state == DeviceState::Removing {
            self.forget(&id);
        }
        handle.succeed();
    }

    /// The oldest change of a device fails.
    pub fn fail_change(&self, failure: &str) {
        let (id, state, handle) = self.0.changes.lock().remove(0);
        if state == DeviceState::Adding {
            self.forget(&id);
        }
        handle.fail(failure);
    }

    fn forget(&self, id: &str) {
        let mut vm = self.0.vm.lock();
        let vm = vm.as_mut().unwrap();
        let spec = VmSpec::try_from(vm.spec.clone()).unwrap();
        vm.spec = VmConfig::from(&spec.without_device(id));
    }

    /// The state of a device, and the job that changes it.
    pub(super) fn change_of(&self, id: &str) -> (DeviceState, Option<u64>) {
        let changes = self.0.changes.lock();
        let found = changes.iter().find(|(changing, ..)| changing == id);
        found.map_or((DeviceState::Present, None), |(_, state, handle)| {
            (*state, Some(handle.id()))
        })
    }

    pub(super) fn add(&self, kind: DeviceKind, description: &str) -> Result<Job, AddError> {
        let spec = self.running_spec()?;
        let (spec, id) = match kind {
            DeviceKind::Disk => {
                let spec = spec.with_disk(description)?;
                let id = spec.disks.last().unwrap().id.to_string();
                (spec, id)
            }
            DeviceKind::Nic => {
                let spec = spec.with_nic(description)?;
                let id = spec.nics.last().unwrap().id.to_string();
                (spec, id)
            }
        };
        let handle = self
            .0
            .jobs
            .start(JobKind::AddDevice, &id, JobPhase::Opening, None)
            .map_err(Refusal::from)?;
        self.0.vm.lock().as_mut().unwrap().spec = VmConfig::from(&spec);
        let job = handle.job().unwrap();
        let change = (id, DeviceState::Adding, handle);
        self.0.changes.lock().push(change);
        Ok(job)
    }

    /// A disk's size: a MiB at first.
    pub(super) fn size_of(&self, id: &str) -> u64 {
        self.0.sizes.lock().get(id).copied().unwrap_or(1 << 20)
    }

    pub(super) fn limits_of(&self, id: &str, spec: &DiskConfig) -> DiskLimits {
        let limits = self.0.limits.lock().get(id).copied();
        limits.or(spec.limits).unwrap_or_default()
    }

    pub(super) fn open_disk(&self, id: &str) -> Result<Disk, Refusal> {
        let find = || {
            self.disks()
                .map(|disks| disks.into_iter().find(|d| d.id == id))
        };
        let id = id.to_owned();
        let Some(disk) = find()? else {
            let kind = DeviceKind::Disk;
            return Err(Refusal::NoDevice { kind, id });
        };
        match disk.size {
            Some(_) => Ok(disk),
            None => Err(Refusal::DiskClosed { id }),
        }
    }

    pub(super) fn resize_one(&self, id: &str, size: Option<u64>) -> Result<Disk, Refusal> {
        let disk = self.open_disk(id)?;
        let old = disk.size.unwrap_or_default();
        let new = size.unwrap_or(2 * old);
        if new < old {
            return Err(Refusal::DiskSize("it cannot shrink".to_owned()));
        }
        if new > 1 << 40 {
            return Err(Refusal::HostFailed("the host is broken".to_owned()));
        }
        self.0.sizes.lock().insert(id.to_owned(), new);
        let size = Some(new);
        Ok(Disk { size, ..disk })
    }

    pub(super) fn exchange(
        &self,
        id: &str,
        path: Option<PathBuf>,
        force: bool,
    ) -> Result<Cdrom, Refusal> {
        let state = self.read().ok_or(Refusal::NoVm)?.state;
        if !matches!(state, VmState::Running | VmState::Paused) {
            return Err(Refusal::MediumNotNow { state });
        }
        let there = self.cdroms()?.into_iter().find(|drive| drive.id == id);
        let there = there.ok_or_else(|| Refusal::NoCdrom { id: id.to_owned() })?;
        if path.as_ref().is_some_and(|path| path.ends_with("absent")) {
            return Err(Refusal::NoMedium("there is no such file".to_owned()));
        }
        if there.locked && !force {
            return Err(Refusal::TrayLocked("the guest has locked it".to_owned()));
        }
        let drive = Cdrom {
            size: path.as_ref().map(|_| 2048),
            medium: path.clone(),
            locked: false,
            ..there
        };
        self.0.media.lock().insert(id.to_owned(), path);
        Ok(drive)
    }

    pub(super) fn remove(
        &self,
        kind: DeviceKind,
        id: &str,
        deadline: Duration,
    ) -> Result<Job, Refusal> {
        let spec = self.running_spec()?;
        let is_there = match kind {
            DeviceKind::Disk => spec.disks.iter().any(|disk| disk.id.as_str() == id),
            DeviceKind::Nic => spec.nics.iter().any(|nic| nic.id.as_str() == id),
        };
        let id = id.to_owned();
        if !is_there {
            return Err(Refusal::NoDevice { kind, id });
        }
        if let (_, Some(job)) = self.change_of(&id) {
            return Err(Refusal::DeviceBusy { id, job });
        }
        let (kind, phase) = (JobKind::RemoveDevice, JobPhase::WaitingForGuest);
        let handle = self.0.jobs.start(kind, &id, phase, Some(deadline))?;
        let job = handle.job().unwrap();
        let change = (id, DeviceState::Removing, handle);
        self.0.changes.lock().push(change);
        Ok(job)
    }
}
