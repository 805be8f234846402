//! Benchmarks: figures of Paddock beside those of its peers, taken in one run, in turns. Only ratios mean anything in the lab.
//!
//! To add a figure: write a module with a function that measures one VMM once, or that starts one to be measured again and again, and name
//! it in [`FIGURES`].

mod block;
mod boot;
mod control;
mod firmware;
mod overhead;
mod ram_disk;
mod report;
mod running;
mod size;
mod vmm;

pub use report::{Goal, Report, Spread};
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
    /// A VMM did not do what it was started for.
    #[error("{vmm}: {what}; it printed:\n{output}")]
    Vmm {
        /// Its name.
        vmm: &'static str,
        /// What did not happen.
        what: String,
        /// The end of what it and its guest printed.
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
    let exact = FIGURES.iter().any(|figure| figure.name == name);
    let group = format!("{name}-");
    FIGURES.iter().filter(move |figure| match exact {
        true => figure.name == name,
        false => figure.name.starts_with(&group),
    })
}

/// Takes a value of one VMM each time that it is called.
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
    /// Which VMMs can do that.
    pub able: fn(&Vmm) -> bool,
    /// How often each VMM has its turn in a round, whose value is the mean of them.
    pub turns: u32,
    /// Prepares to measure one of them.
    pub meter: fn(&Vmm) -> Result<Meter, BenchError>,
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
pub const FIGURES: &[Figure] = &[
    Figure {
        name: "boot",
        about: "from the VMM's start to the guest's init, same kernel",
        unit: "s",
        goal: Goal::Times(0.5),
        place: Place::Kvm,
        able: anyone,
        turns: 1,
        meter: |vmm| anew(vmm, boot::measure),
    },
    Figure {
        name: "firmware-app",
        about: "from the VMM's start to an EFI application, by Debian 13's UEFI firmware",
        unit: "s",
        goal: Goal::Times(0.8),
        place: Place::Kvm,
        able: Vmm::runs_stock_firmware,
        turns: 1,
        meter: |vmm| {
            anew(vmm, |vmm| {
                firmware::measure(vmm, firmware::Kind::Application)
            })
        },
    },
    Figure {
        name: "firmware-reset",
        about: "from a reset to the same EFI application, by the same firmware",
        unit: "s",
        goal: Goal::Times(0.8),
        place: Place::Kvm,
        able: Vmm::runs_stock_firmware,
        turns: 1,
        meter: |vmm| anew(vmm, |vmm| firmware::measure(vmm, firmware::Kind::Reset)),
    },
    Figure {
        name: "firmware-debian",
        about: "from the VMM's start to Debian's login, by the same firmware and systemd-boot",
        unit: "s",
        goal: Goal::Times(0.8),
        place: Place::Kvm,
        able: Vmm::runs_stock_firmware,
        turns: 1,
        meter: |vmm| anew(vmm, |vmm| firmware::measure(vmm, firmware::Kind::Debian)),
    },
    Figure {
        name: "overhead",
        about: "memory besides guest RAM (PSS), idle guest of 256 MiB with a disk, a NIC and the API",
        unit: "MiB",
        goal: Goal::AtMost(6.0),
        place: Place::Kvm,
        able: anyone,
        turns: 1,
        meter: |vmm| anew(vmm, |vmm| overhead::measure(vmm, overhead::Kind::All)),
    },
    Figure {
        name: "overhead-anonymous",
        about: "the part of it that is anonymous memory",
        unit: "MiB",
        goal: Goal::AtMost(1.0),
        place: Place::Kvm,
        able: anyone,
        turns: 1,
        meter: |vmm| anew(vmm, |vmm| overhead::measure(vmm, overhead::Kind::Anonymous)),
    },
    Figure {
        name: "block-read-1",
        about: "random reads of 4 KiB, one at a time",
        unit: "1/s",
        goal: Goal::AtLeastTimes(1.4),
        place: Place::Kvm,
        able: anyone,
        turns: TURNS,
        meter: |vmm| block::meter(vmm, block::Kind::Read, 1),
    },
    Figure {
        name: "block-read-32",
        about: "random reads of 4 KiB, 32 at a time",
        unit: "1/s",
        goal: Goal::AtLeastTimes(1.6),
        place: Place::Kvm,
        able: anyone,
        turns: TURNS,
        meter: |vmm| block::meter(vmm, block::Kind::Read, 32),
    },
    Figure {
        name: "block-write-1",
        about: "random writes of 4 KiB, one at a time",
        unit: "1/s",
        goal: Goal::AtLeastTimes(1.3),
        place: Place::Kvm,
        able: anyone,
        turns: TURNS,
        meter: |vmm| block::meter(vmm, block::Kind::Write, 1),
    },
    Figure {
        name: "api",
        about: "CPU time from the start of the process to the API's first answer",
        unit: "ms",
        goal: Goal::AtMost(10.0),
        place: Place::Here,
        able: anyone,
        turns: 1,
        meter: |vmm| anew(vmm, control::measure),
    },
    Figure {
        name: "size",
        about: "the stripped binary",
        unit: "MiB",
        goal: Goal::AtMost(8.0),
        place: Place::Here,
        able: anyone,
        turns: 1,
        meter: |vmm| anew(vmm, size::measure),
    },
];

/// Measures a figure on every VMM that is able to, `rounds` times in turns. `progress` is told of each value as it comes.
///
/// # Errors
/// When one cannot be measured.
pub fn run(
    figure: &Figure,
    vmms: &[Vmm],
    rounds: usize,
    mut progress: impl FnMut(&str),
) -> Result<Report, BenchError> {
    let mut report = Report::new(figure);
    let mut meters = Vec::new();
    for vmm in vmms.iter().filter(|vmm| (figure.able)(vmm)) {
        meters.push((vmm.name(), (figure.meter)(vmm)?, 0.0));
    }
    for round in 1..=rounds {
        for _ in 0..figure.turns {
            for (_, meter, sum) in &mut meters {
                *sum += meter()?;
            }
            // There and back: what grows or shrinks meanwhile meets the first and the last alike.
            meters.reverse();
        }
        // Measured in any order, shown in one.
        for vmm in vmms {
            let found = meters.iter_mut().find(|(name, ..)| *name == vmm.name());
            if let Some((name, _, sum)) = found {
                let value = std::mem::take(sum) / f64::from(figure.turns);
                let (of, unit) = (figure.name, figure.unit);
                progress(&format!("{of} {round}/{rounds}: {name} {value:.3} {unit}"));
                report.add(name, value);
            }
        }
    }
    Ok(report)
}
