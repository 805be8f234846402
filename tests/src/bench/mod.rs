//! Benchmarks: figures of Paddock beside those of its peers, taken in one run, in turns. Only ratios mean anything in the lab.
//!
//! To add a figure of VMMs: write a module with a function that measures one VMM once, or that starts one to be measured again and again, and
//! name it in `VMM_FIGURES`. Those of storage are in its module.

mod block;
mod boot;
mod control;
mod firmware;
mod overhead;
mod ram_disk;
mod report;
mod running;
mod size;
mod storage;
mod vmm;

pub use report::{Goal, Report, Spread};
pub use storage::{Contest, LoadOutcome};
pub use vmm::Vmm;

use std::io;

/// Rounds unless told otherwise.
pub const ROUNDS: usize = 5;

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A program or file is not there, or cannot be used.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A VMM or another program did not do what it was started for.
    #[error("{name}: {what}; it printed:\n{output}")]
    Program {
        /// Its name.
        name: &'static str,
        /// What did not happen.
        what: String,
        /// The end of what it, and a guest of it, printed.
        output: String,
    },
}

/// Where a figure is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On this machine as it is: no guest runs, so that also what is no ratio means something.
    Here,
    /// Where there is KVM, which may be the lab.
    Kvm,
}

/// The figures that a name on the command line stands for: that one, or else all whose names begin with it and a hyphen.
pub fn named(name: &str) -> impl Iterator<Item = &'static Figure> {
    let exact = figures().any(|figure| figure.name == name);
    let group = format!("{name}-");
    figures().filter(move |figure| match exact {
        true => figure.name == name,
        false => figure.name.starts_with(&group),
    })
}

/// Takes a value of one contestant each time that it is called.
pub type Meter = Box<dyn FnMut() -> Result<f64, BenchError>>;

/// Something to be measured.
#[derive(Debug)]
pub struct Figure {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is, in one line.
    pub about: &'static str,
    /// What the values are in, such as "s".
    pub unit: &'static str,
    /// What Paddock is to reach.
    pub goal: Goal,
    /// Where.
    pub place: Place,
    /// Whom Paddock is compared with.
    pub peer: &'static str,
    /// How often each contestant has its turn in a round, whose value is the mean of them.
    pub turns: u32,
    /// Who is measured, and how.
    pub contestants: Contestants,
}

/// Who is measured, and how.
#[derive(Debug)]
pub enum Contestants {
    /// VMMs, on guests that are alike.
    Vmms {
        /// Which of them can do that.
        able: fn(&Vmm) -> bool,
        /// Prepares to measure one of them.
        meter: fn(&Vmm) -> Result<Meter, BenchError>,
    },
    /// Storage, without a guest.
    Storage(Contest),
}

/// What there is to measure, and what figures share. Dropped, it ends what it has started.
#[derive(Debug)]
pub struct Subjects {
    vmms: Vec<Vmm>,
    storage: storage::Yard,
}

impl Subjects {
    /// What this machine has.
    #[must_use]
    pub fn found() -> Self {
        Self {
            vmms: Vmm::found(),
            storage: storage::Yard::default(),
        }
    }

    /// A figure's contestants, prepared.
    fn prepare(&mut self, figure: &Figure) -> Result<Vec<(&'static str, Meter)>, BenchError> {
        match &figure.contestants {
            Contestants::Vmms { able, meter } => {
                let able = self.vmms.iter().filter(|vmm| able(vmm));
                able.map(|vmm| Ok((vmm.name(), meter(vmm)?))).collect()
            }
            Contestants::Storage(contest) => self.storage.prepare(*contest),
        }
    }
}

/// Turns of what is measured by the second.
const TURNS: u32 = 4;

/// A meter that starts the VMM anew for each value.
fn anew(vmm: &Vmm, measure: fn(&Vmm) -> Result<f64, BenchError>) -> Result<Meter, BenchError> {
    let vmm = vmm.clone();
    Ok(Box::new(move || measure(&vmm)))
}

fn anyone(_: &Vmm) -> bool {
    true
}

/// All figures.
pub fn figures() -> impl Iterator<Item = &'static Figure> {
    VMM_FIGURES.iter().chain(storage::figures())
}

/// The peer of VMMs' figures.
const QEMU: &str = "qemu";

