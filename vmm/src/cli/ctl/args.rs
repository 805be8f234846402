//! The command line of `paddock ctl`, with its help.

mod devices;
#[cfg(test)]
mod tests;
mod volumes;

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use paddock_api::spec::ByteSize;

pub use self::devices::{AddArgs, CdromsCommand, DisksCommand, ForceArgs, NicsCommand, RemoveArgs};
pub use self::volumes::{ReplicasCommand, SnapshotsCommand};
use crate::cli::args::SpecArgs;

/// The environment variable that names the API's socket.
pub const SOCKET_VARIABLE: &str = "PADDOCK_API_SOCKET";

/// What `paddock ctl --help` tells at its end.
pub const NOTES: &str = "\
Answers
  Tables and sentences for people, coloured on a terminal unless NO_COLOR is set; with --json what the API answered, on standard output. \
Why something was not done is told on standard error, with every mistake and its place in what was sent; with --json the API's \
problem (RFC 9457) is printed as well.

Jobs
  Adding and removing devices, CPUs, replicas and snapshots are jobs. The commands that start one wait for its end. On a terminal they \
show how far it is, with a bar where something is counted, such as CPUs or bytes; elsewhere standard error gets a line for what is new after a second. With \
--no-wait they print the job as it begins. Ctrl-C ends the waiting and not the job.

Exit status
  0  done
  1  the call or the job failed, or was given up waiting for
  2  the command line, or the spec that was given, is wrong

Examples
  export PADDOCK_API_SOCKET=/run/vm/api.sock

  paddock ctl vm create --kernel vmlinuz --disk root.img --balloon
  paddock ctl vm create --spec vm.toml
  paddock ctl vm show

  paddock ctl disks add data.img,id=data,readonly
  paddock ctl disks resize data 20G
  paddock ctl disks remove data --deadline 60
  echo '{\"bridge\": \"br0\", \"vlan\": 100}' | paddock ctl nics add --spec -

  paddock ctl replicas add data 10.0.0.4:10000
  paddock ctl snapshots create data before-upgrade

  paddock ctl cdroms insert cdrom0 install.iso
  paddock ctl cdroms eject cdrom0

  paddock ctl cpus set 4
  paddock ctl memory set 2G
  paddock ctl balloon set 256M
  paddock ctl events --after 0 --json | jq -c .
  paddock ctl vm power-button --wait";

/// `paddock ctl`
#[derive(Debug, Args)]
pub struct CtlArgs {
    /// The unix socket of the API, as given to `paddock run` or `paddock serve`
    #[arg(
        long,
        value_name = "PATH",
        env = SOCKET_VARIABLE,
        hide_env_values = true,
        global = true,
        help_heading = "The API"
    )]
    pub api_socket: Option<PathBuf>,

    /// How long an answer may take
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = seconds(86400),
        global = true,
        help_heading = "The API"
    )]
    pub timeout: u64,

    /// Print the API's answers as JSON, for programs
    #[arg(long, global = true, help_heading = "The API")]
    pub json: bool,

    /// What to call.
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// What the API has.
#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// The VM of the process: create, show, delete, press its buttons
    #[command(subcommand)]
    Vm(VmCommand),
    /// Its disks, added and removed while it runs
    #[command(subcommand, alias = "disk")]
    Disks(DisksCommand),
    /// The replicas of a disk that is a replicated volume
    #[command(subcommand, alias = "replica")]
    Replicas(ReplicasCommand),
    /// The snapshots of a disk that is a replicated volume
    #[command(subcommand, alias = "snapshot")]
    Snapshots(SnapshotsCommand),
    /// Its CD-ROM drives, and the media in them
    #[command(subcommand, alias = "cdrom")]
    Cdroms(CdromsCommand),
    /// Its network interfaces, added and removed while it runs
    #[command(subcommand, alias = "nic")]
    Nics(NicsCommand),
    /// How many CPUs it has: more or fewer while it runs, up to its max
    #[command(subcommand, alias = "cpu")]
    Cpus(CpusCommand),
    /// How much memory it has: more or less while it runs, up to its max
    #[command(subcommand)]
    Memory(MemoryCommand),
    /// Its balloon: memory taken from the running guest, and what it says of its memory
    #[command(subcommand)]
    Balloon(BalloonCommand),
    /// What takes a while
    #[command(subcommand, alias = "job")]
    Jobs(JobsCommand),
    /// Follow what happens, until the process ends or Ctrl-C
    ///
    /// A line an event: its number, the time (UTC), what happened; with --json an object an event, one a line. A connection that is
    /// lost is made again, and goes on after the last event that was printed.
    Events(EventsArgs),
    /// Print what it does and what it costs, as Prometheus reads it; with --json, an array of samples
    Metrics,
    /// Print the API's description (OpenAPI 3.1, JSON), as the process has it
    Openapi,
}

/// `paddock ctl vm`
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Make a VM and start it; done when its guest runs
    ///
    /// It is described as for `paddock run`: by flags, by a file, or by both. It has no terminal: its serial port is off unless --serial
    /// or the file puts it somewhere. Relative paths start here, not where the process of the VM does; descriptors (fd:…) are those of that
    /// process.
    Create(Box<CreateArgs>),
    /// Its state, its parts, and how it ended
    Show,
    /// Stop it at once and forget it; the guest is not asked
    ///
    /// A process that was started by `paddock run` ends with it.
    Delete,
    /// Press its power button; what that does is the guest's choice
    PowerButton(PowerButtonArgs),
    /// Reset it without asking the guest
    Reset,
    /// Pull its NMI line: Linux shows where it is stuck, or panics, as it is configured
    Nmi,
    /// Stop its processors where they are; what the guest has asked of its devices is still done
    Pause,
    /// Let a paused guest go on, and try disks that fail again
    Resume,
}

