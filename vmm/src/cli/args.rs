//! The command line as clap sees it, with all its help.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use paddock_api::spec::PassedFd;

use super::ctl::{self, args::CtlArgs};
use super::volume::{self, args::VolumeArgs};
use crate::terminal::EscapeKey;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const RUN_NOTES: &str = "\
Option lists
  CPUS, MEMORY, BALLOON, DISK, NET, PORT and CONSOLE are lists of key=value, separated by commas. A comma in a value is written twice. A key \
without a value switches something on. `paddock run --print-spec …` shows what a command line means.

The terminal
  Standard input and output are the serial console. On a terminal every key goes to the guest, except the escape key, Ctrl-]:
    Ctrl-] q  stop the VM at once          Ctrl-] p  press its power button
    Ctrl-] r  reset it                     Ctrl-] ]  send Ctrl-] to the guest
    Ctrl-] ?  show these

Console sockets and logs
  With socket=PATH up to 16 viewers at once see a console and type on it; who comes late first sees what was printed last, up to \
64 KiB of it, also from before a reset. Only Paddock's own user and root get in, and the socket is removed at the end. To look on and \
leave by Ctrl-C, or to type too and leave by Ctrl-]:
    socat -u UNIX-CONNECT:PATH -
    socat -,raw,echo=0,escape=0x1d UNIX-CONNECT:PATH
  A viewer that does not keep up is shown where output is missing, as is a log that could not be written. A full log FILE becomes \
FILE.1, that FILE.2, and so on.

Signals
  SIGTERM, SIGINT and SIGHUP press the power button; after --shutdown-timeout, or on a second signal, the VM is stopped. \
SIGQUIT stops it at once.

As a service
  With NOTIFY_SOCKET the service manager hears READY when the guest runs, the VM's state as STATUS, STOPPING, and a sign of life for \
WATCHDOG_USEC. Logs for the journal have priorities and no times. A socket named api in LISTEN_FDS serves the API; systemd starts a VM that \
was stopped again when somebody connects to such a socket, so the template for a unit per VM, vmm/systemd/paddock@.service, has none.
  In place of the path of a disk, medium, kernel, initramfs, firmware image, console file or socket, fd:N is descriptor N (3 or more) that was open when the process started, and \
fd:NAME the one of that name in LISTEN_FDNAMES; the same for --kvm, --api-socket and tap=. So nothing needs to be opened by the process, and \
it runs as any user. Each descriptor is used once, this very one, with its locks and flags, also after a reset; what failed with it \
has used it as well. Only a rotated log (log=) is always opened by its path. A file of such a name is ./fd:….

Exit status
  0  the guest powered off
  1  an error: something is missing on the host, or cannot be opened
  2  the command line or the VM spec is wrong
  3  the guest crashed
  4  the guest asked for a reset, with --on-reset exit
  5  the VM was stopped: escape key, signals

Examples
  paddock run --kernel vmlinuz --initramfs initrd.img --memory 1G --cpus 2

  paddock run --kernel vmlinuz --cmdline 'root=/dev/vda1 console=ttyS0' \\
      --disk root.img --disk data.img,readonly

  paddock run --kernel vmlinuz --disk root.img --net bridge=br0,vlan=100

  paddock run --firmware --variables vm-variables.fd --disk debian.raw --memory 1G

  paddock run --firmware --disk root.img --cdrom install.iso --boot-order cdrom0,disk0

  paddock run --kernel vmlinuz --disk root.img \\
      --serial socket=/run/vm/serial.sock,log=/var/log/vm.log,log-size=8M

  paddock run --spec vm.toml --memory 8G,hugepages=2M \\
      --port name=agent,socket=/run/vm/agent.sock";

const SERVE_NOTES: &str = "\
The API
  HTTP/1.1 and JSON under /api/v1, for the user of the process and root. GET /openapi.json has all of it.
    PUT /vm                         make a VM from a spec, as for `run --spec`, and start it
    GET /vm                         its spec, its state, when it came how far, and how it ended
    DELETE /vm                      stop it at once, and make room for another
    POST /vm/actions/power-button   also reset, nmi, pause and resume
    GET /events                     what happens, as it happens; ?after=N goes on after event N
    GET /metrics                    what it does and costs, for Prometheus; also without /api/v1
  `paddock ctl` makes these calls for people and scripts.
  A VM made this way has no terminal: its consoles are off, or files.

As a service
  Ready, for a service manager that waits for it (NOTIFY_SOCKET), is the process when the API answers. See `paddock run --help`.

