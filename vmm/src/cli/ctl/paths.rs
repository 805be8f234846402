//! Relative paths are made absolute: whoever types one means the directory they are in, and not the one in which the VM's process was
//! started. Descriptors that were passed to that process (`fd:NAME`) are no paths, and stay as they are.

use std::path::PathBuf;

use paddock_api::spec::{ConsoleTarget, DiskConfig, PassedFd, VmConfig};
use serde::Deserialize;
use serde_json::Value;

/// Where the description of a disk has paths. Its backing file is described likewise.
const IN_DISK: [&[&str]; 5] = [
    &["path"],
    &["nbd", "tls", "ca"],
    &["nbd", "tls", "certificate"],
    &["nbd", "tls", "key"],
    &["longhorn_socket", "path"],
];

/// One path. An empty one stays as it is, for the API to refuse, and so does a descriptor that cannot be.
pub fn make_absolute(path: &mut PathBuf) {
    if PassedFd::in_path(path).is_some() {
        return;
    }
    if let Ok(absolute) = std::path::absolute(&path) {
        *path = absolute;
    }
}

/// All of a disk's, in its description as JSON, which need not be one that can be. Whether any has changed.
pub fn make_described_absolute(disk: &mut Value) -> bool {
    let mut changed = false;
    let mut image = Some(disk);
    while let Some(described) = image {
        for place in IN_DISK {
            let mut keys = place.iter();
            let found = keys.try_fold(&mut *described, |tree, key| tree.get_mut(*key));
            let Some(Value::String(text)) = found else {
                continue;
            };
            let mut path = PathBuf::from(&*text);
            make_absolute(&mut path);
            if let Ok(absolute) = path.into_os_string().into_string() {
                changed |= absolute != *text;
                *text = absolute;
            }
        }
        image = described.get_mut("backing");
    }
    changed
}

/// All of a disk's.
pub fn make_disk_absolute(disk: &mut DiskConfig) {
    // What is no text is refused where it is sent.
    let Ok(mut described) = serde_json::to_value(&*disk) else {
        return;
    };
    if make_described_absolute(&mut described) {
        if let Ok(absolute) = DiskConfig::deserialize(described) {
            *disk = absolute;
        }
    }
}

