//! Metrics in Prometheus' text format, version 0.0.4: [`Exposition`] writes it, [`Snapshot`] reads it back.
//!
//! Written by hand because the format is a dozen rules, and crates for it either write OpenMetrics, which counts by other names, or
//! bring a registry along, while ours are the devices' own counters. Labels hold what users chose, ids and names, and are escaped.
//!
//! Names follow Prometheus' conventions: base units (`_bytes`, `_seconds`), `_total` for what only grows.

mod parse;

use std::fmt::{self, Display, Write as _};
use std::time::Duration;

pub use parse::{ParseError, ParsedFamily, Sample, Snapshot};

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FamilyKind {
    /// Only grows, but for a process that starts anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl FamilyKind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A number of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A whole number, written exactly.
    Whole(u64),
    /// A time, written as seconds.
    Seconds(Duration),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<Duration> for Value {
    fn from(value: Duration) -> Self {
        Self::Seconds(value)
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => value.fmt(f),
            Self::Seconds(time) => match time.subsec_nanos() {
                0 => time.as_secs().fmt(f),
                nanos => {
                    let fraction = format!("{nanos:09}");
                    let fraction = fraction.trim_end_matches('0');
                    write!(f, "{}.{fraction}", time.as_secs())
                }
            },
        }
    }
}

/// Labels of a sample: names, which are ours, and what is theirs.
pub type Labels<'a> = [(&'static str, &'a dyn Display)];

/// Metrics, one family after the other.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Begins a family of counters. `name` ends with `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.family(name, help, FamilyKind::Counter)
    }

    /// Begins a family of gauges.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.family(name, help, FamilyKind::Gauge)
    }

    /// Begins a family of histograms.
    pub fn histogram(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.family(name, help, FamilyKind::Histogram)
    }

    fn family(&mut self, name: &'static str, help: &'static str, kind: FamilyKind) -> Family<'_> {
        Family {
            text: &mut self.0,
            name,
            help,
            kind,
            begun: false,
        }
    }

    /// The text.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }
}

/// A family that is being written. One without samples leaves no trace.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    help: &'static str,
    kind: FamilyKind,
    begun: bool,
}

impl Family<'_> {
    /// Adds a sample of a counter or gauge. No two samples of a family have the same labels.
    pub fn sample(&mut self, labels: &Labels<'_>, value: impl Into<Value>) -> &mut Self {
        self.line("", labels, None, value.into());
        self
    }

    /// Adds a histogram: for each of `bounds`, in nanoseconds and growing, how many took no longer than that and longer than the one
    /// before, then how many took longer than all; and how long they took together.
    pub fn durations(
        &mut self,
        labels: &Labels<'_>,
        bounds: &[u64],
        classes: &[u64],
        sum: Duration,
    ) -> &mut Self {
        let mut count = 0;
        let mut classes = classes.iter().copied();
        for (bound, class) in bounds.iter().zip(classes.by_ref()) {
            count += class;
            let bound = Value::Seconds(Duration::from_nanos(*bound));
            self.line("_bucket", labels, Some(&bound), count.into());
        }
        count += classes.sum::<u64>();
        self.line("_bucket", labels, Some(&"+Inf"), count.into());
        self.line("_sum", labels, None, sum.into());
        self.line("_count", labels, None, count.into());
        self
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            let Self {
                text, name, help, ..
            } = self;
            // Help is ours and has neither new lines nor backslashes.
            let _ = writeln!(text, "# HELP {name} {help}");
            let _ = writeln!(text, "# TYPE {name} {}", self.kind.name());
        }
    }

    /// Writing to a string does not fail.
    fn line(
        &mut self,
        suffix: &str,
        labels: &Labels<'_>,
        bound: Option<&dyn Display>,
        value: Value,
    ) {
        self.begin();
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let bound = bound.map(|bound| ("le", bound));
        let mut separator = '{';
        for (name, label) in labels.iter().copied().chain(bound) {
            let _ = write!(self.text, "{separator}{name}=\"");
            let _ = write!(Escaped(self.text), "{label}");
            self.text.push('"');
            separator = ',';
        }
        let close = if separator == ',' { "} " } else { " " };
        let _ = writeln!(self.text, "{close}{value}");
    }
}

/// Writes a label's value with backslashes, quotes and new lines escaped.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                other => self.0.push(other),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_kind_looks_as_it_should() {
        let mut exposition = Exposition::default();
        exposition
            .counter("a_bytes_total", "Bytes.")
            .sample(&[("disk", &"root"), ("queue", &1)], u64::MAX)
            .sample(&[("disk", &"a\\b\"c\nd"), ("queue", &0)], 7_u64);
        exposition.gauge("nothing", "Not there.");
        exposition
            .gauge("up_seconds", "Up.")
            .sample(&[], Duration::from_micros(1_500_010));
        let millis = Duration::from_millis;
        exposition.histogram("took_seconds", "Took.").durations(
            &[("kind", &"read")],
            &[10_000, 1_000_000_000],
            &[2, 0, 1],
            millis(60_000),
        );
        let expected = r#"# HELP a_bytes_total Bytes.
# TYPE a_bytes_total counter
a_bytes_total{disk="root",queue="1"} 18446744073709551615
a_bytes_total{disk="a\\b\"c\nd",queue="0"} 7
# HELP up_seconds Up.
# TYPE up_seconds gauge
up_seconds 1.50001
# HELP took_seconds Took.
# TYPE took_seconds histogram
took_seconds_bucket{kind="read",le="0.00001"} 2
took_seconds_bucket{kind="read",le="1"} 2
took_seconds_bucket{kind="read",le="+Inf"} 3
took_seconds_sum{kind="read"} 60
took_seconds_count{kind="read"} 3
"#;
        let text = exposition.into_text();
        assert_eq!(text, expected);
        let read = Snapshot::parse(&text).unwrap();
        assert_eq!(read.families().len(), 3);
        let odd = [("disk", "a\\b\"c\nd"), ("queue", "0")];
        assert_eq!(read.value("a_bytes_total", &odd), Some(7.0));
        assert_eq!(read.value("up_seconds", &[]), Some(1.50001));
        assert_eq!(
            read.value("took_seconds_count", &[("kind", "read")]),
            Some(3.0)
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            labels in prop::collection::btree_map(any::<String>(), any::<u32>(), 1..8),
            nanos in any::<u32>(),
        ) {
            let mut exposition = Exposition::default();
            let mut family = exposition.counter("x_total", "X.");
            for (label, value) in &labels {
                family.sample(&[("id", label)], u64::from(*value));
            }
            let time = Duration::from_nanos(nanos.into());
            exposition.gauge("y_seconds", "Y.").sample(&[], time);
            let read = Snapshot::parse(&exposition.into_text()).unwrap();
            for (label, value) in &labels {
                let found = read.value("x_total", &[("id", label)]);
                prop_assert_eq!(found, Some(f64::from(*value)));
            }
            let seconds = read.value("y_seconds", &[]).unwrap();
            prop_assert!((seconds * 1e9 - f64::from(nanos)).abs() < 0.5);
        }
    }
}