Signals
  SIGTERM, SIGINT and SIGHUP press the VM's power button; after --shutdown-timeout, or on a second signal, it is stopped. SIGQUIT \
stops it at once.

Exit status
  0  a signal ended it
  1  an error: the socket cannot be had, or the VM did not stop
  2  the command line is wrong

Examples
  paddock serve --api-socket /run/vm/api.sock

  curl --unix-socket /run/vm/api.sock http://vm/api/v1/vm \\
      -T vm.json -H 'Content-Type: application/json'
  curl --unix-socket /run/vm/api.sock http://vm/api/v1/vm/actions/power-button -X POST
  curl --unix-socket /run/vm/api.sock http://vm/api/v1/events -N";

const DOCTOR_NOTES: &str = "\
Verdicts
  ok        as it should be
  degraded  there, but slower, smaller or less safe than it could be; or Paddock falls back to something else
  missing   not there, or not for this user: VMs that ask for it are refused; no VM runs at all only where it says so
  unknown   it could not be looked at
  Checks that need another one first, such as a guest on a KVM that does not open, are left out.

JSON
  {\"version\": 1, \"paddock\": …, \"kernel\": …, \"can_run\": true, \"counts\": {\"ok\": N, …}, \"checks\": [
    {\"group\": …, \"name\": …, \"subject\": …, \"verdict\": \"ok\", \"blocks\": false, \"found\": …, \"means\": …,
     \"fix\": {\"text\": …, \"commands\": […]}, \"facts\": {…}}, …]}
  subject (which bridge, which directory), means and fix may be null. No VM runs while a check blocks. Keys and checks are added \
while the version stays 1, none goes. For programs there are verdict, blocks and facts; the rest is worded for people.

Exit status
  0  a VM can run here
  1  no VM can run here
  2  the command line is wrong

Examples
  paddock doctor

  paddock doctor --directory /var/lib/vms

  paddock doctor --json | jq -r '.checks[] | select(.verdict != \"ok\") | .group + \".\" + .name'";

const COMPLETION_NOTES: &str = "\
Examples
  paddock completion bash >/etc/bash_completion.d/paddock
  paddock completion zsh >/usr/local/share/zsh/site-functions/_paddock
  paddock completion fish >/etc/fish/completions/paddock.fish";

const MAN_NOTES: &str = "\
Examples
  paddock man ctl disks add | man -l -
  paddock man --dir /usr/local/share/man/man1";

/// A lightweight KVM virtual machine manager: one process runs one VM
#[derive(Debug, Parser)]
#[command(name = "paddock", version, styles = STYLES, max_term_width = 100, infer_long_args = false)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a VM and attach its console to the terminal
    ///
    /// The VM is described by flags, by a JSON or TOML file (--spec), or by both: flags replace what the file says and
    /// add to its disks, CD-ROM drives, NICs and ports. The command ends when the VM does.
    #[command(after_long_help = RUN_NOTES, after_help = "Try `paddock run --help` for examples, the escape key and the exit status.")]
    Run(Box<RunArgs>),
    /// Offer the HTTP API on a unix socket, with no VM until a client makes one
    ///
    /// One process has one VM at a time. The command ends by a signal, and brings the VM to its end first.
    #[command(after_long_help = SERVE_NOTES, after_help = "Try `paddock serve --help` for examples.")]
    Serve(ServeArgs),
    /// Drive the VM of a process that offers the HTTP API
    ///
    /// Every call of the API: the VM, its disks, CD-ROM drives, NICs and balloon, jobs, events. The process is one that `paddock serve` or
    /// `paddock run --api-socket` started.
    #[command(after_long_help = ctl::args::NOTES, after_help = "Try `paddock ctl --help` for examples and the exit status.")]
    Ctl(CtlArgs),
    /// Make, inspect, snapshot, rebuild and check replicated volumes that no VM uses
    ///
    /// A volume is kept by several replica processes, Longhorn's or paddock-replica, which all have the same.
    #[command(after_long_help = volume::args::NOTES, after_help = "Try `paddock volume --help` for examples and the exit status.")]
    Volume(VolumeArgs),

    /// Say what this host offers to VMs, what it lacks, and how to mend that
    ///
    /// Looks at the processor and the hypervisor below, KVM, memory, storage, network, limits and clocks, as this user. A guest
    /// of a few instructions is run; nothing on the host is changed.
    #[command(after_long_help = DOCTOR_NOTES, after_help = "Try `paddock doctor --help` for the JSON and the exit status.")]
    Doctor(DoctorArgs),

    /// Print what makes a shell complete the words of this program
    #[command(after_help = COMPLETION_NOTES)]
    Completion(CompletionArgs),
    /// Print a manual page, or write all of them
    #[command(after_help = MAN_NOTES)]
    Man(ManArgs),
}

/// `paddock completion`
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// A shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// `paddock man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The command whose page is printed, such as `ctl disks add`; without one, that of paddock itself
    #[arg(value_name = "COMMAND")]
    pub command: Vec<String>,

    /// Write the pages of all commands into DIR, which is made if need be
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub dir: Option<PathBuf>,
}

