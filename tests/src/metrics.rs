//! Metrics as Prometheus gets them, read for tests: what the text says, and how it changes.

use std::collections::BTreeMap;

/// Metrics at one moment: numbers by series as it is written, labels included.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads the text format; no label here has a new line in it.
    ///
    /// # Panics
    /// When a line is neither a comment nor a series with a number, or a series comes twice.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut series = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let sample = line.rsplit_once(' ');
            let sample = sample.and_then(|(name, value)| Some((name, value.parse().ok()?)));
            let Some((name, value)) = sample else {
                panic!("{line:?} is not a series with a number");
            };
            let before = series.insert(name.to_owned(), value);
            assert_eq!(before, None, "{name} comes twice");
        }
        Self(series)
    }

    /// The number of a series, such as `paddock_disk_bytes_total{disk="disk0",queue="0",kind="read"}`, if there is one.
    #[must_use]
    pub fn find(&self, series: &str) -> Option<f64> {
        self.0.get(series).copied()
    }

    /// The number of a series.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn get(&self, series: &str) -> f64 {
        let found = self.find(series);
        found.unwrap_or_else(|| panic!("no {series}, but {:#?}", self.0.keys()))
    }

    /// How many series there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The sum of all series of this name that have all of `labels`.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let series = self.0.iter().filter(|(series, _)| {
            let has = |(label, value): &(&str, &str)| {
                let text = format!("{label}=\"{value}\"");
                series.contains(&format!("{{{text}")) || series.contains(&format!(",{text}"))
            };
            series.split('{').next() == Some(name) && labels.iter().all(has)
        });
        series.map(|(_, value)| value).sum()
    }

    /// Whether a series has this label.
    #[must_use]
    pub fn mentions(&self, label: &str, value: &str) -> bool {
        let text = format!("{label}=\"{value}\"");
        self.0.keys().any(|series| series.contains(&text))
    }

    /// The counters that are lower in `later`, or not there.
    #[must_use]
    pub fn turned_back(&self, later: &Self) -> Vec<&str> {
        let counters = self.0.iter().filter(|(series, _)| {
            let name = series.split('{').next().unwrap_or_default();
            name.ends_with("_total")
        });
        let lower = counters.filter(|(series, value)| {
            let now = later.find(series);
            now.is_none_or(|now| now < **value)
        });
        lower.map(|(series, _)| series.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_and_compared() {
        let text = "# HELP a_total A.\n# TYPE a_total counter\na_total{disk=\"d\",queue=\"0\"} 2\n\
                    a_total{disk=\"d\",queue=\"1\"} 3.5\na_total{disk=\"e\",queue=\"1\"} 7\nup 1\n";
        let before = Metrics::parse(text);
        assert_eq!((before.get("up"), before.count()), (1.0, 4));
        assert_eq!(before.find("a_total"), None);
        assert_eq!(before.sum("a_total", &[("disk", "d")]), 5.5);
        assert_eq!(before.sum("a_total", &[("queue", "1"), ("disk", "e")]), 7.0);
        assert!(before.mentions("disk", "e") && !before.mentions("disk", "f"));
        let later = Metrics::parse("a_total{disk=\"d\",queue=\"0\"} 1\nup 0\n");
        assert_eq!(before.turned_back(&later).len(), 3);
        assert_eq!(before.turned_back(&before), [""; 0]);
    }

    #[test]
    #[should_panic(expected = "is not a series")]
    fn nonsense_is_found() {
        let _ = Metrics::parse("up\n");
    }
}
