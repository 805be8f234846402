//! The way to an open volume for those who may not block, such as a control plane: what takes long runs on the volume's own thread, and goes on where
//! nobody waits for it any more.
//!
//! It does not keep the volume open. Once that is closed, or dropped, calls say so.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Weak};

use tokio::runtime::Handle;

use super::control::Control;
use super::error::VolumeError;
use super::member::Failure;
use super::options::ReplicaAddress;
use super::status::{Progress, Purge, Rebuilt, ReplicaStatus, Snapshot, Taken};

/// An open volume, from afar. Cheap to clone.
#[derive(Debug, Clone)]
pub struct VolumeHandle {
    name: Arc<str>,
    control: Weak<Control>,
    runtime: Handle,
}

impl VolumeHandle {
    pub(super) fn new(control: &Arc<Control>, runtime: Handle) -> Self {
        Self {
            name: control.options.name.as_str().into(),
            control: Arc::downgrade(control),
            runtime,
        }
    }

    /// The volume's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The replicas, those that failed included; none once the volume is gone.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaStatus> {
        let control = self.control.upgrade();
        control.map_or_else(Vec::new, |control| control.replicas())
    }

    /// How far the present rebuild or comparison is; `None` while there is none.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        self.control.upgrade()?.progress()
    }

    /// Why and since when it cannot be recorded that a replica has failed, while no write is acknowledged for that.
    #[must_use]
    pub fn record_failure(&self) -> Option<Failure> {
        self.control.upgrade()?.record_failure()
    }

    /// Runs a call on the volume's thread.
    async fn call<T, F>(&self, call: impl FnOnce(Arc<Control>) -> F) -> Result<T, VolumeError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, VolumeError>> + Send + 'static,
    {
        let control = self.control.upgrade();
        let running = control.map(|control| self.runtime.spawn(call(control)));
        let result = match running {
            Some(running) => running.await.ok(),
            None => None,
        };
        result.unwrap_or_else(|| {
            Err(VolumeError::State {
                volume: self.name.as_ref().to_owned(),
                problem: "it is closed".to_owned(),
            })
        })
    }

    /// As [`Volume::snapshot`](super::Volume::snapshot).
    ///
    /// # Errors
    /// The same.
    pub async fn snapshot(
        &self,
        name: Option<String>,
        labels: HashMap<String, String>,
    ) -> Result<Taken, VolumeError> {
        self.call(|control| async move { control.snapshot(name, labels).await })
            .await
    }

    /// As [`Volume::snapshots`](super::Volume::snapshots).
    ///
    /// # Errors
    /// The same.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, VolumeError> {
        self.call(|control| async move { control.snapshots().await })
            .await
    }

    /// As [`Volume::remove_snapshot`](super::Volume::remove_snapshot).
    ///
    /// # Errors
    /// The same.
    pub async fn remove_snapshot(&self, name: String) -> Result<(), VolumeError> {
        self.call(|control| async move { control.remove_snapshot(&name).await })
            .await
    }

    /// As [`Volume::start_purge`](super::Volume::start_purge). The guest goes on.
    ///
    /// # Errors
    /// The same.
    pub async fn start_purge(&self) -> Result<(), VolumeError> {
        self.call(|control| async move { control.start_purge().await })
            .await
    }

    /// As [`Volume::purge`](super::Volume::purge).
    ///
    /// # Errors
    /// The same.
    pub async fn purge(&self) -> Result<Purge, VolumeError> {
        self.call(|control| async move { control.purge().await })
            .await
    }

    /// As [`Volume::add_replica`](super::Volume::add_replica).
    ///
    /// # Errors
    /// The same, and when it was given up by [`cancel_rebuild`](Self::cancel_rebuild).
    pub async fn add_replica(&self, replica: ReplicaAddress) -> Result<Rebuilt, VolumeError> {
        self.call(|control| async move { control.add_replica(replica).await })
            .await
    }

    /// Gives up the rebuild of a replica, and lets go of it.
    ///
    /// # Errors
    /// When it is not being rebuilt, or not any more.
    pub async fn cancel_rebuild(&self, replica: ReplicaAddress) -> Result<(), VolumeError> {
        self.call(|control| async move { control.cancel_rebuild(&replica).await })
            .await
    }

    /// As [`Volume::remove_replica`](super::Volume::remove_replica).
    ///
    /// # Errors
    /// The same.
    pub async fn remove_replica(&self, replica: ReplicaAddress) -> Result<(), VolumeError> {
        self.call(|control| async move { control.remove_replica(&replica).await })
            .await
    }
}
