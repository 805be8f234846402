//! What the VM is made of at present: its spec, and which of its devices are being added or removed by which job.
//!
//! Changed by requests as they are taken, so that an id is in use from then on, and by the driver as jobs end. Any thread may
//! look.

use std::collections::HashMap;
use std::sync::Arc;

use paddock_api::device::{DeviceKind, DeviceState};
use paddock_api::spec::VmSpec;
use parking_lot::Mutex;

use crate::machine::devices::DeviceKey;

/// The inventory. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Inventory(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    spec: Arc<VmSpec>,
    /// By the device's id: no two devices have the same, of whatever kind they are.
    changing: HashMap<String, (DeviceState, u64)>,
}

/// Why a change cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// There is no such device.
    Absent,
    /// This job is changing it.
    Changing(u64),
    /// The spec is another one by now.
    Outdated,
}

impl Inventory {
    /// As the VM is made.
    #[must_use]
    pub fn new(spec: Arc<VmSpec>) -> Self {
        let changing = HashMap::new();
        Self(Arc::new(Mutex::new(Inner { spec, changing })))
    }

    /// The spec, with what is being added and what is not removed yet.
    #[must_use]
    pub fn spec(&self) -> Arc<VmSpec> {
        Arc::clone(&self.0.lock().spec)
    }

    /// The state of a device, and the job that changes it.
    #[must_use]
    pub fn state_of(&self, id: &str) -> (DeviceState, Option<u64>) {
        let inner = self.0.lock();
        let found = inner.changing.get(id);
        found.map_or((DeviceState::Present, None), |(state, job)| {
            (*state, Some(*job))
        })
    }

    /// Makes `after`, which has the device `id` more than `before`, the spec, if nothing changed since `before`. `job` is asked for
    /// the number of the job that adds it.
    ///
    /// # Errors
    /// [`Denied::Outdated`], or what `job` says.
    pub fn begin_adding<E: From<Denied>>(
        &self,
        before: &Arc<VmSpec>,
        after: VmSpec,
        id: &str,
        job: impl FnOnce() -> Result<u64, E>,
    ) -> Result<(), E> {
        let mut inner = self.0.lock();
        if !Arc::ptr_eq(before, &inner.spec) {
            return Err(Denied::Outdated.into());
        }
        let job = job()?;
        inner.spec = Arc::new(after);
        let change = (DeviceState::Adding, job);
        inner.changing.insert(id.to_owned(), change);
        Ok(())
    }

    /// Notes that a device is to be removed. `job` is asked for the number of the job that does it.
    ///
    /// # Errors
    /// When there is no such device, it is being changed, or what `job` says.
    pub fn begin_removing<E: From<Denied>>(
        &self,
        key: &DeviceKey,
        job: impl FnOnce() -> Result<u64, E>,
    ) -> Result<(), E> {
        let mut inner = self.0.lock();
        let (is_there, id) = match key {
            DeviceKey::Disk(id) => (inner.spec.disks.iter().any(|d| d.id.as_str() == id), id),
            DeviceKey::Nic(id) => (inner.spec.nics.iter().any(|n| n.id.as_str() == id), id),
            _ => return Err(Denied::Absent.into()),
        };
        if !is_there {
            return Err(Denied::Absent.into());
        }
        if let Some((_, job)) = inner.changing.get(id) {
            return Err(Denied::Changing(*job).into());
        }
        let job = job()?;
        let change = (DeviceState::Removing, job);
        inner.changing.insert(id.clone(), change);
        Ok(())
    }

    /// The device is plugged in: it was added, or not removed after all.
    pub fn settle(&self, id: &str) {
        self.0.lock().changing.remove(id);
    }

    /// The device is not there any more.
    pub fn forget(&self, id: &str) {
        let mut inner = self.0.lock();
        inner.spec = Arc::new(inner.spec.without_device(id));
        inner.changing.remove(id);
    }
}

/// The key of a device of this kind.
#[must_use]
pub fn key(kind: DeviceKind, id: &str) -> DeviceKey {
    match kind {
        DeviceKind::Disk => DeviceKey::Disk(id.to_owned()),
        DeviceKind::Nic => DeviceKey::Nic(id.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory() -> Inventory {
        let text =
            r#"{"boot": {"kernel": "/k"}, "disks": [{"path": "/a"}], "nics": [{"tap": "t"}]}"#;
        Inventory::new(Arc::new(VmSpec::from_json(text).unwrap()))
    }

    fn disk(id: &str) -> DeviceKey {
        key(DeviceKind::Disk, id)
    }

    #[test]
    fn of_two_that_begin_at_once_one_looks_again() {
        let inventory = inventory();
        let before = inventory.spec();
        let after = |path: &str| {
            before
                .with_disk(&format!(r#"{{"path": "{path}"}}"#))
                .unwrap()
        };
        let begin = |path: &str, job| {
            inventory.begin_adding::<Denied>(&before, after(path), "disk1", || Ok(job))
        };
        assert_eq!(begin("/b", 1), Ok(()));
        assert_eq!(begin("/c", 2), Err(Denied::Outdated));
        assert_eq!(inventory.state_of("disk1"), (DeviceState::Adding, Some(1)));
        assert_eq!(inventory.spec().disks.len(), 2);
        inventory.settle("disk1");
        assert_eq!(inventory.state_of("disk1"), (DeviceState::Present, None));
        inventory.forget("disk1");
        assert_eq!(inventory.spec().disks.len(), 1);
    }

    #[test]
    fn a_device_has_one_change_at_a_time() {
        let inventory = inventory();
        let begin = |key: &DeviceKey, job| inventory.begin_removing::<Denied>(key, || Ok(job));
        assert_eq!(begin(&disk("disk9"), 1), Err(Denied::Absent));
        assert_eq!(begin(&disk("nic0"), 1), Err(Denied::Absent));
        assert_eq!(begin(&DeviceKey::Rng, 1), Err(Denied::Absent));
        assert_eq!(begin(&disk("disk0"), 1), Ok(()));
        assert_eq!(begin(&disk("disk0"), 2), Err(Denied::Changing(1)));
        assert_eq!(begin(&key(DeviceKind::Nic, "nic0"), 2), Ok(()));
        inventory.settle("disk0");
        let refused = inventory.begin_removing(&disk("disk0"), || Err(Denied::Outdated));
        assert_eq!(refused, Err(Denied::Outdated));
        assert_eq!(inventory.state_of("disk0"), (DeviceState::Present, None));
    }
}
