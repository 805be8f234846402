//! What the VM starts with: a kernel or firmware, the boot order, and what the machine calls itself.

use super::*;

fn firmware(spec: VmSpec) -> FirmwareBoot {
    match spec.boot {
        Boot::Firmware(firmware) => firmware,
        other => panic!("{other:?}"),
    }
}

#[test]
fn firmware_is_the_hosts_unless_it_is_named() {
    let found = firmware(valid(&json!({"boot": {"firmware": {}}})));
    assert_eq!(
        (found.path, found.variables, found.template, found.order),
        (None, None, None, vec![])
    );
    let document = json!({
        "boot": {
            "firmware": {"path": "fd:3", "variables": "v.fd", "template": "t.fd"},
            "order": ["nic0", "root"],
        },
        "disks": [{"id": "root", "path": "a"}, {"path": "b"}],
        "nics": [{"tap": "t"}],
        "smbios": {"serial": "s-1", "asset_tag": "rack 3", "oem_strings": ["a=b", "ü"]},
    });
    let spec = valid(&document);
    assert_eq!(spec.smbios.oem_strings, ["a=b", "ü"]);
    let again = VmSpec::try_from(VmConfig::from(&spec)).unwrap();
    assert_eq!(spec, again);
    let passed: Vec<_> = spec.passed().iter().map(ToString::to_string).collect();
    assert_eq!(passed, ["fd:3"]);
    let named = firmware(spec.clone());
    assert_eq!(named.path, Some("fd:3".into()));
    assert_eq!(named.variables, Some("v.fd".into()));
    assert_eq!(named.template, Some("t.fd".into()));
    let order: Vec<_> = named.order.iter().map(DeviceId::as_str).collect();
    assert_eq!(order, ["nic0", "root"]);

    let rest = spec.without_device("root");
    assert_eq!(firmware(rest.clone()).order.len(), 1);
    assert!(VmSpec::try_from(VmConfig::from(&rest)).is_ok());
}

#[test]
fn a_kernel_and_firmware_do_not_mix() {
    refuses(
        &json!({"boot": {"kernel": "k", "firmware": {}}}),
        &[("/boot/firmware", Conflict)],
    );
    refuses(
        &json!({"boot": {"firmware": {}, "initramfs": "i", "command_line": ""}}),
        &[
            ("/boot/command_line", Conflict),
            ("/boot/initramfs", Conflict),
        ],
    );
    refuses(
        &json!({"boot": {"kernel": "k", "order": ["disk0"]}, "disks": [{"path": "a"}]}),
        &[("/boot/order", Conflict)],
    );
    refuses(&json!({"boot": {}}), &[("/boot", MissingField)]);
}

#[test]
fn firmware_files_are_named_by_paths() {
    refuses(
        &json!({"boot": {"firmware": {"path": "", "variables": "fd:3", "template": "fd:t"}}}),
        &[
            ("/boot/firmware/path", Malformed),
            ("/boot/firmware/template", Malformed),
            ("/boot/firmware/variables", Malformed),
        ],
    );
    refuses(
        &json!({"boot": {"firmware": "OVMF.fd"}}),
        &[("/boot/firmware", WrongType)],
    );
}

#[test]
fn the_boot_order_names_each_device_once() {
    refuses(
        &json!({
            "boot": {"firmware": {}, "order": ["disk0", "disk1", "disk0", "rng", "/"]},
            "disks": [{"path": "a"}],
        }),
        &[
            ("/boot/order/1", UnknownValue),
            ("/boot/order/2", Duplicate),
            ("/boot/order/3", UnknownValue),
            ("/boot/order/4", Malformed),
        ],
    );
    refuses(
        &json!({"boot": {"firmware": {}, "order": [["disk0"], 3]}, "name": "_"}),
        &[("/boot/order/0", WrongType), ("/name", Malformed)],
    );
    let long = vec!["disk0"; 169];
    refuses(
        &json!({"boot": {"firmware": {}, "order": long}}),
        &[("/boot/order", OutOfRange)],
    );
}

#[test]
fn a_cdrom_drive_may_be_first_and_alone() {
    let order = |spec: &Value| -> Vec<_> {
        let order = firmware(valid(spec)).order;
        order.iter().map(ToString::to_string).collect()
    };
    let alone = json!({
        "boot": {"firmware": {}, "order": ["cdrom0"]},
        "cdroms": [{"path": "install.iso"}],
    });
    assert_eq!(order(&alone), ["cdrom0"]);
    let mixed = json!({
        "boot": {"firmware": {}, "order": ["tools", "disk0", "cdrom0"]},
        "disks": [{"path": "a"}],
        "cdroms": [{}, {"id": "tools", "path": "t.iso"}],
    });
    assert_eq!(order(&mixed), ["tools", "disk0", "cdrom0"]);
    refuses(
        &json!({"boot": {"firmware": {}, "order": ["cdrom1"]}, "cdroms": [{}]}),
        &[("/boot/order/0", UnknownValue)],
    );
    valid(&json!({"boot": {"firmware": {}}, "cdroms": [{}]}));
}

#[test]
fn smbios_texts_can_be_told() {
    let with = |smbios: Value| json!({"boot": {"firmware": {}}, "smbios": smbios});
    refuses(
        &with(json!({"serial": "", "asset_tag": "a\nb", "oem_strings": ["", "\0", "x"]})),
        &[
            ("/smbios/asset_tag", Malformed),
            ("/smbios/oem_strings/0", Malformed),
            ("/smbios/oem_strings/1", Malformed),
            ("/smbios/serial", Malformed),
        ],
    );
    let text = "x".repeat(1024);
    // A kernel finds them without firmware, too.
    for boot in [json!({"firmware": {}}), json!({"kernel": "k"})] {
        let spec = json!({"boot": boot, "smbios": {"serial": text}});
        assert!(Draft::from_value(spec).validate().is_ok());
    }
    refuses(
        &with(json!({"serial": text.clone() + "x"})),
        &[("/smbios/serial", OutOfRange)],
    );
    let strings = vec![text; 32];
    refuses(
        &with(json!({"oem_strings": strings})),
        &[("/smbios/oem_strings", OutOfRange)],
    );
    refuses(
        &with(json!({"oem_strings": vec!["x"; 256]})),
        &[("/smbios/oem_strings", OutOfRange)],
    );
    refuses(
        &with(json!({"oem_strings": [1, "x"]})),
        &[("/smbios/oem_strings/0", WrongType)],
    );
}
