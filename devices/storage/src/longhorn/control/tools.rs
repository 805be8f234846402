//! What only the controller service's callers ask for.

use std::future::Future;

use super::expand::each;
use super::limits::{MAX_SNAPSHOTS, Settings};
use super::peer::Peer;
use super::{Admin, Control};
use crate::longhorn::error::VolumeError;
use crate::longhorn::options::ReplicaAddress;

impl Control {
    fn option_error(&self, problem: impl Into<String>) -> VolumeError {
        VolumeError::Options {
            problem: format!("volume {}: {}", self.options.name, problem.into()),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings.lock());
    }

    /// Has all replicas take note of a limit; if one does not, they are all told the former again.
    async fn limit<T, Fut>(
        &self,
        admin: &Admin,
        (former, new): (T, T),
        tell: impl Fn(Peer, T) -> Fut,
    ) -> Result<(), VolumeError>
    where
        T: Copy,
        Fut: Future<Output = Result<(), VolumeError>> + Send + 'static,
    {
        let live = self.live(admin);
        let told = each(&live, |peer| tell(peer, new)).await;
        let told = told.into_iter().collect::<Result<(), _>>();
        if told.is_err() {
            // Whoever cannot be told now is told what it knows anyway.
            each(&live, |peer| tell(peer, former)).await;
        }
        told
    }

    /// Limits the number of snapshots.
    pub(crate) async fn set_max_snapshots(&self, count: i32) -> Result<(), VolumeError> {
        if !(1..=MAX_SNAPSHOTS).contains(&count) {
            let problem = format!("{count} snapshots: at most 1 to {MAX_SNAPSHOTS} can be allowed");
            return Err(self.option_error(problem));
        }
        let admin = self.administrate().await?;
        let used = self.source(&admin)?.1.get().await?.snapshots_used;
        if count < used {
            let problem = format!(
                "it has {used} snapshots, so no fewer can be allowed; remove some, and purge them"
            );
            return Err(self.state_error(problem));
        }
        let limits = (self.settings().max_snapshots, count);
        let tell = |peer: Peer, count| async move { peer.set_max_snapshots(count).await };
        self.limit(&admin, limits, tell).await?;
        self.change(|settings| settings.max_snapshots = count);
        Ok(())
    }

    /// Limits the bytes that snapshots take on a replica; 0 for any.
    pub(crate) async fn set_max_snapshot_bytes(&self, size: i64) -> Result<(), VolumeError> {
        if size < 0 {
            return Err(self.option_error(format!("{size} bytes of snapshots: give 0 for any")));
        }
        let admin = self.administrate().await?;
        let used = self.source(&admin)?.1.get().await?.snapshot_bytes;
        if size != 0 && size < used {
            let problem = format!(
                "its snapshots take {used} bytes, so no fewer can be allowed; remove some, and purge them"
            );
            return Err(self.state_error(problem));
        }
        let limits = (self.settings().max_snapshot_bytes, size);
        let tell = |peer: Peer, size| async move { peer.set_max_snapshot_bytes(size).await };
        self.limit(&admin, limits, tell).await?;
        self.change(|settings| settings.max_snapshot_bytes = size);
        Ok(())
    }

    /// Tells the replicas what an unmap would do.
    pub(crate) async fn set_unmap_marks_removed(&self, enabled: bool) -> Result<(), VolumeError> {
        let admin = self.administrate().await?;
        self.on_all(
            &admin,
            move |peer| async move { peer.set_unmap_marks_removed(enabled).await },
            |_, info| info.unmap_marks_removed == enabled,
        )
        .await?;
        self.change(|settings| settings.unmap_marks_removed = enabled);
        Ok(())
    }

    /// How many replicas one is rebuilt from at once, at most.
    pub(crate) fn set_sync_sources(&self, count: i32) -> Result<(), VolumeError> {
        match usize::try_from(count) {
            Ok(count) if count > 0 => {
                self.change(|settings| settings.sync_sources = count);
                Ok(())
            }
            _ => Err(self.option_error(format!(
                "{count} replicas to rebuild another from: it is at least 1"
            ))),
        }
    }

    /// Keeps anybody from beginning to use the volume, while nobody does; or lets them again.
    pub(crate) async fn withhold(&self, withheld: bool) -> Result<(), VolumeError> {
        // No queue is opened meanwhile.
        let _admin = self.administrate().await?;
        if withheld && self.shared.is_used() {
            return Err(self.state_error(
                "a VM uses it, so its frontend cannot be shut down; stop the VM, or detach the disk",
            ));
        }
        self.change(|settings| settings.withheld = withheld);
        Ok(())
    }

    /// Leaves a replica, as if it had failed.
    pub(crate) async fn fail_replica(&self, address: &ReplicaAddress) -> Result<(), VolumeError> {
        let _admin = self.administrate().await?;
        let member = self.member(address)?;
        self.ensure_spare(&member)?;
        self.shared.fail(&member, "a tool said that it had failed");
        Ok(())
    }

    /// Closes the volume, while nobody uses it.
    pub(crate) async fn shut_down(&self) -> Result<(), VolumeError> {
        self.withhold(true).await?;
        self.close().await
    }
}
