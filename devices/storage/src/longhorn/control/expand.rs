//! What is done on all replicas at once, such as growing them.

use std::future::Future;

use tokio::task::JoinSet;

use super::peer::{Info, Peer};
use super::{Admin, Control};
use crate::longhorn::SECTOR;
use crate::longhorn::error::VolumeError;

impl Control {
    /// Does something on all replicas at once. Those that fail are left, unless all do: then nobody is, and the first says why.
    pub(super) async fn on_all<F, Fut>(&self, admin: &Admin, action: F) -> Result<(), VolumeError>
    where
        F: Fn(Peer) -> Fut,
        Fut: Future<Output = Result<Info, VolumeError>> + Send + 'static,
    {
        let live = self.live(admin);
        let mut running = JoinSet::new();
        for (place, (_, peer)) in live.iter().enumerate() {
            let future = action(peer.clone());
            running.spawn(async move { (place, future.await) });
        }
        let mut failures = Vec::new();
        while let Some(joined) = running.join_next().await {
            match joined {
                Ok((_, Ok(_))) => {}
                Ok((place, Err(error))) => failures.push((place, error)),
                Err(error) => {
                    return Err(VolumeError::Host {
                        volume: self.options.name.clone(),
                        problem: error.to_string(),
                    });
                }
            }
        }
        if failures.len() == live.len() {
            let nobody = || self.state_error("no replica is left");
            return Err(failures.pop().map_or_else(nobody, |(_, error)| error));
        }
        for (place, error) in failures {
            self.shared.fail(&live[place].0, &error.to_string());
        }
        Ok(())
    }

    /// Makes the volume larger. Queues see it with the next request.
    pub(crate) async fn expand(&self, size: u64) -> Result<(), VolumeError> {
        let admin = self.administrate_complete().await?;
        let present = self.shared.size();
        if !size.is_multiple_of(SECTOR) || i64::try_from(size).is_err() {
            return Err(self.state_error(format!("{size} bytes: a size is a multiple of 4096")));
        }
        if size < present {
            let problem = format!("it has {present} bytes, and cannot become smaller");
            return Err(self.state_error(problem));
        }
        if size == present {
            return Ok(());
        }
        // Replicas take one.
        self.ensure_room(&admin, None).await?;
        let frozen = self.shared.freeze().await;
        let grown = self
            .on_all(&admin, move |peer| async move { peer.expand(size).await })
            .await;
        if grown.is_ok() {
            self.shared.set_size(size);
        }
        drop(frozen);
        grown
    }
}
