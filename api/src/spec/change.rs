//! Changes of a VM's devices: the spec it would then have, checked as a whole, as if it had been written that way.

use serde_json::Value;

use super::config::VmConfig;
use super::machine::{Boot, VmSpec};
use super::pointer::JsonPointer;
use super::problem::{InvalidSpec, Problem};
use super::source::{Draft, SpecError, tree_from_json};

impl VmSpec {
    /// The spec with one more disk, the last, described by JSON as an element of `disks`. Pointers of problems are into `text`.
    ///
    /// # Errors
    /// [`SpecError`] with all problems.
    pub fn with_disk(&self, text: &str) -> Result<Self, SpecError> {
        self.with("disks", text)
    }

    /// The spec with one more NIC, the last, described by JSON as an element of `nics`. Pointers of problems are into `text`.
    ///
    /// # Errors
    /// [`SpecError`] with all problems.
    pub fn with_nic(&self, text: &str) -> Result<Self, SpecError> {
        self.with("nics", text)
    }

    /// The spec without the disk or NIC of this id, if there is one: nor is it to be booted from.
    #[must_use]
    pub fn without_device(&self, id: &str) -> Self {
        let mut spec = self.clone();
        spec.disks.retain(|disk| disk.id.as_str() != id);
        spec.nics.retain(|nic| nic.id.as_str() != id);
        if let Boot::Firmware(firmware) = &mut spec.boot {
            firmware.order.retain(|device| device.as_str() != id);
        }
        spec
    }

    fn with(&self, list: &str, text: &str) -> Result<Self, SpecError> {
        let added = tree_from_json(text)?;
        let mut tree = serde_json::to_value(VmConfig::from(self)).unwrap_or_default();
        let index = match &mut tree[list] {
            Value::Array(elements) => {
                elements.push(added.clone());
                elements.len() - 1
            }
            absent => {
                *absent = Value::Array(vec![added.clone()]);
                0
            }
        };
        let at = JsonPointer::root().key(list).index(index);
        let result = Draft::from_value(tree).validate();
        result.map_err(|error| {
            let problems = error.problems().iter().cloned();
            let problems = problems.map(|problem| Problem {
                pointer: within(&problem.pointer, &at, &added),
                ..problem
            });
            SpecError::Invalid(InvalidSpec::from_problems(problems.collect()))
        })
    }
}

/// What `pointer` is inside the element at `at`. A problem seen from the other side, such as an id that another device has too, is the
/// element's field of that name.
fn within(pointer: &JsonPointer, at: &JsonPointer, added: &Value) -> JsonPointer {
    if let Some(inside) = pointer.relative_to(at) {
        return inside;
    }
    match pointer.split_last() {
        Some((_, field)) if added.get(&field).is_some() => JsonPointer::root().key(&field),
        _ => JsonPointer::root(),
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::{ProblemCode, SpecError, VmSpec};

    fn spec() -> VmSpec {
        VmSpec::from_json(
            r#"{"boot": {"kernel": "/vmlinuz"}, "disks": [{"path": "/a"}, {"path": "/b"}],
                "nics": [{"tap": "tap0", "id": "lan"}]}"#,
        )
        .unwrap()
    }

    fn problems(error: &SpecError) -> Vec<(&str, ProblemCode)> {
        let problems = error.problems().iter();
        problems.map(|p| (p.pointer.as_str(), p.code)).collect()
    }

    #[test]
    fn devices_are_added_at_the_end_with_the_first_free_id() {
        let spec = spec().without_device("disk0");
        assert_eq!(spec.disks.len(), 1);
        let spec = spec.with_disk(r#"{"path": "/c"}"#).unwrap();
        let ids: Vec<_> = spec.disks.iter().map(|disk| disk.id.as_str()).collect();
        assert_eq!(ids, ["disk1", "disk2"]);
        let spec = spec.with_nic(r#"{"bridge": "br0", "vlan": 7}"#).unwrap();
        assert_eq!(spec.nics[1].id.as_str(), "nic1");
        let spec = spec.without_device("lan").without_device("nic1");
        assert!(spec.nics.is_empty());
        let spec = spec.with_nic(r#"{"tap": "tap0"}"#).unwrap();
        assert_eq!(spec.nics[0].id.as_str(), "nic0");
    }

    #[test]
    fn all_problems_are_told_and_point_into_what_was_sent() {
        let error = spec().with_disk(r#"{"pth": "/c", "queues": 0, "id": "disk1"}"#);
        assert_eq!(
            problems(&error.unwrap_err()),
            [
                ("", ProblemCode::MissingField),
                ("/id", ProblemCode::Duplicate),
                ("/pth", ProblemCode::UnknownField),
                ("/queues", ProblemCode::OutOfRange),
            ]
        );
        let error = spec().with_disk(r#"{"path": "/c", "id": "lan"}"#);
        assert_eq!(
            problems(&error.unwrap_err()),
            [("/id", ProblemCode::Duplicate)]
        );
        let error = spec().with_nic(r#"{"tap": "tap0"}"#);
        assert_eq!(
            problems(&error.unwrap_err()),
            [("/tap", ProblemCode::Duplicate)]
        );
        for text in ["[]", "null", "3", "\"disk\""] {
            let error = spec().with_disk(text).unwrap_err();
            assert_eq!(error.problems()[0].pointer.as_str(), "", "{text}: {error}");
        }
        assert!(matches!(
            spec().with_disk("{").unwrap_err(),
            SpecError::Syntax(_)
        ));
    }

    #[test]
    fn the_limits_are_those_of_a_whole_spec() {
        let mut spec = spec();
        for index in 2..128 {
            spec = spec
                .with_disk(&format!(r#"{{"path": "/more{index}"}}"#))
                .unwrap();
        }
        let error = spec.with_disk(r#"{"path": "/last"}"#).unwrap_err();
        assert_eq!(error.problems()[0].pointer.as_str(), "");
    }
}
