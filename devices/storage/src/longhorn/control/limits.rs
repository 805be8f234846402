//! What may be changed about a volume while it is open, and what new replicas are told of it.

use super::Control;
use super::peer::Peer;
use crate::longhorn::error::VolumeError;

/// Snapshots that a replica can have at most.
pub(crate) const MAX_SNAPSHOTS: i32 = 250;

/// What may be changed about a volume while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Snapshots that it may have.
    pub max_snapshots: i32,
    /// Bytes that its snapshots may take on a replica; 0 for any.
    pub max_snapshot_bytes: i64,
    /// Whether an unmap would mark the snapshots below the head as removed. This engine sends none.
    pub unmap_marks_removed: bool,
    /// Replicas that one is rebuilt from at once, at most.
    pub sync_sources: usize,
    /// Whether nobody may begin to use it.
    pub withheld: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_snapshots: MAX_SNAPSHOTS,
            max_snapshot_bytes: 0,
            unmap_marks_removed: false,
            sync_sources: 1,
            withheld: false,
        }
    }
}

impl Control {
    pub(crate) fn settings(&self) -> Settings {
        *self.settings.lock()
    }

    /// Tells a new replica what may have been changed.
    pub(super) async fn tell_limits(&self, peer: &Peer) -> Result<(), VolumeError> {
        let (now, default) = (self.settings(), Settings::default());
        peer.set_unmap_marks_removed(now.unmap_marks_removed)
            .await?;
        // As it comes, a replica has no others.
        if now.max_snapshots != default.max_snapshots {
            peer.set_max_snapshots(now.max_snapshots).await?;
        }
        if now.max_snapshot_bytes != default.max_snapshot_bytes {
            peer.set_max_snapshot_bytes(now.max_snapshot_bytes).await?;
        }
        Ok(())
    }
}