/// `paddock ctl vm create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: SpecArgs,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `paddock ctl vm power-button`
#[derive(Debug, Args)]
pub struct PowerButtonArgs {
    /// Wait for the VM's end; with --json its event is printed
    #[arg(long)]
    pub wait: bool,
    /// Wait at most so long
    #[arg(long, value_name = "SECONDS", value_parser = seconds(MAX_WAIT), requires = "wait")]
    pub max_wait: Option<u64>,
}

/// Whether to wait for the end of what was started.
#[derive(Debug, Default, Clone, Copy, Args)]
pub struct WaitArgs {
    /// Do not wait for the end of what was started
    #[arg(long, help_heading = "Waiting")]
    pub no_wait: bool,
    /// Wait at most so long; what was started goes on
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = seconds(MAX_WAIT),
        conflicts_with = "no_wait",
        help_heading = "Waiting"
    )]
    pub max_wait: Option<u64>,
}

/// `paddock ctl cpus`
#[derive(Debug, Subcommand)]
pub enum CpusCommand {
    /// How many there are, should be, and may be
    Show,
    /// Have so many CPUs in all; done when they are plugged in, or the guest has let go of the others
    ///
    /// The guest finds new ones by itself, and uses them once it has put them online, as distributions do. It is asked to let go of those
    /// with the highest numbers; what it has not let go of by the deadline stays, and it can be asked again. After a reset it starts with
    /// as many.
    Set(CpusSetArgs),
}

/// `paddock ctl cpus set`
#[derive(Debug, Args)]
pub struct CpusSetArgs {
    /// From 1 to the VM's max
    #[arg(value_name = "COUNT")]
    pub wanted: u64,
    /// How long the guest may take to let go [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds(3600))]
    pub deadline: Option<u64>,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `paddock ctl memory`
#[derive(Debug, Subcommand)]
pub enum MemoryCommand {
    /// How much there is, should be, and may be
    Show,
    /// Ask the guest to have so much memory in all
    ///
    /// The guest does it by and by, as far as it can; `show` tells how far it is. After a reset it starts with the first size, and is
    /// asked for as much again.
    Set(MemorySetArgs),
}

/// `paddock ctl memory set`
#[derive(Debug, Args)]
pub struct MemorySetArgs {
    /// From the VM's size to its max, a multiple of 2M and of the huge pages' size
    #[arg(value_name = "SIZE", value_parser = size)]
    pub requested: ByteSize,
}

/// `paddock ctl balloon`
#[derive(Debug, Subcommand)]
pub enum BalloonCommand {
    /// How large it is, and should be
    Show,
    /// Ask the guest for so much of its memory; 0 gives all back
    ///
    /// The guest does it by and by, as far as it can; `show` tells how far it is.
    Set(BalloonSetArgs),
    /// What the guest says of its memory, asked now
    Statistics,
}

/// `paddock ctl balloon set`
#[derive(Debug, Args)]
pub struct BalloonSetArgs {
    /// A multiple of 4K, less than the guest's memory
    #[arg(value_name = "SIZE", value_parser = size)]
    pub target: ByteSize,
}

/// `paddock ctl jobs`
#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// Those that run and the last that ended, oldest first
    List,
    /// One of them
    Show(JobArgs),
    /// Cancel one; done when it has ended, and a failure if it was done first
    Cancel(CancelArgs),
    /// Wait for the end of one; a failure if it is one
    Wait(WaitJobArgs),
}

/// A job.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// Its number
    pub id: u64,
}

/// `paddock ctl jobs cancel`
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// Its number
    pub id: u64,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `paddock ctl jobs wait`
#[derive(Debug, Args)]
pub struct WaitJobArgs {
    /// Its number
    pub id: u64,
    /// Wait at most so long; the job goes on
    #[arg(long, value_name = "SECONDS", value_parser = seconds(MAX_WAIT))]
    pub max_wait: Option<u64>,
}

/// `paddock ctl events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Begin after event number N, 0 with the oldest that is kept [default: with the next one that happens]
    #[arg(long, value_name = "N")]
    pub after: Option<u64>,
    /// End after so many events; it is a failure if the process ends before
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// Seconds; a week.
const MAX_WAIT: u64 = 7 * 86400;

fn seconds(most: u64) -> RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=most)
}

fn size(text: &str) -> Result<ByteSize, String> {
    text.parse::<ByteSize>().map_err(|error| error.to_string())
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Not at all.
    None,
    /// Until the end, but not longer than this.
    UpTo(Option<Duration>),
}

impl From<WaitArgs> for Patience {
    fn from(args: WaitArgs) -> Self {
        if args.no_wait {
            Self::None
        } else {
            Self::up_to(args.max_wait)
        }
    }
}

impl Patience {
    /// With the limit that was given, in seconds.
    pub fn up_to(seconds: Option<u64>) -> Self {
        Self::UpTo(seconds.map(Duration::from_secs))
    }
}
