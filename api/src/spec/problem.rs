//! What is wrong with a spec: every problem, each with its place, a stable code and what to do.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::pointer::JsonPointer;
use super::types::ValueError;

/// How many problems one answer holds at most: a hostile document must not make a huge one.
const MAX_PROBLEMS: usize = 100;

/// The class of a problem. The kebab-case names are part of the API: clients may rely on them, so they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProblemCode {
    /// The document has a field that the spec does not know.
    UnknownField,
    /// A field that must be given is not. The pointer names the object that lacks it.
    MissingField,
    /// A value has the wrong JSON type, such as a string where an integer belongs.
    WrongType,
    /// A value is none of the words that the field takes.
    UnknownValue,
    /// A text does not have the form that the field takes.
    Malformed,
    /// A number, a size, a text's length or a list's length is below or above what is allowed.
    OutOfRange,
    /// An id, name, path or address that must be unique appears twice. The pointer names the later one.
    Duplicate,
    /// Two values, each right by itself, contradict each other.
    Conflict,
}

impl ProblemCode {
    /// The code as it stands in the JSON form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownField => "unknown-field",
            Self::MissingField => "missing-field",
            Self::WrongType => "wrong-type",
            Self::UnknownValue => "unknown-value",
            Self::Malformed => "malformed",
            Self::OutOfRange => "out-of-range",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
        }
    }
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that is wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = SpecProblem)]
pub struct Problem {
    /// Where: a JSON pointer (RFC 6901) that resolves in the document that was read.
    #[schema(value_type = String)]
    pub pointer: JsonPointer,
    /// What class of problem, for programs.
    pub code: ProblemCode,
    /// What is wrong and what would be right, for people. One line.
    pub detail: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.pointer.is_root() {
            write!(f, "{}: ", self.pointer)?;
        }
        write!(f, "{} [{}]", self.detail, self.code)
    }
}

/// A spec that cannot be a VM, with every reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct InvalidSpec {
    problems: Vec<Problem>,
}

impl InvalidSpec {
    /// The problems, sorted by place. Never empty.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl InvalidSpec {
    /// From problems that were moved to another document. There is at least one.
    pub(crate) fn from_problems(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| natural_order(&a.pointer).cmp(&natural_order(&b.pointer)));
        Self { problems }
    }

    /// What a bug in the validation is reported as.
    pub(crate) fn without_reason() -> Self {
        Self {
            problems: vec![Problem {
                pointer: JsonPointer::root(),
                code: ProblemCode::Conflict,
                detail: "the spec was refused without a reason; this is a bug in Paddock"
                    .to_owned(),
            }],
        }
    }
}

impl fmt::Display for InvalidSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [one] => write!(f, "invalid VM spec: {one}"),
            many => {
                write!(f, "invalid VM spec, {} problems:", many.len())?;
                for problem in many {
                    write!(f, "\n  {problem}")?;
                }
                if many.len() >= MAX_PROBLEMS {
                    write!(f, "\n  (there may be more)")?;
                }
                Ok(())
            }
        }
    }
}

/// Collects problems while a document is read and checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    /// Adds a problem, unless one is already known at this very place with this very code, or too many are known.
    pub(crate) fn add(
        &mut self,
        pointer: JsonPointer,
        code: ProblemCode,
        detail: impl Into<String>,
    ) {
        let known = self
            .0
            .iter()
            .any(|p| p.pointer == pointer && p.code == code && code != ProblemCode::MissingField);
        if !known && !self.is_full() {
            self.0.push(Problem {
                pointer,
                code,
                detail: detail.into(),
            });
        }
    }

    /// Says that none of `fields` is given in the object at `owner`, unless one of them is given but already reported as
    /// wrong: then it was left out of the document that is being checked.
    pub(crate) fn missing(
        &mut self,
        owner: &JsonPointer,
        fields: &[&str],
        detail: impl Into<String>,
    ) {
        let reported = self.0.iter().any(|p| {
            owner.is_within(&p.pointer) && p.code != ProblemCode::MissingField
                || fields
                    .iter()
                    .any(|field| p.pointer.is_within(&owner.key(field)))
        });
        if !reported {
            self.add(owner.clone(), ProblemCode::MissingField, detail);
        }
    }

    /// The value, or `None` and a problem.
    pub(crate) fn check<T>(
        &mut self,
        pointer: &JsonPointer,
        result: Result<T, ValueError>,
    ) -> Option<T> {
        result
            .map_err(|error| self.add(pointer.clone(), error.code, error.detail))
            .ok()
    }

    /// Whether something is known to be wrong at a place or inside it.
    pub(crate) fn within(&self, place: &JsonPointer) -> bool {
        self.0.iter().any(|p| p.pointer.is_within(place))
    }

    /// Whether no more problems are taken.
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= MAX_PROBLEMS
    }

    /// `Ok` if there is nothing wrong.
    pub(crate) fn finish(mut self) -> Result<(), InvalidSpec> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0
            .sort_by(|a, b| natural_order(&a.pointer).cmp(&natural_order(&b.pointer)));
        Err(InvalidSpec { problems: self.0 })
    }
}

/// Sorts `/disks/2` before `/disks/10`.
fn natural_order(pointer: &JsonPointer) -> Vec<(usize, &str)> {
    pointer
        .as_str()
        .split('/')
        .map(|part| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            (if digits { part.len() } else { 0 }, part)
        })
        .collect()
}

/// A text from outside, quoted, escaped and cut so that it fits a message.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    format!("{shown:?}")
}
