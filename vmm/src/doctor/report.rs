//! What the doctor says: rows, each with its verdict, in groups.
//!
//! The JSON of [`Report`] is an interface, described by the types here: an object with the fields of [`Report`], in which
//! `checks` is a flat list, a row a check, with the fields of [`Check`] and its `group`. Fields and rows are added, not changed or
//! taken away, as long as `version` stays 1; the names of groups and checks stay what they are. What `found`, `means` and `fix`
//! say is for people and may be said better any day; `verdict`, `blocks` and `facts` are for programs.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// The version of the JSON's shape.
pub const VERSION: u32 = 1;

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// There, but slower, smaller or less safe than it could be; or Paddock falls back to something else.
    Degraded,
    /// Not there, or not usable by this process. VMs that ask for it are refused; all of them, where the check blocks.
    Missing,
    /// It could not be looked at.
    Unknown,
}

impl Verdict {
    /// As it is printed, and as it is in the JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

/// How to mend something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fix {
    /// What to do, and where.
    pub text: String,
    /// Commands or settings, each on a line of its own, to be copied.
    pub commands: Vec<String>,
}

impl Fix {
    /// With nothing to copy.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            commands: Vec::new(),
        }
    }

    /// With something to copy.
    pub fn commands<S: Into<String>>(
        text: impl Into<String>,
        commands: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            text: text.into(),
            commands: commands.into_iter().map(Into::into).collect(),
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// Its stable name within its group.
    pub name: &'static str,
    /// Which one, where a host has several: a bridge's name, a directory.
    pub subject: Option<String>,
    /// What it came to.
    pub verdict: Verdict,
    /// Whether no VM runs until this is mended.
    pub blocks: bool,
    /// What was found; for [`Verdict::Unknown`], why nothing was.
    pub found: String,
    /// What that means for a VM, where it is not plain. Always there unless the verdict is [`Verdict::Ok`].
    pub means: Option<String>,
    /// How to mend it, if there is something to mend and a way.
    pub fix: Option<Fix>,
    /// What was found, for programs. The name of a fact says its unit, where it has one.
    pub facts: BTreeMap<&'static str, Value>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self {
            name,
            subject: None,
            verdict,
            blocks: false,
            found: found.into(),
            means: None,
            fix: None,
            facts: BTreeMap::new(),
        }
    }

    /// All is well.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, found)
    }

    /// Not as good as it could be, and what that means for a VM.
    pub fn degraded(
        name: &'static str,
        found: impl Into<String>,
        means: impl Into<String>,
    ) -> Self {
        Self::new(name, Verdict::Degraded, found).means(means)
    }

    /// Something that not every VM needs is missing, and what that means for those that do.
    pub fn missing(name: &'static str, found: impl Into<String>, means: impl Into<String>) -> Self {
        Self::new(name, Verdict::Missing, found).means(means)
    }

    /// Something without which no VM runs is missing.
    pub fn blocked(name: &'static str, found: impl Into<String>, means: impl Into<String>) -> Self {
        Self {
            blocks: true,
            ..Self::missing(name, found, means)
        }
    }

    /// It could not be looked at, why, and what not knowing means.
    pub fn unknown(name: &'static str, why: impl Into<String>, means: impl Into<String>) -> Self {
        Self::new(name, Verdict::Unknown, why).means(means)
    }

    /// Which one of several.
    #[must_use]
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// What it means for a VM.
    #[must_use]
    pub fn means(mut self, text: impl Into<String>) -> Self {
        self.means = Some(text.into());
        self
    }

    /// How to mend it.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<Option<Fix>>) -> Self {
        self.fix = fix.into();
        self
    }

    /// Something for programs.
    #[must_use]
    pub fn fact(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.facts.insert(key, value.into());
        self
    }
}

/// Checks that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its stable name.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// In the order of what depends on what.
    pub checks: Vec<Check>,
}

