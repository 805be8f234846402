//! Reads the text format back, strictly: for clients and tests, which want to hear of a mistake rather than to guess.

use std::collections::HashSet;

use super::FamilyKind;

/// Metrics at one moment, as a client got them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot(Vec<ParsedFamily>);

/// Samples of one name.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedFamily {
    /// The name.
    pub name: String,
    /// What it is about.
    pub help: String,
    /// What the numbers mean.
    pub kind: FamilyKind,
    /// At least one.
    pub samples: Vec<Sample>,
}

/// One number.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The family's name; with `_bucket`, `_sum` or `_count` if it is a histogram.
    pub name: String,
    /// Names and values, in the order they were written in.
    pub labels: Vec<(String, String)>,
    /// The number.
    pub value: f64,
}

/// Text that is not in the format, or breaks its conventions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    /// The number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl Snapshot {
    /// Reads a text.
    ///
    /// # Errors
    /// At the first line that is wrong: a family without help or type or samples or given twice, samples of another family, a
    /// sample given twice, a counter whose name does not end with `_total`, a name, escape or number that is none, a histogram that
    /// does not add up.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut families = Vec::<ParsedFamily>::new();
        let mut seen = HashSet::new();
        let mut lines = (1..).zip(text.split_inclusive('\n')).peekable();
        let wrong = |line, reason: String| ParseError { line, reason };
        while let Some((line, first)) = lines.next() {
            let begun = begin(first, lines.next().map_or("", |(_, line)| line));
            let mut family = begun.map_err(|reason| wrong(line, reason))?;
            if families.iter().any(|other| other.name == family.name) {
                return Err(wrong(line, format!("{} comes twice", family.name)));
            }
            while let Some((line, text)) = lines.next_if(|(_, line)| !line.starts_with('#')) {
                let sample = sample(text).map_err(|reason| wrong(line, reason))?;
                if !family.owns(&sample) {
                    let reason = format!("{} is not of {}", sample.name, family.name);
                    return Err(wrong(line, reason));
                }
                let mut labels = sample.labels.clone();
                labels.sort();
                if !seen.insert((sample.name.clone(), labels)) {
                    return Err(wrong(line, "the same sample comes twice".to_owned()));
                }
                family.samples.push(sample);
            }
            family.check().map_err(|reason| wrong(line, reason))?;
            families.push(family);
        }
        Ok(Self(families))
    }

    /// The families, in their order.
    #[must_use]
    pub fn families(&self) -> &[ParsedFamily] {
        &self.0
    }

    /// The number of the sample with this name and exactly these labels, in any order.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut samples = self.0.iter().flat_map(|family| &family.samples);
        let found = samples.find(|sample| {
            let has = |(name, value): &(&str, &str)| sample.label(name) == Some(value);
            sample.name == name && sample.labels.len() == labels.len() && labels.iter().all(has)
        });
        found.map(|sample| sample.value)
    }
}

impl Sample {
    /// A label's value.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        let mut labels = self.labels.iter();
        labels.find(|(key, _)| key == name).map(|(_, v)| &**v)
    }
}

impl ParsedFamily {
    fn owns(&self, sample: &Sample) -> bool {
        let Some(suffix) = sample.name.strip_prefix(&self.name) else {
            return false;
        };
        match self.kind {
            FamilyKind::Counter | FamilyKind::Gauge => suffix.is_empty(),
            FamilyKind::Histogram => matches!(suffix, "_bucket" | "_sum" | "_count"),
        }
    }

    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        if self.samples.is_empty() {
            return Err(format!("{name} has no samples"));
        }
        match self.kind {
            FamilyKind::Counter if !name.ends_with("_total") => {
                Err(format!("the counter {name} does not end with _total"))
            }
            FamilyKind::Histogram if !self.adds_up() => Err(format!("{name} does not add up")),
            _ => Ok(()),
        }
    }

    /// Whether each histogram's buckets grow, end with all, and are followed by the sum and the count.
    fn adds_up(&self) -> bool {
        let mut last = (f64::NEG_INFINITY, 0.0);
        let mut expected = "_bucket";
        for sample in &self.samples {
            let suffix = &sample.name[self.name.len()..];
            let bound = sample.label("le").map(str::parse::<f64>);
            let right = match (suffix, bound) {
                ("_bucket", Some(Ok(bound))) => {
                    let grows = bound > last.0 && sample.value >= last.1;
                    last = (bound, sample.value);
                    grows
                }
                ("_sum", None) => last.0 == f64::INFINITY,
                ("_count", None) => last.1 == sample.value,
                _ => false,
            };
            if suffix != expected || !right {
                return false;
            }
            expected = match suffix {
                "_bucket" if last.0 == f64::INFINITY => "_sum",
                "_sum" => "_count",
                _ => "_bucket",
            };
            if suffix == "_count" {
                last = (f64::NEG_INFINITY, 0.0);
            }
        }
        last.0 == f64::NEG_INFINITY
    }
}

/// A family's first two lines.
fn begin(help: &str, kind: &str) -> Result<ParsedFamily, String> {
    let parts = |line: &str, word: &str| {
        let (name, rest) = line
            .strip_prefix(word)?
            .strip_suffix('\n')?
            .split_once(' ')?;
        Some((name.to_owned(), rest.to_owned()))
    };
    let (name, help) = parts(help, "# HELP ").ok_or("a family begins with its help")?;
    let (same, kind) = parts(kind, "# TYPE ").ok_or("after its help comes its type")?;
    if same != name || !is_name(&name, ":") {
        return Err(format!("{name} and {same} are not one name"));
    }
    let kind = match kind.as_str() {
        "counter" => FamilyKind::Counter,
        "gauge" => FamilyKind::Gauge,
        "histogram" => FamilyKind::Histogram,
        other => return Err(format!("there is no type {other}")),
    };
    Ok(ParsedFamily {
        name,
        help,
        kind,
        samples: Vec::new(),
    })
}

