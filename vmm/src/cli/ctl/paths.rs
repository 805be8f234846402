//! Relative paths are made absolute: whoever types one means the directory they are in, and not the one in which the VM's process was
//! started. Descriptors that were passed to that process (`fd:NAME`) are no paths, and stay as they are.

use std::path::PathBuf;

use paddock_api::spec::{ConsoleTarget, DiskConfig, PassedFd, VmConfig};

/// One path. An empty one stays as it is, for the API to refuse, and so does a descriptor that cannot be.
pub fn make_absolute(path: &mut PathBuf) {
    if PassedFd::in_path(path).is_some() {
        return;
    }
    if let Ok(absolute) = std::path::absolute(&path) {
        *path = absolute;
    }
}

/// All of a disk's.
pub fn of_disk(disk: &mut DiskConfig) -> impl Iterator<Item = &mut PathBuf> {
    let tls = disk.nbd.as_mut().and_then(|nbd| nbd.tls.as_mut());
    let tls = tls.map(|tls| [&mut tls.ca, &mut tls.certificate, &mut tls.key]);
    let tls = tls.into_iter().flatten().filter_map(Option::as_mut);
    let socket = disk.longhorn_socket.as_mut();
    let socket = socket.and_then(|socket| socket.path.as_mut());
    disk.path.iter_mut().chain(tls).chain(socket)
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
    paths.extend(config.disks.iter_mut().flat_map(of_disk));
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
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

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
            "disks": [{"path": "rel/a"}, {"path": "/abs"}, {"path": ""}, {"longhorn_socket": {"path": "rel/e"}}],
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
        assert_eq!(changed.count(), 10, "{found:?}");
        assert!(
            !found.iter().any(|text| text.starts_with("rel")),
            "{found:?}"
        );
        assert!(found.contains(&"/abs") && found.contains(&""), "{found:?}");
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