/// `paddock doctor`
#[derive(Debug, Default, Args)]
pub struct DoctorArgs {
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,

    /// Look also at what disk images in DIR can do: O_DIRECT, locks, discard. A nameless file is made there and goes at once
    #[arg(long, value_name = "DIR")]
    pub directory: Vec<PathBuf>,
}

/// `paddock run`
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: SpecArgs,

    /// The key that introduces commands to Paddock: ctrl-X or ^X, or none [default: ctrl-]]
    #[arg(long, value_name = "KEY", help_heading = "Consoles", value_parser = escape_key)]
    pub escape_key: Option<EscapeChoice>,

    /// How long the guest has to power off when it is asked to, before the VM is stopped
    #[arg(
        long,
        value_name = "SECONDS",
        help_heading = "Behaviour",
        default_value_t = SHUTDOWN_TIMEOUT,
        value_parser = shutdown_timeout()
    )]
    pub shutdown_timeout: u64,

    /// Offer the HTTP API on a unix socket at PATH, or on one passed in as fd:N or fd:NAME; see `paddock serve --help`
    ///
    /// On by itself where LISTEN_FDS passes a socket named api, or a single one that has no name of its own, only its unit's, and that
    /// the VM does not use. A client that deletes the VM ends the command.
    #[arg(long, value_name = "PATH", help_heading = "Behaviour")]
    pub api_socket: Option<PathBuf>,

    /// Use a /dev/kvm that was opened for the process: fd:N or fd:NAME [default: the one named kvm in LISTEN_FDNAMES, or /dev/kvm]
    #[arg(long, value_name = "FD", help_heading = "Behaviour")]
    pub kvm: Option<PassedFd>,

    /// Print the VM spec that the flags and the file make, as JSON with all defaults, and end
    #[arg(long, help_heading = "Behaviour")]
    pub print_spec: bool,

    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What describes a VM: a file, flags, or both
#[derive(Debug, Default, Args)]
pub struct SpecArgs {
    /// Read the VM spec from FILE (.json or .toml), or JSON from standard input if it is -
    #[arg(long, value_name = "FILE", help_heading = "What to boot")]
    pub spec: Option<PathBuf>,