/// All of a spec.
pub fn make_all_absolute(config: &mut VmConfig) {
    let mut paths: Vec<&mut PathBuf> = Vec::new();
    if let Some(boot) = &mut config.boot {
        paths.extend(boot.kernel.as_mut());
        paths.extend(boot.initramfs.as_mut());
        if let Some(firmware) = &mut boot.firmware {
            paths.extend(firmware.path.as_mut());
            paths.extend(firmware.variables.as_mut());
            paths.extend(firmware.template.as_mut());
        }
    }
    let cdroms = config.cdroms.iter_mut();
    paths.extend(cdroms.filter_map(|cdrom| cdrom.path.as_mut()));
    if let Some(console) = &mut config.console {
        for target in [&mut console.serial, &mut console.hvc0] {
            if let Some(ConsoleTarget::File(path) | ConsoleTarget::Socket(path)) = target {
                paths.push(path);
            }
        }
        for log in [&mut console.serial_log, &mut console.hvc0_log] {
            paths.extend(log.as_mut().and_then(|log| log.path.as_mut()));
        }
        let ports = console.ports.iter_mut();
        paths.extend(ports.filter_map(|port| port.socket.as_mut()));
    }
    paths.into_iter().for_each(make_absolute);
    config.disks.iter_mut().for_each(make_disk_absolute);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Every text in a tree.
    fn texts<'a>(tree: &'a Value, found: &mut Vec<&'a str>) {
        match tree {
            Value::String(text) => found.push(text),
            Value::Array(list) => list.iter().for_each(|value| texts(value, found)),
            Value::Object(map) => map.values().for_each(|value| texts(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_path_of_a_spec() {
        let mut config: VmConfig = serde_json::from_value(json!({
            "boot": {"kernel": "rel/k", "initramfs": "rel/i"},
            "disks": [
                {"path": "rel/a"}, {"path": "/abs"}, {"path": ""}, {"longhorn_socket": {"path": "rel/e"}},
                {"path": "rel/o", "backing": {"path": "rel/b", "backing": {"path": "rel/d"}}},
                {"nbd": {"uri": "nbds://h/x", "tls": {"ca": "rel/t", "certificate": "rel/u", "key": "rel/v", "hostname": "h"}}},
            ],
            "cdroms": [{"path": "rel/c"}, {}],
            "console": {
                "serial": {"file": "rel/s"}, "serial_log": {"path": "rel/l"},
                "hvc0": {"socket": "rel/h"}, "hvc0_log": {"path": "rel/m"},
                "ports": [{"name": "agent", "socket": "rel/p"}],
            },
        }))
        .unwrap();
        make_all_absolute(&mut config);
        let tree = json!(config);
        let mut found = Vec::new();
        texts(&tree, &mut found);
        let here = std::env::current_dir().unwrap();
        let changed = found
            .iter()
            .filter(|text| text.starts_with(here.to_str().unwrap()));
        assert_eq!(changed.count(), 16, "{found:?}");
        assert!(
            !found.iter().any(|text| text.starts_with("rel")),
            "{found:?}"
        );
        assert!(found.contains(&"/abs") && found.contains(&""), "{found:?}");
    }

    /// As it is in a file, where it may be for a newer API, or wrong.
    #[test]
    fn every_path_of_a_described_disk() {
        let mut disk = json!({
            "path": "rel/o", "new": "rel", "backing": {"path": "rel/b", "backing": {"path": "/abs"}},
            "nbd": {"tls": {"ca": "rel/t", "key": 3}}, "longhorn_socket": {"path": "rel/e"},
        });
        assert!(make_described_absolute(&mut disk));
        let here = std::env::current_dir().unwrap();
        let at = |name: &str| json!(here.join(name));
        let expected = json!({
            "path": at("rel/o"), "new": "rel", "backing": {"path": at("rel/b"), "backing": {"path": "/abs"}},
            "nbd": {"tls": {"ca": at("rel/t"), "key": 3}}, "longhorn_socket": {"path": at("rel/e")},
        });
        assert_eq!(disk, expected);
        assert!(!make_described_absolute(&mut disk), "again");
        for wrong in [json!(null), json!("path"), json!([{"path": "rel"}])] {
            let mut same = wrong.clone();
            assert!(!make_described_absolute(&mut same));
            assert_eq!(same, wrong);
        }
    }

    #[test]
    fn those_of_firmware() {
        let firmware = json!({"path": "rel/c", "variables": "rel/v", "template": "rel/t"});
        let config = json!({"boot": {"firmware": firmware}});
        let mut config: VmConfig = serde_json::from_value(config).unwrap();
        make_all_absolute(&mut config);
        let tree = json!(config);
        let mut found = Vec::new();
        texts(&tree, &mut found);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().all(|text| text.starts_with('/')), "{found:?}");
    }

    #[test]
    fn descriptors_are_no_paths() {
        let described = json!({
            "boot": {"kernel": "fd:kernel", "initramfs": "fd:3"},
            "disks": [{"path": "fd:data"}, {"path": "fd:"}],
            "nics": [{"tap": "fd:tap"}],
            "console": {
                "serial": {"file": "fd:log"}, "hvc0": {"socket": "fd:x"},
                "ports": [{"name": "agent", "socket": "fd:y"}],
            },
        });
        let mut config: VmConfig = serde_json::from_value(described.clone()).unwrap();
        make_all_absolute(&mut config);
        let sent = json!(config);
        for part in ["boot", "disks", "nics", "console"] {
            assert_eq!(sent[part], described[part]);
        }
        // A file of such a name.
        let mut path = PathBuf::from("./fd:data");
        make_absolute(&mut path);
        assert_eq!(path, std::env::current_dir().unwrap().join("fd:data"));
    }
}
