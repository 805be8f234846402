//! Process 1 of the initramfs: mounts, modules, the agent, and the reaping of whatever is left behind.
//!
//! Nothing but this runs in process 1, so that neither a mistake in an operation nor its children can take the kernel
//! down with it. Single-threaded. The guest's user is not involved: whoever reaches this has made the initramfs.

use crate::measure::{MEASURE, Measure};
use rustix::fs::Mode;
use rustix::mount::MountFlags;
use rustix::process::WaitOptions;
use std::fs;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// How the agent is told that init stands behind it.
pub const AGENT: &str = "--agent";

const MODULES: &str = "/lib/modules";

/// A word on the kernel's command line that has init say on the console that it is there: for benchmarks, also of VMMs without a
/// port for the agent.
const ANNOUNCE: &str = "probe.announce";

/// A line for whoever reads the console; it has no other way to complain.
pub fn console(line: &str) {
    if let Ok(mut console) = fs::OpenOptions::new().write(true).open("/dev/console") {
        let _ = writeln!(console, "paddock-probe: {line}");
    }
}

/// Runs init; it returns only if there is nothing left to do.
pub fn run() -> ExitCode {
    for (source, target, flags) in [
        ("devtmpfs", "/dev", MountFlags::NOSUID),
        ("proc", "/proc", MountFlags::NOSUID),
        ("sysfs", "/sys", MountFlags::NOSUID),
        ("tmpfs", "/run", MountFlags::NOSUID),
        ("tmpfs", "/tmp", MountFlags::NOSUID),
        ("devpts", "/dev/pts", MountFlags::NOSUID),
        ("tmpfs", "/dev/shm", MountFlags::NOSUID),
    ] {
        mount(source, target, flags);
    }
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if command_line.split_whitespace().any(|word| word == ANNOUNCE) {
        console("up");
    }
    let failed = load_modules();
    if !failed.is_empty() {
        console(&format!("modules not loaded: {}", failed.join("; ")));
    }
    let _ = fs::write("/proc/sys/kernel/hostname", "probe");
    for word in command_line.split_whitespace() {
        if let Some(what) = word.strip_prefix(MEASURE) {
            measure(what);
        }
    }
    loop {
        serve();
        console("the agent has ended; starting another");
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Measures as long as that works.
fn measure(what: &str) {
    let tell = |value| console(&format!("measured {value:.1}"));
    let result = what
        .parse::<Measure>()
        .and_then(|measure| measure.run(tell).map_err(|error| error.to_string()));
    let Err(error) = result;
    console(&format!("not measured: {error}"));
}

fn mount(source: &str, target: &str, flags: MountFlags) {
    let _ = fs::create_dir_all(target);
    match rustix::mount::mount(source, target, source, flags, None) {
        // Busy: the kernel has mounted it already.
        Ok(()) | Err(rustix::io::Errno::BUSY) => {}
        Err(error) => console(&format!("cannot mount {source} on {target}: {error}")),
    }
}

/// Loads the modules in the order noted when the initramfs was made; returns what went wrong.
fn load_modules() -> Vec<String> {
    let order = match fs::read_to_string(format!("{MODULES}/order")) {
        Ok(order) => order,
        Err(error) => return vec![format!("{MODULES}/order: {error}")],
    };
    order
        .lines()
        .filter_map(|name| {
            load_module(name)
                .err()
                .map(|error| format!("{name}: {error}"))
        })
        .collect()
}

fn load_module(name: &str) -> Result<(), rustix::io::Errno> {
    let file = rustix::fs::open(
        format!("{MODULES}/{name}"),
        rustix::fs::OFlags::RDONLY,
        Mode::empty(),
    )?;
    match rustix::system::finit_module(&file, c"", 0) {
        // Some modules refuse where their device is missing, which is no fault.
        Ok(()) | Err(rustix::io::Errno::EXIST | rustix::io::Errno::NODEV) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Runs an agent to its end, reaping whatever else ends meanwhile.
fn serve() {
    let path = std::env::var("PATH").unwrap_or_default();
    let agent = Command::new("/bin/paddock-probe")
        .arg(AGENT)
        .env(
            "PATH",
            if path.is_empty() {
                "/bin:/sbin".to_owned()
            } else {
                path
            },
        )
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .spawn();
    let agent = match agent {
        Ok(agent) => agent.id(),
        Err(error) => return console(&format!("cannot start the agent: {error}")),
    };
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if u32::try_from(pid.as_raw_nonzero().get()) == Ok(agent) => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return console(&format!("cannot wait for the agent: {error}")),
        }
    }
}
