//! A hostile guest driver: a table of attacks on virtio devices and the machine around them, and what each must leave behind.
//!
//! A case does one wrong thing, through the raw driver of [`driver`] or past it: to the chipset, and to what firmware talks to. What the device must do about it is declared in the table: ask
//! for a reset, go on serving, or at least keep quiet. Whatever it was, a reset must then recover the device: the driver sets it up
//! anew, and an ordinary request works. What the host must show meanwhile (the process lives, memory and log stay bounded) is
//! looked at from outside, by `tests/tests/hostile.rs`.
//!
//! Single-threaded; what a device does meanwhile it does on the host. Each wait has a deadline, and a storm lasts as long as the machine
//! says ([`Machine::storm`]). The cases take care of the guest they run in: no device is given an address that the guest's kernel uses, no
//! port that resets or powers off is written, no page or block goes but the attacker's own, and no interrupt reaches a CPU. What was
//! moved or erased that the guest or its firmware needs again is put back.

mod cases;
pub mod driver;
pub mod machine;
mod rig;

pub use rig::Rig;

use machine::Machine;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long a device may take to notice that it needs a reset.
const NOTICE: Duration = Duration::from_secs(10);

/// The devices there are attacks on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// virtio-blk, of a disk that can be written and may be spoilt.
    Blk,
    /// virtio-net.
    Net,
    /// virtio-console.
    Console,
    /// virtio-rng.
    Rng,
    /// virtio-balloon.
    Balloon,
    /// virtio-scsi with a CD-ROM drive.
    Scsi,
    /// virtio-mem, asked to have [`MEM_BLOCKS`] blocks or more plugged in, and with none that anybody uses.
    Mem,
}

/// Blocks that a memory device under attack must be asked to have plugged in, and its region have beyond that.
pub const MEM_BLOCKS: u64 = 8;

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Blk,
        Self::Net,
        Self::Console,
        Self::Rng,
        Self::Balloon,
        Self::Mem,
        Self::Scsi,
    ];

    /// The kind of the PCI function with this vendor and device id.
    #[must_use]
    pub fn of(vendor: u16, device: u16) -> Option<Self> {
        match (vendor, device) {
            (0x1af4, 0x1041) => Some(Self::Net),
            (0x1af4, 0x1042) => Some(Self::Blk),
            (0x1af4, 0x1043) => Some(Self::Console),
            (0x1af4, 0x1044) => Some(Self::Rng),
            (0x1af4, 0x1045) => Some(Self::Balloon),
            (0x1af4, 0x1048) => Some(Self::Scsi),
            (0x1af4, 0x1058) => Some(Self::Mem),
            _ => None,
        }
    }

    /// All names, for people.
    #[must_use]
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Blk => "blk",
            Self::Net => "net",
            Self::Console => "console",
            Self::Rng => "rng",
            Self::Balloon => "balloon",
            Self::Mem => "mem",
            Self::Scsi => "scsi",
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("unknown device '{name}': {}", Self::names()))
    }
}

/// What an attack must leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// The device asks for a reset (DEVICE_NEEDS_RESET).
    NeedsReset,
    /// The device serves an ordinary request, without a reset in between.
    Serves,
    /// The device does not ask for a reset; it was not set up far enough to serve.
    Calm,
    /// The specification leaves it to the device; only the reset must recover it.
    Open,
}

/// Why an attack did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The device did what it must not.
    Wrong(String),
    /// The machine has not got what the attack goes through.
    Lacking(&'static str),
}

impl From<String> for Stop {
    fn from(wrong: String) -> Self {
        Self::Wrong(wrong)
    }
}

/// What an attack comes to.
pub type Attack = Result<(), Stop>;

/// One attack.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name, unique in its group.
    pub name: &'static str,
    /// The devices it is tried on.
    pub kinds: &'static [Kind],
    /// What it must leave behind.
    pub expect: Expect,
    /// Whether the device is set up and running before.
    up: bool,
    attack: fn(&mut Rig<'_>) -> Attack,
}

impl Case {
    const fn new(
        name: &'static str,
        kinds: &'static [Kind],
        expect: Expect,
        attack: fn(&mut Rig<'_>) -> Attack,
    ) -> Self {
        Self {
            name,
            kinds,
            expect,
            up: true,
            attack,
        }
    }

    /// The device is reset and not set up before the attack.
    const fn unprepared(mut self) -> Self {
        self.up = false;
        self
    }
}

/// A part of the table.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// Whether it attacks what only a machine has that boots by UEFI firmware: its flash, and fw_cfg.
    pub firmware: bool,
    /// Its cases.
    pub cases: &'static [Case],
}

/// The table.
pub const GROUPS: &[Group] = cases::GROUPS;

/// What came of a case on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The device did as it must, and the reset recovered it.
    Passed,
    /// It did not.
    Failed,
    /// The machine has not got what the attack goes through.
    Skipped,
}

