//! What a volume tells about itself.

use std::time::Duration;

use super::member::{Failure, Mode};
use super::options::ReplicaAddress;

/// A replica, as its volume sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Where it is.
    pub address: ReplicaAddress,
    /// What it is good for.
    pub mode: Mode,
    /// Why it failed, if it has.
    pub failure: Option<Failure>,
}

/// What is being done to a replica that lacks something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It gets everything from another.
    Rebuild,
    /// The replicas are compared, for they were not closed, and may differ in what nobody was told to be written.
    Resync,
}

/// How far something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What it is.
    pub activity: Activity,
    /// The replica that is rebuilt.
    pub replica: Option<ReplicaAddress>,
    /// In per cent, 0 to 100.
    pub percent: u8,
    /// Bytes, of `total`: of a rebuild as far as the per cent tell.
    pub done: u64,
    /// Bytes that are transferred or compared; 0 while that is not known.
    pub total: u64,
}

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// RFC 3339.
    pub created: String,
    /// Whether a user asked for it.
    pub user_created: bool,
    /// It is to go.
    pub removed: bool,
    /// Bytes that it takes on a replica.
    pub size: u64,
    /// The snapshot below it.
    pub parent: Option<String>,
    /// The user's, sorted.
    pub labels: Vec<(String, String)>,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its name.
    pub name: String,
    /// How long nothing was sent to replicas, the wait for what they had been sent before included.
    pub frozen: Duration,
}

/// How far the replicas are with giving back what snapshots have that are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purge {
    /// One of them at least is at it.
    pub running: bool,
    /// In per cent, 0 to 100: of the replica that is behind the others.
    pub percent: u8,
}

/// A replica that was rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    /// From the first call to the last.
    pub took: Duration,
    /// How long nothing was sent to replicas, as in [`Taken::frozen`]: the longest of three times.
    pub frozen: Duration,
}

/// Who is told what happens to a volume. Called on its control thread; it should not take long.
pub trait Listener: Send + Sync {
    /// The replicas are these now.
    fn replicas(&self, replicas: &[ReplicaStatus]);

    /// It has so many bytes now, whoever asked for it.
    fn expanded(&self, size: u64) {
        let _ = size;
    }

    /// Something is so far; `None` when it has ended.
    fn progress(&self, progress: Option<&Progress>) {
        let _ = progress;
    }

    /// The replicas were compared to the end: all that are left have the same.
    fn compared(&self) {}

    /// That a replica has failed cannot be recorded, and no write is acknowledged until it can; `None` when it has been recorded after all. Told once each.
    fn record(&self, failure: Option<&Failure>) {
        let _ = failure;
    }

    /// A snapshot was taken, whoever asked for it.
    fn snapshot_taken(&self, taken: &Taken) {
        let _ = taken;
    }
}

/// Nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nobody;

impl Listener for Nobody {
    fn replicas(&self, _: &[ReplicaStatus]) {}
}
