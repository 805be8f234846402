//! The real Longhorn, run right on this machine: replica processes and engines of its v1 data engine, its command line, and a plain client
//! for data connections; and volumes of guests in the lab.
//!
//! Longhorn is built by `tests/conformance/longhorn/build`. Its engines put their sockets in `/var/run`, hence the tests are root's; its replicas
//! want a file system with FIEMAP, hole punching and O_DIRECT, which that of `target/` has to be. What fails shows the end of each process's
//! log, and nothing that was started outlives its test.

mod cli;
mod data;
mod engine;
pub mod guest;
mod network;
mod ports;
mod process;
mod relay;
mod replica;
mod volume;

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

pub use self::cli::{Cli, Listed};
pub use self::data::{DataConnection, DataError};
pub use self::engine::{Engine, EngineOptions};
pub use self::guest::GuestVolume;
pub use self::network::Network;
pub use self::relay::{Request, Spoiled};
pub use self::replica::{Host, Replica, ReplicaOptions};
pub use self::volume::{BLOCK, SIZE, SOON, Set, User, assert_alike, stamp};
use crate::files;

/// How long a replica or an engine may take to serve, and to end when it is asked to.
pub const START_DEADLINE: Duration = Duration::from_secs(30);

/// Longhorn's program, which is its replica, its engine and its command line.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn program() -> PathBuf {
    let path = files::target().join("conformance/longhorn");
    assert!(
        path.exists(),
        "{} is missing: run tests/conformance/longhorn/build",
        path.display()
    );
    path
}

/// Paddock's own replica, which takes the same command line as Longhorn's.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn own_replica() -> PathBuf {
    let path = files::release("paddock-replica");
    assert!(
        path.exists(),
        "{} is missing: run cargo build --release -p paddock-replica",
        path.display()
    );
    path
}

/// A directory for the replicas' directories, on the file system of `target/`: that of `/tmp` may not be one for replicas.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn directory() -> TempDir {
    let parent = files::target().join("longhorn");
    let made = std::fs::create_dir_all(&parent).and_then(|()| {
        // Longhorn wants absolute paths.
        TempDir::with_prefix_in("volume-", parent.canonicalize()?)
    });
    made.unwrap_or_else(|error| panic!("{}: {error}", parent.display()))
}

/// A volume's name that no other test uses: engines of one name would take each other's socket.
///
/// # Panics
/// When the clock is before 1970.
#[must_use]
pub fn volume_name(name: &str) -> String {
    // The number of the process would not do: several may be PID 2, each in a namespace of its own.
    match SystemTime::UNIX_EPOCH.elapsed() {
        Ok(now) => format!("paddock-{:x}-{name}", now.as_nanos()),
        Err(error) => panic!("{error}"),
    }
}

/// Whether somebody listens there.
fn is_served(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}