/// A case's result: a line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The group's name.
    pub group: String,
    /// The case's name.
    pub case: String,
    /// The device.
    pub device: Kind,
    /// What was expected.
    pub expect: Expect,
    /// What came of it.
    pub outcome: Outcome,
    /// What went wrong or was lacking; empty when it passed.
    pub detail: String,
    /// How long it took.
    pub milliseconds: u64,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            group,
            case,
            device,
            outcome,
            detail,
            milliseconds,
            ..
        } = self;
        write!(
            f,
            "{group}/{case} on {}: {outcome:?} ({milliseconds} ms) {detail}",
            device.name()
        )
    }
}

/// Runs the cases of `group` that are for devices of `kind`, and tells `each` of them one by one. After a failed recovery the rest is
/// not tried: the device is lost.
pub fn run(machine: &dyn Machine, kind: Kind, group: &Group, mut each: impl FnMut(Record)) {
    for case in group.cases.iter().filter(|case| case.kinds.contains(&kind)) {
        let (record, recovered) = run_case(machine, kind, group, case);
        each(record);
        if !recovered {
            return;
        }
    }
}

fn run_case(machine: &dyn Machine, kind: Kind, group: &Group, case: &Case) -> (Record, bool) {
    let start = Instant::now();
    let (outcome, detail, recovered) = match Rig::new(machine, kind) {
        Ok(mut rig) => attempt(&mut rig, case),
        Err(error) => (Outcome::Failed, error, false),
    };
    let record = Record {
        group: group.name.to_owned(),
        case: case.name.to_owned(),
        device: kind,
        expect: case.expect,
        outcome,
        detail,
        milliseconds: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    (record, recovered)
}

fn attempt(rig: &mut Rig<'_>, case: &Case) -> (Outcome, String, bool) {
    let ready = if case.up { rig.bring_up() } else { rig.reset() };
    if let Err(error) = ready {
        return (
            Outcome::Failed,
            format!("before the attack: {error}"),
            false,
        );
    }
    let result = (case.attack)(rig).and_then(|()| judge(rig, case.expect));
    let recovery = rig.recover();
    let recovered = recovery.is_ok();
    match (result, recovery) {
        (Ok(()), Ok(())) => (Outcome::Passed, String::new(), recovered),
        (Err(Stop::Lacking(what)), Ok(())) => (Outcome::Skipped, what.to_owned(), recovered),
        (Err(Stop::Wrong(wrong)), Ok(())) => (Outcome::Failed, wrong, recovered),
        (Err(Stop::Wrong(wrong)), Err(error)) => (
            Outcome::Failed,
            format!("{wrong}; and after a reset: {error}"),
            recovered,
        ),
        (_, Err(error)) => (
            Outcome::Failed,
            format!("after a reset: {error}"),
            recovered,
        ),
    }
}

fn judge(rig: &mut Rig<'_>, expect: Expect) -> Attack {
    let asks = match expect {
        Expect::NeedsReset => rig.driver.needs_reset(NOTICE),
        _ => rig.driver.status() & driver::NEEDS_RESET != 0,
    };
    match (expect, asks) {
        (Expect::NeedsReset, false) => Err(Stop::Wrong(format!(
            "the device does not ask for a reset: its status is {:#x}",
            rig.driver.status()
        ))),
        (Expect::Serves | Expect::Calm, true) => Err(Stop::Wrong(
            "the device asks for a reset and need not".to_owned(),
        )),
        (Expect::Serves, false) => Ok(rig.serve()?),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_is_large_and_its_names_are_unique() {
        let mut names = BTreeSet::new();
        let mut runs = 0;
        for group in GROUPS {
            for case in group.cases {
                assert!(
                    names.insert((group.name, case.name)),
                    "{}/{}",
                    group.name,
                    case.name
                );
                assert!(!case.kinds.is_empty(), "{}", case.name);
                runs += case.kinds.len();
            }
        }
        assert!(names.len() >= 60, "{} cases", names.len());
        assert!(runs >= 200, "{runs} runs");
    }

    #[test]
    fn every_device_has_cases_of_its_own() {
        for kind in Kind::ALL {
            let own = GROUPS
                .iter()
                .flat_map(|group| group.cases)
                .filter(|case| case.kinds == [kind])
                .count();
            assert!(own > 3, "{} has {own}", kind.name());
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        let error = "floppy".parse::<Kind>().unwrap_err();
        assert!(error.contains("'floppy'") && error.ends_with("rng, balloon, mem, scsi"));
    }

    #[test]
    fn a_record_survives_its_line() {
        let record = Record {
            group: "rings".to_owned(),
            case: "loop".to_owned(),
            device: Kind::Blk,
            expect: Expect::NeedsReset,
            outcome: Outcome::Failed,
            detail: "\"quoted\"\n".to_owned(),
            milliseconds: 3,
        };
        let line = serde_json::to_string(&record).unwrap();
        assert!(!line.contains('\n') && line.contains(r#""expect":"needs-reset""#));
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }
}