/// How many checks came to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// [`Verdict::Ok`].
    pub ok: usize,
    /// [`Verdict::Degraded`].
    pub degraded: usize,
    /// [`Verdict::Missing`].
    pub missing: usize,
    /// [`Verdict::Unknown`].
    pub unknown: usize,
}

/// Everything the doctor found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// Paddock's version.
    pub paddock: &'static str,
    /// The release of the host's kernel.
    pub kernel: Option<String>,
    /// Whether a VM can run here: no check blocks. The command's exit status says the same.
    pub can_run: bool,
    /// Checks by verdict.
    pub counts: Counts,
    /// The checks; in the JSON a flat list, in which each row begins with the name of its group.
    #[serde(rename = "checks", serialize_with = "rows")]
    pub groups: Vec<Group>,
}

/// A row of the JSON.
#[derive(Serialize)]
struct Row<'a> {
    group: &'static str,
    #[serde(flatten)]
    check: &'a Check,
}

fn rows<S: Serializer>(groups: &[Group], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(groups.iter().flat_map(|group| {
        group.checks.iter().map(|check| Row {
            group: group.name,
            check,
        })
    }))
}

impl Report {
    /// Sums up.
    #[must_use]
    pub fn new(kernel: Option<String>, groups: Vec<Group>) -> Self {
        let mut counts = Counts::default();
        let mut can_run = true;
        for check in groups.iter().flat_map(|group| &group.checks) {
            *match check.verdict {
                Verdict::Ok => &mut counts.ok,
                Verdict::Degraded => &mut counts.degraded,
                Verdict::Missing => &mut counts.missing,
                Verdict::Unknown => &mut counts.unknown,
            } += 1;
            can_run &= !check.blocks;
        }
        Self {
            version: VERSION,
            paddock: env!("CARGO_PKG_VERSION"),
            kernel,
            can_run,
            counts,
            groups,
        }
    }

    /// A check by its group and name; the first, where it has several subjects.
    #[must_use]
    pub fn check(&self, group: &str, name: &str) -> Option<&Check> {
        let group = self.groups.iter().find(|one| one.name == group)?;
        group.checks.iter().find(|check| check.name == name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(checks: Vec<Check>) -> Report {
        let group = Group {
            name: "g",
            title: "G",
            checks,
        };
        Report::new(Some("6.1".into()), vec![group])
    }

    #[test]
    fn the_json_keeps_its_shape() {
        let check = Check::degraded("c", "f", "m")
            .about("s")
            .fix(Fix::commands("t", ["c"]))
            .fact("n", 1);
        let report = report(vec![
            check,
            Check::unknown("u", "why", "what"),
            Check::ok("o", "f"),
        ]);
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            json!({
                "version": 1,
                "paddock": env!("CARGO_PKG_VERSION"),
                "kernel": "6.1",
                "can_run": true,
                "counts": {"ok": 1, "degraded": 1, "missing": 0, "unknown": 1},
                "checks": [
                    {"group": "g", "name": "c", "subject": "s", "verdict": "degraded", "blocks": false, "found": "f",
                     "means": "m", "fix": {"text": "t", "commands": ["c"]}, "facts": {"n": 1}},
                    {"group": "g", "name": "u", "subject": null, "verdict": "unknown", "blocks": false, "found": "why",
                     "means": "what", "fix": null, "facts": {}},
                    {"group": "g", "name": "o", "subject": null, "verdict": "ok", "blocks": false, "found": "f",
                     "means": null, "fix": null, "facts": {}},
                ],
            })
        );
    }

    #[test]
    fn only_what_blocks_keeps_vms_from_running() {
        assert!(report(vec![Check::missing("c", "f", "m")]).can_run);
        assert!(report(vec![Check::unknown("c", "f", "m")]).can_run);
        assert!(!report(vec![Check::ok("a", "f"), Check::blocked("c", "f", "m")]).can_run);
    }
}
