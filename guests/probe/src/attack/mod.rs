//! `paddock-probe --attack DEVICE [GROUP]...`: runs the cases of [`paddock_probe::hostile`] on a device of this guest.
//!
//! A process of its own, as root: it takes the device, and one beside it, from the kernel's drivers, speaks to them through sysfs,
//! `/dev/mem`, ports and locked memory, and gives them back whatever happened. Each result is a line of JSON on standard output.
//! Meanwhile the guest has not got the device: attacking a console takes the agent's port away, and the results go to a file.
//!
//! Single-threaded, for the right to use ports is a thread's.

mod arena;
mod function;
mod mapping;
mod physical;
mod ports;

use arena::Arena;
use function::Taken;
use paddock_probe::hostile::machine::{self, Machine};
use paddock_probe::hostile::{GROUPS, Group, Kind, run};
use physical::DevMem;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::sysfs;

/// How it is asked for.
pub const ATTACK: &str = "--attack";

/// This guest.
struct Guest {
    target: Taken,
    neighbour: Option<Taken>,
    arena: Arena,
    physical: Option<DevMem>,
    ram_end: u64,
}

impl Machine for Guest {
    fn function(&self) -> &dyn machine::Function {
        &self.target
    }
    fn neighbour(&self) -> Option<&dyn machine::Function> {
        self.neighbour
            .as_ref()
            .map(|taken| taken as &dyn machine::Function)
    }
    fn ram(&self) -> &dyn machine::Ram {
        &self.arena
    }
    fn ram_end(&self) -> u64 {
        self.ram_end
    }
    fn ports(&self) -> Option<&dyn machine::Ports> {
        Some(&ports::Allowed)
    }
    fn physical(&self) -> Option<&dyn machine::Physical> {
        self.physical
            .as_ref()
            .map(|memory| memory as &dyn machine::Physical)
    }
}

/// Runs the groups named, or all of them, on the first device of a kind. Success is that they were run, whatever came of them.
pub fn main(arguments: &[String]) -> ExitCode {
    match attack(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("paddock-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn attack(arguments: &[String]) -> Result<(), String> {
    let (kind, names) = arguments
        .split_first()
        .ok_or_else(|| format!("say what to attack: {}", Kind::names()))?;
    let kind: Kind = kind.parse()?;
    let groups = groups(names)?;
    let guest = take(kind)?;
    let mut told = Ok(());
    for group in groups {
        run(&guest, kind, group, |record| {
            if told.is_ok() {
                told = tell(&record);
            }
        });
    }
    told.map_err(|error| format!("standard output: {error}"))
}

fn groups(names: &[String]) -> Result<Vec<&'static Group>, String> {
    if names.is_empty() {
        return Ok(GROUPS.iter().collect());
    }
    let find = |name: &String| {
        GROUPS
            .iter()
            .find(|group| group.name == name)
            .ok_or_else(|| {
                let known: Vec<_> = GROUPS.iter().map(|group| group.name).collect();
                let known = known.join(", ");
                format!("no group of cases is named '{name}'; there are {known}")
            })
    };
    names.iter().map(find).collect()
}

fn tell(record: &paddock_probe::hostile::Record) -> io::Result<()> {
    let mut line = serde_json::to_string(record)?;
    line.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.flush()
}

/// Takes a device of this kind, and one of another for a neighbour; never the console for that, over which the agent talks, nor a memory
/// device, whose memory may be in use.
fn take(kind: Kind) -> Result<Guest, String> {
    let arena = Arena::new()?;
    ports::allow()?;
    let functions = function::list();
    let place = |wanted: &dyn Fn(Kind) -> bool| {
        let found = functions.iter().find(|(_, kind)| wanted(*kind));
        found.map(|(address, _)| address.clone())
    };
    let target = place(&|found| found == kind)
        .ok_or_else(|| format!("this guest has no virtio device of kind {}", kind.name()))?;
    let neighbour = place(&|found| found != kind && !matches!(found, Kind::Console | Kind::Mem));
    Ok(Guest {
        target: Taken::new(&target)?,
        neighbour: neighbour.as_deref().map(Taken::new).transpose()?,
        arena,
        physical: DevMem::open(),
        ram_end: ram_end().ok_or("/sys/firmware/memmap tells of no RAM")?,
    })
}

/// The first address behind the firmware's last range of RAM.
fn ram_end() -> Option<u64> {
    const MAP: &str = "/sys/firmware/memmap";
    sysfs::names(MAP)
        .iter()
        .filter(|entry| sysfs::text(format!("{MAP}/{entry}/type")) == "System RAM")
        .filter_map(|entry| sysfs::hex(format!("{MAP}/{entry}/end")))
        .max()
        .map(|last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_checked() {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(attack(&[]).unwrap_err().contains("blk"));
        assert!(
            attack(&words(&["floppy"]))
                .unwrap_err()
                .contains("'floppy'")
        );
        let unknown = groups(&words(&["rings", "strings"])).unwrap_err();
        assert!(
            unknown.contains("'strings'") && unknown.contains("msix"),
            "{unknown}"
        );
        assert_eq!(groups(&[]).unwrap().len(), GROUPS.len());
        assert_eq!(groups(&words(&["msix"])).unwrap()[0].name, "msix");
    }
}