const VMM_FIGURES: &[Figure] = &[
    Figure {
        name: "boot",
        about: "from the VMM's start to the guest's init, same kernel",
        unit: "s",
        goal: Goal::Times(0.5),
        place: Place::Kvm,
        peer: QEMU,
        turns: 1,
        contestants: Contestants::Vmms {
            able: anyone,
            meter: |vmm| anew(vmm, boot::measure),
        },
    },
    Figure {
        name: "firmware-app",
        about: "from the VMM's start to an EFI application, by Debian 13's UEFI firmware",
        unit: "s",
        goal: Goal::Times(0.8),
        place: Place::Kvm,
        peer: QEMU,
        turns: 1,
        contestants: Contestants::Vmms {
            able: Vmm::runs_stock_firmware,
            meter: |vmm| {
                anew(vmm, |vmm| {
                    firmware::measure(vmm, firmware::Kind::Application)
                })
            },
        },
    },
    Figure {
        name: "firmware-reset",
        about: "from a reset to the same EFI application, by the same firmware",
        unit: "s",
        goal: Goal::Times(0.8),
        place: Place::Kvm,
        peer: QEMU,
        turns: 1,
        contestants: Contestants::Vmms {
            able: Vmm::runs_stock_firmware,
            meter: |vmm| anew(vmm, |vmm| firmware::measure(vmm, firmware::Kind::Reset)),
        },
    },
    Figure {
        name: "firmware-debian",
        about: "from the VMM's start to Debian's login, by the same firmware and systemd-boot",
        unit: "s",
        goal: Goal::Times(0.8),
        place: Place::Kvm,
        peer: QEMU,
        turns: 1,
        contestants: Contestants::Vmms {
            able: Vmm::runs_stock_firmware,
            meter: |vmm| anew(vmm, |vmm| firmware::measure(vmm, firmware::Kind::Debian)),
        },
    },
    Figure {
        name: "overhead",
        about: "memory besides guest RAM (PSS), idle guest of 256 MiB with a disk, a NIC and the API",
        unit: "MiB",
        goal: Goal::AtMost(6.0),
        place: Place::Kvm,
        peer: QEMU,
        turns: 1,
        contestants: Contestants::Vmms {
            able: anyone,
            meter: |vmm| anew(vmm, |vmm| overhead::measure(vmm, overhead::Kind::All)),
        },
    },
    Figure {
        name: "overhead-anonymous",
        about: "the part of it that is anonymous memory",
        unit: "MiB",
        goal: Goal::AtMost(1.0),
        place: Place::Kvm,
        peer: QEMU,
        turns: 1,
        contestants: Contestants::Vmms {
            able: anyone,
            meter: |vmm| anew(vmm, |vmm| overhead::measure(vmm, overhead::Kind::Anonymous)),
        },
    },
    Figure {
        name: "block-read-1",
        about: "random reads of 4 KiB, one at a time",
        unit: "1/s",
        goal: Goal::AtLeastTimes(1.4),
        place: Place::Kvm,
        peer: QEMU,
        turns: TURNS,
        contestants: Contestants::Vmms {
            able: anyone,
            meter: |vmm| block::meter(vmm, block::Kind::Read, 1),
        },
    },
    Figure {
        name: "block-read-32",
        about: "random reads of 4 KiB, 32 at a time",
        unit: "1/s",
        goal: Goal::AtLeastTimes(1.6),
        place: Place::Kvm,
        peer: QEMU,
        turns: TURNS,
        contestants: Contestants::Vmms {
            able: anyone,
            meter: |vmm| block::meter(vmm, block::Kind::Read, 32),
        },
    },
    Figure {
        name: "block-write-1",
        about: "random writes of 4 KiB, one at a time",
        unit: "1/s",
        goal: Goal::AtLeastTimes(1.3),
        place: Place::Kvm,
        peer: QEMU,
        turns: TURNS,
        contestants: Contestants::Vmms {
            able: anyone,
            meter: |vmm| block::meter(vmm, block::Kind::Write, 1),
        },
    },
    Figure {
        name: "api",
        about: "CPU time from the start of the process to the API's first answer",
        unit: "ms",
        goal: Goal::AtMost(10.0),
        place: Place::Here,
        peer: QEMU,
        turns: 1,
        contestants: Contestants::Vmms {
            able: anyone,
            meter: |vmm| anew(vmm, control::measure),
        },
    },
    Figure {
        name: "size",
        about: "the stripped binary",
        unit: "MiB",
        // 8 was the aim before disks were volumes: the storage stack is 4.5 of it, gRPC both ways, TLS, the engine and its commands, compiled for speed.
        goal: Goal::AtMost(10.0),
        place: Place::Here,
        peer: QEMU,
        turns: 1,
        contestants: Contestants::Vmms {
            able: anyone,
            meter: |vmm| anew(vmm, size::measure),
        },
    },
];

/// Measures a figure on every contestant that is able to, `rounds` times in turns. `progress` is told of each value as it comes.
///
/// # Errors
/// When one cannot be measured.
pub fn run(
    figure: &Figure,
    subjects: &mut Subjects,
    rounds: usize,
    mut progress: impl FnMut(&str),
) -> Result<Report, BenchError> {
    let mut report = Report::new(figure);
    let mut meters = Vec::new();
    for (place, (name, meter)) in subjects.prepare(figure)?.into_iter().enumerate() {
        meters.push((place, name, meter, 0.0));
    }
    for round in 1..=rounds {
        for _ in 0..figure.turns {
            for (_, _, meter, sum) in &mut meters {
                *sum += meter()?;
            }
            // There and back: what grows or shrinks meanwhile meets the first and the last alike.
            meters.reverse();
        }
        // Measured in any order, shown in one.
        let mut values: Vec<_> = meters
            .iter_mut()
            .map(|(place, name, _, sum)| (*place, *name, std::mem::take(sum)))
            .collect();
        values.sort_by_key(|(place, ..)| *place);
        for (_, name, sum) in values {
            let value = sum / f64::from(figure.turns);
            let (of, unit) = (figure.name, figure.unit);
            progress(&format!("{of} {round}/{rounds}: {name} {value:.3} {unit}"));
            report.add(name, value);
        }
    }
    Ok(report)
}