fn sample(line: &str) -> Result<Sample, String> {
    let line = line.strip_suffix('\n').ok_or("the line has no end")?;
    let end = line.find(['{', ' ']).ok_or("a sample has a number")?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name, ":") {
        return Err(format!("{name:?} is no name"));
    }
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or("a label has a value")?;
            if !is_name(label, "") || labels.iter().any(|(other, _)| other == label) {
                return Err(format!("{label:?} is no label, or comes twice"));
            }
            let (value, after) = quoted(after)?;
            labels.push((label.to_owned(), value));
            if let Some(after) = after.strip_prefix('}') {
                rest = after;
                break;
            }
            rest = after.strip_prefix(',').ok_or("labels end with }")?;
        }
    }
    let number = rest.strip_prefix(' ').unwrap_or_default();
    let value = number.parse().ok().filter(|value: &f64| *value >= 0.0);
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value: value.ok_or_else(|| format!("{rest:?} is no number that can be here"))?,
    })
}

/// A label's value up to its closing quote, and what comes after that.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut characters = text.chars();
    loop {
        match characters
            .next()
            .ok_or("a label's value ends with a quote")?
        {
            '"' => return Ok((value, characters.as_str())),
            '\\' => value.push(match characters.next() {
                Some('n') => '\n',
                Some(same @ ('\\' | '"')) => same,
                other => return Err(format!("there is no escape of {other:?}")),
            }),
            other => value.push(other),
        }
    }
}

fn is_name(text: &str, more: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || more.contains(c);
    text.chars().all(fits) && !text.starts_with(|c: char| c.is_ascii_digit()) && !text.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_found() {
        let head = "# HELP x_total X.\n# TYPE x_total counter\n";
        for (text, line, reason) in [
            ("x_total 1\n", 1, "begins with its help"),
            ("# HELP x_total X.\nx_total 1\n", 1, "comes its type"),
            ("# HELP x X.\n# TYPE x counter\nx 1\n", 1, "_total"),
            ("# HELP x X.\n# TYPE y gauge\nx 1\n", 1, "not one name"),
            ("# HELP x X.\n# TYPE x summary\nx 1\n", 1, "no type"),
            ("# HELP x X.\n# TYPE x gauge\n", 1, "no samples"),
            ("# HELP x X.\n# TYPE x gauge\ny 1\n", 3, "is not of x"),
            ("# HELP x X.\n# TYPE x gauge\nx -1\n", 3, "no number"),
            ("# HELP x X.\n# TYPE x gauge\nx  1\n", 3, "no number"),
            ("# HELP x X.\n# TYPE x gauge\nx 1", 3, "no end"),
            ("# HELP x X.\n# TYPE x gauge\nx{} 1\n", 3, "has a value"),
            ("# HELP x X.\n# TYPE x gauge\nx{a=\"b} 1\n", 3, "a quote"),
            ("# HELP x X.\n# TYPE x gauge\nx{a=\"\\b\"} 1\n", 3, "escape"),
            ("# HELP x X.\n# TYPE x gauge\nx{1=\"b\"} 1\n", 3, "no label"),
            (
                "# HELP x X.\n# TYPE x gauge\nx{a=\"b\",a=\"c\"} 1\n",
                3,
                "twice",
            ),
            ("# HELP x X.\n# TYPE x gauge\nx{a=\"b\"}1\n", 3, "no number"),
        ] {
            let error = Snapshot::parse(text).unwrap_err();
            assert!(
                error.line == line && error.reason.contains(reason),
                "{text:?}: {error}"
            );
        }
        let twice = format!("{head}x_total{{a=\"1\",b=\"2\"}} 1\nx_total{{b=\"2\",a=\"1\"}} 1\n");
        assert_eq!(Snapshot::parse(&twice).unwrap_err().line, 4);
        let twice = format!("{head}x_total 1\n{head}x_total 2\n");
        assert_eq!(Snapshot::parse(&twice).unwrap_err().line, 4);
        assert_eq!(Snapshot::parse(""), Ok(Snapshot::default()));
    }

    #[test]
    fn histograms_add_up() {
        let parse = |lines: &str| {
            Snapshot::parse(&format!("# HELP h H.\n# TYPE h histogram\n{lines}")).map(drop)
        };
        let (buckets, sum) = ("h_bucket{le=\"1\"} 2\n", "h_sum 9\n");
        let end = "h_bucket{le=\"+Inf\"} 3\n";
        assert_eq!(parse(&format!("{buckets}{end}{sum}h_count 3\n")), Ok(()));
        for wrong in [
            format!("{buckets}{end}{sum}"),
            format!("{buckets}{end}{sum}h_count 4\n"),
            format!("{buckets}{sum}h_count 2\n"),
            format!("{end}{buckets}{sum}h_count 3\n"),
            format!("{buckets}h_bucket{{le=\"+Inf\"}} 1\n{sum}h_count 1\n"),
            format!("{buckets}{end}h_count 3\n{sum}"),
        ] {
            assert!(parse(&wrong).is_err(), "{wrong}");
        }
    }
}
