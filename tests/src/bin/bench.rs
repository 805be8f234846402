//! What `tests/bench` runs, once on this machine and once where there is KVM: takes benchmarks and shows them.

use std::process::ExitCode;

use paddock_tests::bench::{self, BenchError, Figure, Place, Report, Subjects};

const USAGE: &str = "\
usage: tests/bench [NAME…] [--rounds N] [--json]

Measures Paddock beside its peers, in turns; all figures, or those named, where the beginning of a name up to a hyphen stands for all that
have it. Values mean something only beside each other.
VMMs have the same guest: Paddock, and Debian's QEMU. Figures of storage have no guest: Paddock's Longhorn engine beside Longhorn's own on
three replicas (engine: both on Longhorn's replicas; stack: each on replicas of its own), and raw disks beside fio. They are root's.
PADDOCK_BENCH_CLOUD_HYPERVISOR=PATH and PADDOCK_BENCH_FIRECRACKER=PATH add those peers.

figures:";

struct Options {
    figures: Vec<&'static Figure>,
    rounds: usize,
    json: bool,
    /// Only say which figures there are to measure.
    names: bool,
}

fn usage() -> String {
    let width = bench::figures().map(|f| f.name.len()).max().unwrap_or(0);
    let lines = bench::figures().map(|f| format!("  {:<width$} {}", f.name, f.about));
    format!("{USAGE}\n{}", lines.collect::<Vec<_>>().join("\n"))
}

fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options {
        figures: Vec::new(),
        rounds: bench::ROUNDS,
        json: false,
        names: false,
    };
    let mut place = None;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--json" => options.json = true,
            "--names" => options.names = true,
            "--place" => {
                place = match arguments.next().as_deref() {
                    Some("here") => Some(Place::Here),
                    Some("kvm") => Some(Place::Kvm),
                    _ => return Err("--place wants here or kvm".to_owned()),
                };
            }
            "--rounds" => {
                let value = arguments.next().and_then(|value| value.parse().ok());
                options.rounds = value
                    .filter(|rounds| (1..=1000).contains(rounds))
                    .ok_or("--rounds wants a number from 1 to 1000")?;
            }
            name => {
                let before = options.figures.len();
                options.figures.extend(bench::named(name));
                if options.figures.len() == before {
                    return Err(format!("there is no figure '{name}'"));
                }
            }
        }
    }
    if options.figures.is_empty() {
        options.figures = bench::figures().collect();
    }
    options
        .figures
        .retain(|figure| place.is_none_or(|place| figure.place == place));
    Ok(Some(options))
}

fn measure(options: &Options) -> Result<Vec<Report>, BenchError> {
    let mut subjects = Subjects::found();
    let mut reports = Vec::new();
    for figure in &options.figures {
        let report = bench::run(figure, &mut subjects, options.rounds, |line| {
            eprintln!("{line}");
        })?;
        if !options.json {
            println!("{}", report.table());
        }
        reports.push(report);
    }
    Ok(reports)
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", usage());
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("tests/bench: {problem}\n\n{}", usage());
            return ExitCode::from(2);
        }
    };
    if options.names {
        for figure in &options.figures {
            println!("{}", figure.name);
        }
        return ExitCode::SUCCESS;
    }
    let reports = match measure(&options) {
        Ok(reports) => reports,
        Err(error) => {
            let cause = std::error::Error::source(&error);
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            eprintln!("tests/bench: {error}{cause}");
            return ExitCode::FAILURE;
        }
    };
    if options.json {
        match serde_json::to_string_pretty(&reports) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("tests/bench: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
