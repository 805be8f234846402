//! What holds for any document, be it random, nearly right, or no document at all.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Draft, JsonPointer, Problem, VmSpec};
use super::valid;

/// Words that a document about a VM has, so that random ones come near to being right.
fn word() -> impl Strategy<Value = String> {
    let words = [
        "name",
        "uuid",
        "boot",
        "kernel",
        "firmware",
        "variables",
        "template",
        "order",
        "smbios",
        "oem_strings",
        "initramfs",
        "command_line",
        "cpus",
        "count",
        "topology",
        "sockets",
        "cores",
        "threads",
        "nested",
        "memory",
        "size",
        "shared",
        "hugepages",
        "disks",
        "id",
        "path",
        "read_only",
        "direct",
        "engine",
        "format",
        "backing",
        "qcow2",
        "nbd",
        "uri",
        "tls",
        "volume",
        "replicas",
        "timeout",
        "longhorn_socket",
        "block_size",
        "queues",
        "queue_size",
        "serial",
        "cdroms",
        "nics",
        "tap",
        "bridge",
        "vlan",
        "mac",
        "mtu",
        "queue_pairs",
        "console",
        "hvc0",
        "ports",
        "socket",
        "rng",
        "balloon",
        "deflate_on_oom",
        "free_page_reporting",
        "on_reset",
        "file",
        "files",
        "serial_log",
        "hvc0_log",
        "terminal",
        "off",
        "auto",
        "io_uring",
        "1GiB",
        "2MiB",
        "02:00:00:00:00:01",
        "a~b/c",
        "",
    ];
    prop_oneof![
        prop::sample::select(words.map(str::to_owned).to_vec()),
        any::<String>()
    ]
}

fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0_u64..300).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((word(), inner), 0..10).prop_map(|members| members
                .into_iter()
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

/// A valid document with one of its values replaced.
fn damaged() -> impl Strategy<Value = Value> {
    let whole = json!({
        "name": "a", "uuid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "boot": {"kernel": "k", "initramfs": "i", "command_line": "c"},
        "cpus": {"count": 3, "max": 4, "topology": {"sockets": 1, "cores": 2, "threads": 2}, "nested": true},
        "memory": {"size": "1GiB", "shared": true, "hugepages": "2MiB"},
        "disks": [{"id": "a", "path": "a", "read_only": true, "direct": "on", "engine": "threads",
                   "queues": 2, "queue_size": 64, "serial": "s"},
                  {"path": "b", "format": "qcow2", "backing": {"path": "c", "format": "raw"}},
                  {"nbd": {"uri": "nbds://h/x", "tls": {"ca": "c", "certificate": "c", "key": "k", "hostname": "h"},
                   "request_timeout_ms": 1000}},
                  {"volume": {"name": "v", "replicas": ["a:1", "b:1"], "size": "1GiB", "timeout": 9,
                              "revision_counter": true, "salvage": false, "record": "r",
                              "controller": "127.0.0.1:1"}},
                  {"longhorn_socket": {"path": "l", "size": "1GiB"}}],
        "cdroms": [{"id": "c", "path": "d"}, {}],
        "nics": [{"id": "n", "bridge": "b", "vlan": 5, "mac": "02:00:00:00:00:01", "mtu": 1500,
                  "queue_pairs": 2, "queue_size": 16}, {"tap": "t"}],
        "console": {"serial": {"socket": "c"}, "serial_log": {"path": "l", "size": "1MiB", "files": 2},
                    "hvc0": {"file": "f"}, "ports": [{"name": "p", "socket": "s"}]},
        "rng": false, "on_reset": "exit",
        "balloon": {"size": "64MiB", "deflate_on_oom": true, "free_page_reporting": false},
    });
    assert!(Draft::from_value(whole.clone()).validate().is_ok());
    let mut places = Vec::new();
    list_places(&whole, &JsonPointer::root(), &mut places);
    (prop::collection::vec((prop::sample::select(places), document()), 1..4)).prop_map(
        move |damages| {
            let mut damaged = whole.clone();
            for (place, value) in damages {
                if let Some(target) = damaged.pointer_mut(place.as_str()) {
                    *target = value;
                }
            }
            damaged
        },
    )
}

fn list_places(value: &Value, at: &JsonPointer, places: &mut Vec<JsonPointer>) {
    places.push(at.clone());
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| list_places(value, &at.key(key), places)),
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                list_places(value, &at.index(index), places);
            }
        }
        _ => {}
    }
}

/// Whatever the document, the answer is a spec that says itself again, or problems whose pointers resolve.
fn answered(document: &Value) -> Result<(), TestCaseError> {
    match Draft::from_value(document.clone()).validate() {
        Ok(spec) => {
            let again = serde_json::to_value(&spec).unwrap();
            prop_assert_eq!(valid(&again), spec);
        }
        Err(error) => {
            prop_assert!(!error.problems().is_empty());
            for problem in error.problems() {
                prop_assert!(
                    document.pointer(problem.pointer.as_str()).is_some(),
                    "{} is not in {}",
                    problem,
                    document
                );
                prop_assert!(!problem.detail.contains('\n'), "{:?}", problem.detail);
                prop_assert!(problem.detail.len() < 500, "{:?}", problem.detail);
                prop_assert!(!problem.detail.contains("bug in Paddock"));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_document_is_answered(document in document()) {
        answered(&document)?;
    }

    #[test]
    fn any_damage_is_answered(document in damaged()) {
        answered(&document)?;
    }

    #[test]
    fn any_text_is_answered(text: String) {
        let _ = VmSpec::from_json(&text);
        let _ = VmSpec::from_toml(&text);
    }

    #[test]
    fn json_text_and_tree_agree(document in damaged()) {
        // Texts of odd floating-point numbers may differ in the last digit, so the details are not compared.
        let places = |problems: &[Problem]| -> Vec<_> {
            problems.iter().map(|problem| (problem.pointer.clone(), problem.code)).collect()
        };
        let text = VmSpec::from_json(&document.to_string()).map_err(|error| places(error.problems()));
        let tree = Draft::from_value(document).validate().map_err(|error| places(error.problems()));
        prop_assert_eq!(text, tree);
    }
}