    /// Boot this Linux kernel: a bzImage, or an ELF file with a PVH entry
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "What to boot",
        required_unless_present_any = ["spec", "firmware"],
        conflicts_with = "firmware"
    )]
    pub kernel: Option<PathBuf>,

    /// Give the kernel this initramfs
    #[arg(long, value_name = "FILE", help_heading = "What to boot")]
    pub initramfs: Option<PathBuf>,

    /// The kernel's command line; console=ttyS0 if none is given, or hvc0 if that has the terminal or ttyS0 is off
    #[arg(
        long,
        value_name = "TEXT",
        help_heading = "What to boot",
        allow_hyphen_values = true
    )]
    pub cmdline: Option<String>,

    /// Boot by firmware from a disk: the host's UEFI, or this image, such as OVMF_CODE_4M.fd or SeaBIOS's bios-256k.bin
    ///
    /// The host's UEFI is what its firmware descriptors (/usr/share/qemu/firmware) offer first. Images that need system management mode
    /// (*.secboot.fd) are refused.
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "What to boot",
        num_args = 0..=1,
        default_missing_value = ""
    )]
    pub firmware: Option<String>,

    /// Keep the VM's UEFI variables in this file, made if need be; without it they end with the VM
    #[arg(long, value_name = "FILE", help_heading = "What to boot")]
    pub variables: Option<PathBuf>,

    /// Make new UEFI variables from this file rather than from the one that belongs to the firmware
    ///
    /// One with keys, such as OVMF_VARS_4M.ms.fd, switches Secure Boot on where the firmware has it, as Debian 12's OVMF_CODE_4M.fd: what is
    /// not signed is not booted. Without system management mode, which VMs here do not have, nothing keeps the guest's kernel from
    /// changing the keys: this does not protect a guest from who is root in it.
    #[arg(long, value_name = "FILE", help_heading = "What to boot")]
    pub variables_template: Option<PathBuf>,

    /// Have firmware boot from these disks, CD-ROM drives and NICs, by their ids, such as cdrom0,disk0,nic0; the first choice first
    #[arg(
        long,
        value_name = "IDS",
        help_heading = "What to boot",
        value_delimiter = ','
    )]
    pub boot_order: Vec<String>,

    /// Processors: N, or count=N,max=N,sockets=N,cores=N,threads=N,nested=on|off [default: 1]
    ///
    /// max is how many there may be while the VM runs, by `paddock ctl cpus set`; sockets, cores and threads arrange all of those.
    #[arg(long, value_name = "CPUS", help_heading = "Machine")]
    pub cpus: Option<String>,

    /// RAM: SIZE, or size=SIZE,max=SIZE,shared=on|off,hugepages=2M|1G [default: 512M]
    ///
    /// max is what it may become while the VM runs, by `paddock ctl memory set`, if the guest has a driver for virtio-mem.
    /// K, M, G and T are powers of 1024, as are KiB, MiB, GiB and TiB.
    #[arg(long, value_name = "MEMORY", help_heading = "Machine")]
    pub memory: Option<String>,

    /// Add a balloon, to take memory from the running guest: SIZE at first, or size=SIZE with the keys below [default SIZE: 0]
    ///
    /// deflate-on-oom=on|off lets the guest take memory back before it kills processes for want of it.
    /// free-page-reporting=on|off has it tell which memory is free, so that the host gets that back without asking; on unless
    /// the memory is in huge pages.
    #[arg(
        long,
        value_name = "BALLOON",
        help_heading = "Machine",
        num_args = 0..=1,
        default_missing_value = "0"
    )]
    pub balloon: Option<String>,

    /// Give the guest no source of randomness
    #[arg(long, help_heading = "Machine")]
    pub no_rng: bool,

    /// The VM's name: a-z, 0-9 and -
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub name: Option<String>,

    /// The VM's UUID, such as 6ba7b810-9dad-11d1-80b4-00c04fd430c8
    #[arg(long, value_name = "UUID", help_heading = "Machine")]
    pub uuid: Option<String>,

    /// The system's serial number (SMBIOS), which cloud-init reads too
    #[arg(long, value_name = "TEXT", help_heading = "Machine")]
    pub system_serial: Option<String>,

    /// The asset tag (SMBIOS)
    #[arg(long, value_name = "TEXT", help_heading = "Machine")]
    pub asset_tag: Option<String>,

    /// Add a string for software in the guest (SMBIOS), such as io.systemd.credential:NAME=VALUE
    #[arg(long, value_name = "TEXT", help_heading = "Machine")]
    pub oem_string: Vec<String>,

    /// Add a disk: PATH, or path=PATH with any of the keys below
    ///
    /// format=raw|qcow2 (raw by default), readonly=on|off, id=ID, serial=TEXT, queues=N, queue-size=N, direct=auto|on|off (bypass the
    /// host's page cache), engine=auto|io_uring|threads, block-size=512|4096 (of a raw image), on-error=report|stop|retry (when the host
    /// fails: tell the guest, pause the VM, try again for retry-deadline=SECONDS), iops=N and bandwidth=SIZE (limits a second). A qcow2
    /// image's backing file is named in a spec. In the place of
    /// PATH nbd=URI, an NBD server's export (nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH; nbds with TLS, and with tls-ca=FILE,
    /// tls-certificate=FILE, tls-key=FILE, tls-hostname=NAME), for which requests wait for reconnect-deadline=SECONDS.
    ///
    /// In place of a path, volume=NAME,replica=HOST:PORT for a replicated volume, with a replica= for each replica, and size=SIZE, timeout=SECONDS (8 to 30),
    /// revision-counter=on|off, salvage=on|off, record=FILE (of the replicas that have everything),
    /// controller=ADDRESS:PORT (for Longhorn's tools); or longhorn-socket=PATH,size=SIZE for one behind a running engine of Longhorn's.
    #[arg(long, value_name = "DISK", help_heading = "Devices")]
    pub disk: Vec<String>,

    /// Add a CD-ROM drive: PATH of an image, or path=PATH,id=ID; without either the tray is empty
    ///
    /// The medium can be changed while the VM runs, with `paddock ctl cdroms`.
    #[arg(
        long,
        value_name = "CDROM",
        help_heading = "Devices",
        num_args = 0..=1,
        default_missing_value = ""
    )]
    pub cdrom: Vec<String>,

    /// Add a NIC: tap=NAME for an existing tap, or bridge=NAME to have one made on a bridge
    ///
    /// tap=fd:N+M is a tap whose queues were opened for the process, one descriptor a pair, with IFF_NO_PI and IFF_VNET_HDR.
    /// With bridge: vlan=1..4094. With either: mac=ADDRESS, mtu=BYTES, queues=N (pairs), queue-size=N, id=ID.
    #[arg(long, value_name = "NET", help_heading = "Devices")]
    pub net: Vec<String>,

    /// Add a byte channel: name=NAME,socket=PATH
    ///
    /// The guest finds it as /dev/virtio-ports/NAME, the host connects to the unix socket at PATH.
    #[arg(long, value_name = "PORT", help_heading = "Devices")]
    pub port: Vec<String>,

    /// The serial port, ttyS0: terminal, off, file=PATH or socket=PATH, and the keys below [default: terminal, unless hvc0 has it]
    ///
    /// log=FILE keeps what it prints in a log as well, wherever the console is. log-size=SIZE is the size at which the log is rotated,
    /// 2M by default, and log-files=N how many files of it are kept, the present one included, 3 by default.
    #[arg(long, value_name = "CONSOLE", help_heading = "Consoles")]
    pub serial: Option<String>,

    /// The virtio console, hvc0: the same as for --serial [default: off]
    #[arg(long, value_name = "CONSOLE", help_heading = "Consoles")]
    pub hvc0: Option<String>,

    /// What a reset by the guest does [default: reboot]
    #[arg(long, value_name = "WHAT", help_heading = "Behaviour")]
    pub on_reset: Option<OnResetArg>,
}

