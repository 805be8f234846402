//! A replica's layers against a model in memory, through crashes, and in directories that somebody else has written.

mod crash;
mod hostile;
mod model;

use std::sync::Arc;

use super::change::Snapshot;
use super::replica::{Options, Replica, now};

/// A snapshot that a user asked for.
fn snapshot(name: &str) -> Snapshot {
    Snapshot {
        name: name.to_owned(),
        user_created: true,
        created: now(),
        labels: None,
    }
}

/// A replica that is open and not served.
fn open(options: &Options, size: i64) -> Arc<Replica> {
    let replica = Replica::new(options.clone());
    replica.create(size).unwrap();
    replica.open().unwrap();
    replica
}
