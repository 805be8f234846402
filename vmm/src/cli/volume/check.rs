//! `paddock volume check`.

use std::sync::Arc;

use paddock_storage::longhorn::{
    Comparison, Found, Offline, Standing, VolumeError, VolumeOptions, Watch,
};
use serde::Serialize;

use super::args::CheckArgs;
use super::open::{Stage, attend, close, describe, open, survey_unused};
use super::{Session, VolumeFailure};
use crate::cli::ctl::render::bytes;

/// What came of it.
#[derive(Debug, Serialize)]
struct Checked {
    volume: String,
    equal: bool,
    /// Bytes.
    size: Option<u64>,
    /// The replicas that were read.
    compared: Vec<String>,
    problems: Vec<String>,
    difference: Option<Difference>,
}

#[derive(Debug, Serialize)]
struct Difference {
    offset: u64,
    length: u64,
    replicas: [String; 2],
}

/// Compares the replicas.
pub fn check(session: &Session, args: &CheckArgs) -> Result<(), VolumeFailure> {
    let options = args.which.options();
    let mut found = survey_unused(&options)?;
    let unclean = |found: &[Found]| found.iter().any(|f| f.standing == Standing::Unclean);
    if args.repair && unclean(&found) {
        close(&open(session, options.clone())?)?;
        found = survey_unused(&options)?;
    }
    let complete = found.iter().filter(|f| f.standing == Standing::Complete);
    let complete: Vec<_> = complete.map(|found| found.address.clone()).collect();
    let mut checked = Checked {
        volume: options.name.clone(),
        equal: false,
        size: None,
        compared: complete.iter().map(ToString::to_string).collect(),
        problems: problems(&found),
        difference: None,
    };
    if !complete.is_empty() {
        let options = VolumeOptions {
            replicas: complete,
            ..options
        };
        checked.take(compare(session, options)?);
    }
    checked.equal = checked.problems.is_empty() && checked.difference.is_none();
    if checked.equal || session.output.json {
        session.print(&checked, |page| page.sentence(&checked.told()))?;
    }
    match checked.equal {
        true => Ok(()),
        false => Err(VolumeFailure::Found(checked.told())),
    }
}

/// What is the matter with those that are not complete.
pub(super) fn problems(found: &[Found]) -> Vec<String> {
    let any_closed = found.iter().any(|f| f.standing == Standing::Complete);
    let found = found.iter().filter(|f| f.standing != Standing::Complete);
    let told = found.map(|found| {
        let fix = match found.standing {
            Standing::Unclean if any_closed => {
                ", and others were: it may miss what they have; paddock volume rebuild gives it that"
            }
            Standing::Unclean => {
                "; paddock volume check --repair makes those the same that were not closed"
            }
            Standing::Stale | Standing::Incomplete | Standing::Empty => {
                "; paddock volume rebuild gives it what it lacks"
            }
            _ => "",
        };
        format!("{}{fix}", describe(found))
    });
    told.collect()
}

fn compare(session: &Session, options: VolumeOptions) -> Result<Comparison, VolumeError> {
    let offline = Offline::new(options)?;
    let watch = Arc::new(Watch::default());
    let mut stage = Stage::start("comparing the replicas, in MiB");
    attend(
        || offline.compare(&watch),
        || {
            if session.interrupt.is_wanted() {
                watch.cancel();
            }
            let (done, total) = watch.progress();
            stage.tell(done >> 20, total >> 20);
        },
    )
}

impl Checked {
    fn take(&mut self, comparison: Comparison) {
        self.size = Some(comparison.size);
        self.problems.extend(comparison.problems);
        self.difference = comparison.difference.map(|difference| Difference {
            offset: difference.offset,
            length: difference.length,
            replicas: difference.replicas.map(|replica| replica.to_string()),
        });
    }

    /// For people.
    fn told(&self) -> String {
        let mut lines = self.problems.clone();
        let compared = self.compared.len();
        if let Some(difference) = &self.difference {
            let Difference {
                offset,
                length,
                replicas: [one, other],
            } = difference;
            lines.push(format!(
                "{one} and {other} differ in {length} bytes from {offset} on, and perhaps later; \
                 paddock volume rebuild --anew rebuilds the one that you do not trust"
            ));
        } else if compared > 1 {
            let size = bytes(self.size.unwrap_or(0));
            lines.push(format!("{compared} replicas hold the same {size}"));
        } else if compared == 1 {
            lines.push("one replica was read, and there is nothing to compare it with".to_owned());
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(standing: Standing) -> Found {
        Found {
            address: "a:1".parse().unwrap(),
            standing,
            problem: (standing != Standing::Complete).then(|| "it is so".to_owned()),
            size: None,
            inside: None,
        }
    }

    #[test]
    fn each_problem_has_its_fix() {
        assert!(problems(&[found(Standing::Complete)]).is_empty());
        for (standing, fix) in [
            (Standing::Unclean, "check --repair"),
            (Standing::Stale, "rebuild"),
            (Standing::Empty, "rebuild"),
        ] {
            let told = problems(&[found(standing)]);
            assert!(told[0].contains(fix), "{told:?}");
        }
        let told = problems(&[found(Standing::Unclean), found(Standing::Complete)]);
        assert!(told[0].contains("volume rebuild"), "{told:?}");
    }

    #[test]
    fn what_differs_is_told() {
        let mut checked = Checked {
            volume: "v".to_owned(),
            equal: false,
            size: None,
            compared: vec!["a:1".to_owned(), "b:1".to_owned()],
            problems: vec!["c:1 is gone".to_owned()],
            difference: None,
        };
        let address = |text: &str| text.parse().unwrap();
        let mut comparison = Comparison {
            size: 1 << 20,
            problems: Vec::new(),
            difference: None,
        };
        checked.take(comparison.clone());
        assert_eq!(
            checked.told(),
            "c:1 is gone\n2 replicas hold the same 1 MiB"
        );
        comparison.difference = Some(paddock_storage::longhorn::Difference {
            offset: 4096,
            length: 512,
            replicas: [address("a:1"), address("b:1")],
        });
        checked.take(comparison);
        let told = checked.told();
        assert!(
            told.contains("a:1 and b:1 differ in 512 bytes from 4096 on"),
            "{told}"
        );
    }
}