/// `paddock serve`
#[derive(Debug, Default, Args)]
pub struct ServeArgs {
    /// Where: a unix socket that is made at PATH, for this user and root; or fd:N, fd:NAME [default: the one passed in]
    ///
    /// fd:N and fd:NAME are a socket that listens already and was passed to the process, by its number or its name in
    /// LISTEN_FDNAMES. The one named api, or the only one in LISTEN_FDS that has no name of its own, needs not be asked for: a systemd socket
    /// unit is enough.
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,

    /// Use a /dev/kvm that was opened for the process: fd:N or fd:NAME [default: the one named kvm in LISTEN_FDNAMES, or /dev/kvm]
    #[arg(long, value_name = "FD")]
    pub kvm: Option<PassedFd>,

    /// How long the guest has to power off when the process is to end, before the VM is stopped
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = SHUTDOWN_TIMEOUT,
        value_parser = shutdown_timeout()
    )]
    pub shutdown_timeout: u64,

    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Seconds.
const SHUTDOWN_TIMEOUT: u64 = 30;

fn shutdown_timeout() -> RangedU64ValueParser {
    clap::value_parser!(u64).range(0..=86400)
}

/// How to log; the same for all commands.
#[derive(Debug, Default, Clone, Copy, Args)]
pub struct LogArgs {
    /// Log this and what is more severe, to standard error
    #[arg(
        long,
        value_name = "LEVEL",
        help_heading = "Logging",
        value_enum,
        default_value_t
    )]
    pub log_level: LogLevel,

    /// Log lines of text, or of JSON
    #[arg(
        long,
        value_name = "FORMAT",
        help_heading = "Logging",
        value_enum,
        default_value_t
    )]
    pub log_format: LogFormat,
}

/// How much to log.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Something that was asked for failed.
    Error,
    /// Something is not as it should be, but goes on.
    #[default]
    Warn,
    /// The VM's life.
    Info,
    /// What the machine does.
    Debug,
    /// Everything.
    Trace,
}

/// What a log line looks like.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `--on-reset`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnResetArg {
    /// The VM starts again
    Reboot,
    /// The command ends, with status 4
    Exit,
}

/// `--escape-key`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapeChoice {
    /// This key.
    Key(EscapeKey),
    /// None: every key goes to the guest.
    None,
}

fn escape_key(text: &str) -> Result<EscapeChoice, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(EscapeChoice::None);
    }
    text.parse()
        .map(EscapeChoice::Key)
        .map_err(|error: crate::terminal::escape::NotAnEscapeKey| format!("{error}, or none"))
}

#[cfg(test)]
mod tests;
