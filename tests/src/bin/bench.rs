//! What `tests/bench` runs, once on this machine and once where there is KVM: takes benchmarks and shows them.

use std::process::ExitCode;

use paddock_tests::bench::{self, BenchError, FIGURES, Figure, Place, Report, Vmm};

const USAGE: &str = "\
usage: tests/bench [NAME…] [--rounds N] [--json]

Measures Paddock beside Debian's QEMU, in turns, on the same guest; all figures, or those named, where the beginning of a name up to a
hyphen stands for all that have it. Values mean something only beside each other.
PADDOCK_BENCH_CLOUD_HYPERVISOR=PATH and PADDOCK_BENCH_FIRECRACKER=PATH add those peers.

figures:";

struct Options {
    figures: Vec<&'static Figure>,
    rounds: usize,
    json: bool,
    /// Only say how many figures there are to measure.
    count: bool,
}

fn usage() -> String {
    let lines = FIGURES
        .iter()
        .map(|f| format!("  {:<20} {}", f.name, f.about));
    format!("{USAGE}\n{}", lines.collect::<Vec<_>>().join("\n"))
}

fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options {
        figures: Vec::new(),
        rounds: bench::ROUNDS,
        json: false,
        count: false,
    };
    let mut place = None;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--json" => options.json = true,
            "--count" => options.count = true,
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
        options.figures = FIGURES.iter().collect();
    }
    options
        .figures
        .retain(|figure| place.is_none_or(|place| figure.place == place));
    Ok(Some(options))
}

fn measure(options: &Options) -> Result<Vec<Report>, BenchError> {
    let vmms = Vmm::found();
    let mut reports = Vec::new();
    for figure in &options.figures {
        let report = bench::run(figure, &vmms, options.rounds, |line| eprintln!("{line}"))?;
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
    if options.count {
        println!("{}", options.figures.len());
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
