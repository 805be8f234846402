//! Why the API did not do what it was asked to (RFC 9457), for people.

use std::fmt;

use serde::Deserialize;

/// A problem as the API tells it. Codes are texts here: a newer process may have some that this program does not know.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// The HTTP status in words.
    #[serde(default)]
    title: String,
    /// What class of problem.
    #[serde(default)]
    pub code: String,
    /// What is wrong and what would be right.
    #[serde(default)]
    detail: String,
    /// Every reason with its place in what was sent.
    #[serde(default)]
    errors: Vec<Reason>,
    /// The body as it came.
    #[serde(skip)]
    pub text: String,
}

/// One thing that is wrong with what was sent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Reason {
    /// A JSON pointer.
    #[serde(default)]
    pointer: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    detail: String,
}

impl Problem {
    /// From a body; `None` if it tells nothing.
    pub fn read(text: &str) -> Option<Self> {
        let problem: Self = serde_json::from_str(text).ok()?;
        let tells = !problem.title.is_empty() || !problem.detail.is_empty();
        tells.then(|| Self {
            text: text.to_owned(),
            ..problem
        })
    }

    /// What to do about it with this program, where the API's own advice is about HTTP.
    fn advice(&self) -> Option<&'static str> {
        Some(match self.code.as_str() {
            "no-vm" => "`paddock ctl vm create` makes one",
            "vm-exists" => "`paddock ctl vm delete` makes room for another",
            "no-device" => {
                "`paddock ctl disks list`, `paddock ctl cdroms list` and `paddock ctl nics list` show those it has"
            }
            "tray-locked" => "`--force` takes the medium away from the guest",
            "device-busy" => {
                "`paddock ctl jobs wait N` waits for the job, `paddock ctl jobs cancel N` cancels it"
            }
            "no-job" => "`paddock ctl jobs list` shows those there are",
            "no-balloon" => "`paddock ctl vm create --balloon` gives the next one a balloon",
            _ => return None,
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.detail.is_empty() {
            &self.title
        } else {
            &self.detail
        };
        f.write_str(what)?;
        if !self.code.is_empty() {
            write!(f, " ({})", self.code)?;
        }
        for Reason {
            pointer,
            code,
            detail,
        } in &self.errors
        {
            // Where it is the only one, the API says it at once.
            if !detail.is_empty() && what.contains(detail.as_str()) {
                continue;
            }
            let place = if pointer.is_empty() {
                "the whole"
            } else {
                pointer
            };
            write!(f, "\n  {place}: {detail}")?;
            if !code.is_empty() {
                write!(f, " [{code}]")?;
            }
        }
        match self.advice() {
            Some(advice) => write!(f, "\n  {advice}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_place() {
        let problem = Problem::read(
            r#"{"title": "Unprocessable Entity", "status": 422, "code": "invalid-spec", "detail": "the spec is wrong in 2 places",
                "errors": [{"pointer": "", "code": "missing-field", "detail": "path is missing"},
                           {"pointer": "/queues", "code": "out-of-range", "detail": "0 is not from 1 to 64"}]}"#,
        );
        assert_eq!(
            problem.unwrap().to_string(),
            "the spec is wrong in 2 places (invalid-spec)\n  \
             the whole: path is missing [missing-field]\n  \
             /queues: 0 is not from 1 to 64 [out-of-range]"
        );
    }

    #[test]
    fn a_reason_is_not_told_twice() {
        let problem = Problem::read(
            r#"{"code": "invalid-spec", "detail": "the spec is wrong: /target: it is too much [out-of-range]",
                "errors": [{"pointer": "/target", "code": "out-of-range", "detail": "it is too much"}]}"#,
        );
        assert_eq!(
            problem.unwrap().to_string(),
            "the spec is wrong: /target: it is too much [out-of-range] (invalid-spec)"
        );
    }

    #[test]
    fn codes_that_are_not_known_are_shown_too() {
        let problem =
            Problem::read(r#"{"title": "Conflict", "code": "new-one", "detail": "", "more": [1]}"#);
        assert_eq!(problem.unwrap().to_string(), "Conflict (new-one)");
        let problem = Problem::read(r#"{"detail": "there is no VM", "code": "no-vm"}"#).unwrap();
        assert!(
            problem
                .to_string()
                .ends_with("\n  `paddock ctl vm create` makes one"),
            "{problem}"
        );
        for text in ["", "[]", "{}", "null", "{\"errors\": 1, \"detail\": \"a\"}"] {
            assert_eq!(Problem::read(text), None, "{text}");
        }
    }
}
