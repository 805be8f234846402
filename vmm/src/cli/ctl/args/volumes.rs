//! The command line for disks that are replicated volumes.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::WaitArgs;

/// `paddock ctl replicas`
#[derive(Debug, Subcommand)]
pub enum ReplicasCommand {
    /// All of them, with why and since when one is of no use, and how far a rebuild is
    List(VolumeArgs),
    /// Add a replica and rebuild it; done when it has all of the volume
    ///
    /// Its process runs, is used by nobody, and has nothing that is to be kept. The guest goes on. Where it fails or is cancelled, the volume lets go of the
    /// replica again. The VM's spec stays as it is: name the replica there before the VM is made anew.
    Add(AddReplicaArgs),
    /// Let go of a replica: it misses what is written from now on
    ///
    /// The last one that has everything stays.
    Remove(RemoveReplicaArgs),
}

/// `paddock ctl snapshots`
#[derive(Debug, Subcommand)]
pub enum SnapshotsCommand {
    /// All of them, the oldest first
    List(VolumeArgs),
    /// Take one: of what the guest was told to be written
    ///
    /// File systems in it are as after a loss of power, unless the guest has frozen them. To go back to it, stop the VM and use `paddock volume`.
    Create(CreateSnapshotArgs),
    /// Remove one; done when the replicas have given back what it takes
    ///
    /// The guest goes on. The youngest one stays, marked as removed, until there is another above it.
    Remove(RemoveSnapshotArgs),
}

/// A disk that is a replicated volume.
#[derive(Debug, Args)]
pub struct VolumeArgs {
    /// The disk's id
    #[arg(value_name = "DISK", value_parser = NonEmptyStringValueParser::new())]
    pub disk: String,
}

/// `paddock ctl replicas add`
#[derive(Debug, Args)]
pub struct AddReplicaArgs {
    /// The disk.
    #[command(flatten)]
    pub volume: VolumeArgs,
    /// HOST:PORT of the replica's control service
    #[arg(value_name = "ADDRESS", value_parser = NonEmptyStringValueParser::new())]
    pub address: String,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `paddock ctl replicas remove`
#[derive(Debug, Args)]
pub struct RemoveReplicaArgs {
    /// The disk.
    #[command(flatten)]
    pub volume: VolumeArgs,
    /// HOST:PORT of the replica's control service
    #[arg(value_name = "ADDRESS", value_parser = NonEmptyStringValueParser::new())]
    pub address: String,
}

/// `paddock ctl snapshots create`
#[derive(Debug, Args)]
pub struct CreateSnapshotArgs {
    /// The disk.
    #[command(flatten)]
    pub volume: VolumeArgs,
    /// The snapshot's name: letters, digits, '.', '_' and '-' [default: one that nothing else has]
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Something to be noted with it; may be given more than once
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
}

/// `paddock ctl snapshots remove`
#[derive(Debug, Args)]
pub struct RemoveSnapshotArgs {
    /// The disk.
    #[command(flatten)]
    pub volume: VolumeArgs,
    /// The snapshot's name
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE".to_owned()),
    }
}
