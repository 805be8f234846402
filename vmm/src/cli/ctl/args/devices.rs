//! The command line for devices: disks, CD-ROM drives and network interfaces.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use paddock_api::spec::ByteSize;

use super::{WaitArgs, seconds, size};

/// `paddock ctl disks`
#[derive(Debug, Subcommand)]
pub enum DisksCommand {
    /// All of them
    List,
    /// One of them
    Show(DeviceArgs),
    /// Plug a disk in; done when it is there for the guest to find
    Add(AddDiskArgs),
    /// Ask the guest to let go of a disk; done when it has, and the disk is closed
    ///
    /// When the guest does not let go by the deadline, the disk stays, and can be removed again later.
    Remove(RemoveArgs),
    /// Make a disk larger, or have the guest told how large it has become on the host
    ///
    /// A file is made longer; a block device is grown on the host before. A disk never shrinks.
    Resize(ResizeDiskArgs),
    /// Limit how much I/O the guest may do on a disk, from now on; what is not given has no limit
    Limit(LimitDiskArgs),
}

/// `paddock ctl disks limit`
#[derive(Debug, Args)]
pub struct LimitDiskArgs {
    /// Its id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: String,
    /// Requests a second
    #[arg(long, value_name = "COUNT")]
    pub iops: Option<u64>,
    /// Requests at once, after a while with none [default: those of a tenth of a second]
    #[arg(long, value_name = "COUNT", requires = "iops")]
    pub iops_burst: Option<u64>,
    /// Bytes a second, read, written and zeroed
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub bandwidth: Option<ByteSize>,
    /// Bytes at once, after a while with none [default: those of a tenth of a second]
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "bandwidth")]
    pub bandwidth_burst: Option<ByteSize>,
}

/// `paddock ctl disks resize`
#[derive(Debug, Args)]
pub struct ResizeDiskArgs {
    /// Its id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: String,
    /// The size it is to have; without one, that of its file or block device
    #[arg(value_name = "SIZE", value_parser = size)]
    pub size: Option<ByteSize>,
}

/// `paddock ctl disks add`
#[derive(Debug, Args)]
pub struct AddDiskArgs {
    /// The disk: PATH, or path=PATH with any of the keys below
    ///
    /// readonly=on|off, id=ID, serial=TEXT, queues=N, queue-size=N, direct=auto|on|off (bypass the host's page cache),
    /// engine=auto|io_uring|threads, block-size=512|4096 (of a raw image), on-error=report|stop|retry (when the host fails: tell the
    /// guest, pause the VM, try again for retry-deadline=SECONDS). A comma in a value is written twice. A relative PATH starts here, not
    /// where the process of the VM does.
    ///
    /// In place of a path, volume=NAME,replica=HOST:PORT for a replicated volume, with a replica= for each replica, and size=SIZE, timeout=SECONDS (8 to 30),
    /// revision-counter=on|off, salvage=on|off, record=FILE (of the replicas that have everything),
    /// controller=ADDRESS:PORT (for Longhorn's tools); or longhorn-socket=PATH,size=SIZE for one behind a running engine of Longhorn's.
    #[arg(
        value_name = "DISK",
        value_hint = clap::ValueHint::FilePath,
        required_unless_present = "spec",
        conflicts_with = "spec"
    )]
    pub disk: Option<String>,
    /// How the description is given instead, and whether to wait.
    #[command(flatten)]
    pub more: AddArgs,
}

/// `paddock ctl cdroms`
#[derive(Debug, Subcommand)]
pub enum CdromsCommand {
    /// All of them, with what is in them
    List,
    /// One of them
    Show(DeviceArgs),
    /// Insert a medium, in place of the one that is there
    ///
    /// One that the guest has mounted is locked in, and stays. The guest is asked to eject it; the command can be given again, or --force.
    Insert(InsertArgs),
    /// Eject the medium
    ///
    /// One that the guest has mounted is locked in, and stays. The guest is asked to eject it; the command can be given again, or --force.
    Eject(EjectArgs),
}

/// `paddock ctl cdroms insert`
#[derive(Debug, Args)]
pub struct InsertArgs {
    /// The drive's id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: String,
    /// The medium: an image file or a block device. A relative PATH starts here, not where the process of the VM does
    #[arg(value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    pub path: PathBuf,
    /// Whether the guest is asked.
    #[command(flatten)]
    pub force: ForceArgs,
}

/// `paddock ctl cdroms eject`
#[derive(Debug, Args)]
pub struct EjectArgs {
    /// The drive's id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: String,
    /// Whether the guest is asked.
    #[command(flatten)]
    pub force: ForceArgs,
}

/// Whether a medium that is locked in is taken away.
#[derive(Debug, Clone, Copy, Args)]
pub struct ForceArgs {
    /// Take a medium away that the guest has locked in; it does not get over that if it uses it
    #[arg(long)]
    pub force: bool,
}

/// `paddock ctl nics`
#[derive(Debug, Subcommand)]
pub enum NicsCommand {
    /// All of them
    List,
    /// One of them
    Show(DeviceArgs),
    /// Plug a NIC in; done when it is there for the guest to find
    Add(AddNicArgs),
    /// Ask the guest to let go of a NIC; done when it has, and its tap is closed
    ///
    /// When the guest does not let go by the deadline, the NIC stays, and can be removed again later.
    Remove(RemoveArgs),
}

/// `paddock ctl nics add`
#[derive(Debug, Args)]
pub struct AddNicArgs {
    /// The NIC: tap=NAME for an existing tap, or bridge=NAME to have one made on a bridge
    ///
    /// With bridge: vlan=1..4094. With either: mac=ADDRESS, mtu=BYTES, queues=N (pairs), queue-size=N, id=ID.
    #[arg(
        value_name = "NET",
        required_unless_present = "spec",
        conflicts_with = "spec"
    )]
    pub net: Option<String>,
    /// How the description is given instead, and whether to wait.
    #[command(flatten)]
    pub more: AddArgs,
}

/// What adding a disk and adding a NIC have in common.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Read it from FILE, or from standard input if it is -: JSON, as an element of `disks` or `nics` in a VM spec
    #[arg(long, value_name = "FILE")]
    pub spec: Option<PathBuf>,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// A device.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Its id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: String,
}

/// A device to be removed.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Its id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: String,
    /// How long the guest may take to let go of it [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds(3600))]
    pub deadline: Option<u64>,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}
