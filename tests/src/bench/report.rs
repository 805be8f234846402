//! Values, their spread and their ratios, and how both are shown.

use std::fmt::Write as _;

use serde::Serialize;

use super::Figure;

/// Whom goals are about.
pub(super) const OURS: &str = "paddock";

/// What Paddock is to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Its value is at most this times the peer's in the same round.
    Times(f64),
    /// Its value is at least this times the peer's in the same round.
    AtLeastTimes(f64),
    /// Its value is at most this.
    AtMost(f64),
}

/// The middle and the ends of some values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// `None` of no values.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted.get(sorted.len() / 2)?;
        let lower = sorted.get((sorted.len() - 1) / 2)?;
        let median = f64::midpoint(*lower, *upper);
        Some(Self { median, min, max })
    }
}

/// One contestant's values of a figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// Its name.
    pub name: &'static str,
    /// A value a round.
    pub values: Vec<f64>,
}

/// A figure, measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The figure's name.
    pub figure: &'static str,
    /// What it is.
    pub about: &'static str,
    /// What values are in.
    pub unit: &'static str,
    /// By contestant, in the order they were measured.
    pub series: Vec<Series>,
    /// Paddock's value divided by the peer's, round by round.
    pub ratio: Option<Spread>,
    /// The goal in words.
    pub goal: String,
    /// Whether Paddock's median reaches it; `None` where it was not measured.
    pub met: Option<bool>,
    /// The peer that the ratio is to.
    pub peer: &'static str,
    #[serde(skip)]
    wanted: Goal,
}

impl Report {
    /// Without values.
    #[must_use]
    pub fn new(figure: &Figure) -> Self {
        let peer = figure.peer;
        let goal = match figure.goal {
            Goal::Times(limit) => format!("at most {limit} × {peer}"),
            Goal::AtLeastTimes(limit) => format!("at least {limit} × {peer}"),
            Goal::AtMost(limit) => format!("at most {limit} {}", figure.unit),
        };
        Self {
            figure: figure.name,
            about: figure.about,
            unit: figure.unit,
            series: Vec::new(),
            ratio: None,
            goal,
            met: None,
            peer,
            wanted: figure.goal,
        }
    }

    /// Adds a value.
    pub fn add(&mut self, name: &'static str, value: f64) {
        match self.series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.values.push(value),
            None => self.series.push(Series {
                name,
                values: vec![value],
            }),
        }
        self.judge();
    }

    fn values(&self, name: &str) -> &[f64] {
        let found = self.series.iter().find(|series| series.name == name);
        found.map_or(&[], |series| series.values.as_slice())
    }

    fn judge(&mut self) {
        let (ours, peer) = (self.values(OURS), self.values(self.peer));
        let ratios: Vec<f64> = ours.iter().zip(peer).map(|(a, b)| a / b).collect();
        let (ours, ratio) = (Spread::of(ours), Spread::of(&ratios));
        self.met = match self.wanted {
            Goal::Times(limit) => ratio.map(|ratio| ratio.median <= limit),
            Goal::AtLeastTimes(limit) => ratio.map(|ratio| ratio.median >= limit),
            Goal::AtMost(limit) => ours.map(|ours| ours.median <= limit),
        };
        self.ratio = ratio;
    }

    /// For people: a line a contestant, and one on the goal.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("{}: {}\n", self.figure, self.about);
        for series in &self.series {
            if let Some(Spread { median, min, max }) = Spread::of(&series.values) {
                let (name, unit) = (series.name, self.unit);
                let _ = writeln!(
                    text,
                    "  {name:<18} {median:>9.2} {unit:<5} ({min:.2}–{max:.2})"
                );
            }
        }
        if let Some(Spread { median, min, max }) = self.ratio {
            let _ = writeln!(
                text,
                "  {:<18} {median:>9.2} ×     ({min:.2}–{max:.2})",
                format!("ratio to {}", self.peer)
            );
        }
        let met = match self.met {
            Some(true) => "met",
            Some(false) => "NOT met",
            None => "not measured",
        };
        let rounds = self.values(OURS).len();
        let few = if rounds < super::ROUNDS {
            format!(
                "; in {rounds} rounds, and it takes {} to tell",
                super::ROUNDS
            )
        } else {
            String::new()
        };
        let _ = writeln!(text, "  goal: {}: {met}{few}", self.goal);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures;

    fn figure(name: &str) -> &'static Figure {
        figures().find(|figure| figure.name == name).unwrap()
    }

    #[test]
    fn spreads() {
        assert_eq!(Spread::of(&[]), None);
        let odd = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of(&[4.0, 1.0]).unwrap().median, 2.5);
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        let mut report = Report::new(figure("boot"));
        assert_eq!(report.met, None);
        for (ours, peer) in [(1.0, 4.0), (2.0, 2.0), (1.0, 2.5)] {
            report.add("paddock", ours);
            report.add("qemu", peer);
        }
        let ratio = report.ratio.unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.4, 0.25, 1.0));
        assert_eq!(report.met, Some(true));
        assert!(
            report
                .table()
                .contains("at most 0.5 × qemu: met; in 3 rounds")
        );
        for _ in 0..2 {
            report.add("paddock", 1.0);
            report.add("qemu", 4.0);
        }
        assert!(report.table().ends_with("at most 0.5 × qemu: met\n"));
    }

    #[test]
    fn a_figures_peer_is_its_own() {
        let mut report = Report::new(figure("storage-raw-randread-64"));
        for (name, value) in [("paddock", 95.0), ("qemu", 10.0), ("fio", 100.0)] {
            report.add(name, value);
        }
        assert_eq!(report.ratio.map(|ratio| ratio.median), Some(0.95));
        let table = report.table();
        assert!(table.contains("at least 0.9 × fio: met"), "{table}");
        assert!(table.contains("ratio to fio "), "{table}");
    }

    #[test]
    fn a_limit_is_paddocks_alone() {
        let mut report = Report::new(figure("size"));
        report.add("qemu", 20.0);
        assert_eq!(report.met, None);
        report.add("paddock", 10.1);
        assert_eq!(report.met, Some(false));
        assert!(report.table().contains("NOT met"));
    }
}
