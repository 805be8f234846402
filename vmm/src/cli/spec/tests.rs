//! What the flags make of a spec, and what is said of those that cannot be.

use paddock_api::spec::{Boot, ByteSize, DiskConfig};

use super::*;

fn args(kernel: Option<&str>) -> SpecArgs {
    SpecArgs {
        kernel: kernel.map(PathBuf::from),
        ..SpecArgs::default()
    }
}

fn file(name: &str, content: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    (dir, path)
}

fn text(error: &SpecInput) -> String {
    crate::error::chain(error)
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn command_line(args: &SpecArgs) -> String {
    let (spec, _) = assemble(args).unwrap();
    let Boot::Kernel(kernel) = spec.boot else {
        panic!("{:?}", spec.boot);
    };
    kernel.command_line
}

#[test]
fn flags_alone() {
    let (spec, _) = assemble(&SpecArgs {
        cpus: Some("4,threads=2".into()),
        memory: Some("1G".into()),
        balloon: Some("256M,deflate-on-oom".into()),
        disk: strings(&["a.img", "b.img,readonly"]),
        net: strings(&["tap=t0"]),
        port: strings(&["name=agent,socket=s"]),
        no_rng: true,
        name: Some("web".into()),
        on_reset: Some(OnResetArg::Exit),
        ..args(Some("k"))
    })
    .unwrap();
    assert_eq!(
        (spec.cpus.topology.cores, spec.cpus.topology.threads),
        (2, 2)
    );
    assert_eq!(spec.memory.size, ByteSize::from_mib(1024));
    assert_eq!(spec.disks.len(), 2);
    assert!(!spec.disks[0].read_only && spec.disks[1].read_only);
    assert_eq!(
        (spec.nics.len(), spec.console.ports.len(), spec.rng),
        (1, 1, false)
    );
    assert_eq!(spec.on_reset, OnReset::Exit);
    let balloon = spec.balloon.unwrap();
    assert_eq!(balloon.size, ByteSize::from_mib(256));
    assert!(balloon.deflate_on_oom && balloon.free_page_reporting);
}

#[test]
fn flags_replace_and_add() {
    let (_dir, path) = file(
        "vm.toml",
        r#"
        boot = { kernel = "old", initramfs = "i", command_line = "quiet" }
        cpus = { count = 4, topology = { cores = 4 }, nested = true }
        memory = { size = "1GiB", hugepages = "2MiB" }
        disks = [{ path = "a" }]
        console = { serial = "off" }
        balloon = { size = "64MiB", deflate_on_oom = true }
        "#,
    );
    let (spec, _) = assemble(&SpecArgs {
        spec: Some(path),
        balloon: Some("128M".into()),
        cpus: Some("2".into()),
        memory: Some("2G".into()),
        disk: strings(&["b"]),
        serial: Some("file=log".into()),
        ..args(Some("new"))
    })
    .unwrap();
    let Boot::Kernel(kernel) = &spec.boot else {
        panic!("{:?}", spec.boot);
    };
    assert_eq!(kernel.kernel, PathBuf::from("new"));
    assert_eq!(kernel.initramfs, Some(PathBuf::from("i")));
    assert_eq!(kernel.command_line, "quiet");
    assert_eq!((spec.cpus.count, spec.cpus.nested), (2, true));
    assert_eq!(spec.memory.size, ByteSize::from_mib(2048));
    assert!(spec.memory.hugepages.is_some());
    let disks = spec.disks.iter().map(DiskConfig::from);
    let paths: Vec<_> = disks.filter_map(|disk| disk.path).collect();
    assert_eq!(paths, [PathBuf::from("a"), PathBuf::from("b")]);
    assert_eq!(spec.console.serial, ConsoleTarget::File("log".into()));
    let balloon = spec.balloon.unwrap();
    assert_eq!(balloon.size, ByteSize::from_mib(128));
    assert!(balloon.deflate_on_oom);
}

#[test]
fn a_topology_is_that_of_all_processors_that_there_may_be() {
    let (_dir, path) = file(
        "vm.toml",
        r#"
        boot = { kernel = "k" }
        cpus = { count = 2, max = 8, topology = { threads = 2 } }
        "#,
    );
    for (flag, expected) in [
        ("4", (4, 8, 4, 2)),
        ("max=4", (2, 4, 4, 1)),
        ("3,max=3", (3, 3, 3, 1)),
        ("cores=3", (6, 6, 3, 2)),
        ("1,max=6,cores=3", (1, 6, 3, 2)),
    ] {
        let (spec, _) = assemble(&SpecArgs {
            spec: Some(path.clone()),
            cpus: Some(flag.into()),
            ..args(None)
        })
        .unwrap();
        let cpus = spec.cpus;
        let shape = (cpus.topology.cores, cpus.topology.threads);
        assert_eq!((cpus.count, cpus.max, shape.0, shape.1), expected, "{flag}");
    }
}

#[test]
fn default_command_lines() {
    assert_eq!(command_line(&args(Some("k"))), "console=ttyS0");
    let hvc0 = SpecArgs {
        hvc0: Some("terminal".into()),
        ..args(Some("k"))
    };
    assert_eq!(command_line(&hvc0), "console=hvc0");
    let off = SpecArgs {
        serial: Some("off".into()),
        ..args(Some("k"))
    };
    assert_eq!(command_line(&off), "");
    for (serial, hvc0, line) in [
        ("off,log=l", None, "console=ttyS0"),
        ("off,log=l", Some("socket=s"), "console=ttyS0"),
        ("off", Some("socket=s"), "console=hvc0"),
        ("off", Some("off,log=l"), "console=hvc0"),
        ("socket=s", Some("socket=t"), "console=ttyS0"),
    ] {
        let args = SpecArgs {
            serial: Some(serial.into()),
            hvc0: hvc0.map(str::to_owned),
            ..args(Some("k"))
        };
        assert_eq!(command_line(&args), line, "{serial}, {hvc0:?}");
    }
    let own = SpecArgs {
        cmdline: Some(String::new()),
        ..args(Some("k"))
    };
    assert_eq!(command_line(&own), "");
}

#[test]
fn console_flags_and_a_file() {
    let (_dir, path) = file(
        "vm.toml",
        r#"
        boot = { kernel = "k" }
        [console]
        serial = "off"
        serial_log = { path = "old.log", files = 7 }
        hvc0 = { socket = "hvc0.sock" }
        "#,
    );
    let (spec, _) = assemble(&SpecArgs {
        spec: Some(path.clone()),
        serial: Some("socket=s,log-size=64K".into()),
        hvc0: Some("log=hvc0.log".into()),
        ..args(None)
    })
    .unwrap();
    assert_eq!(spec.console.serial, ConsoleTarget::Socket("s".into()));
    assert_eq!(spec.console.hvc0, ConsoleTarget::Socket("hvc0.sock".into()));
    let log = spec.console.serial_log.unwrap();
    assert_eq!((log.size.bytes(), log.files), (64 << 10, 7));
    assert_eq!(log.path, Path::new("old.log"));
    let log = spec.console.hvc0_log.unwrap();
    assert_eq!((log.path.to_str(), log.files), (Some("hvc0.log"), 3));

    let error = assemble(&SpecArgs {
        spec: Some(path),
        serial: Some("socket=s,log-size=1K".into()),
        hvc0: Some("off,log-files=3".into()),
        ..args(None)
    });
    assert_eq!(
        text(&error.unwrap_err()),
        "2 problems with the VM spec:\n  \
         --hvc0 off,log-files=3: path is missing: give the path of the log file\n  \
         --serial socket=s,log-size=1K: a log file has 4KiB to 1TiB, not 1KiB"
    );
}

#[test]
fn problems_are_told_in_the_users_words() {
    let (_dir, path) = file(
        "vm.json",
        r#"{"boot": {"kernel": "k"}, "disks": [{"path": "a", "qeues": 1}], "cpus": {"count": 0}}"#,
    );
    let error = assemble(&SpecArgs {
        spec: Some(path.clone()),
        memory: Some("1M".into()),
        disk: strings(&["b,queue-size=100", "path=a"]),
        ..args(None)
    })
    .unwrap_err();
    assert!(error.is_usage());
    let text = text(&error);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("5 problems with the VM spec:"));
    let lines: Vec<&str> = lines.map(str::trim_start).collect();
    let file = path.display();
    let starts = [
        format!("{file}: /cpus/count: the number of processors must be 1 to 254"),
        format!("{file}: /disks/0/qeues: unknown field; did you mean \"queues\"?"),
        "--disk b,queue-size=100: the queue size must be a power of two".to_owned(),
        "--disk path=a: disk 0 has the same path".to_owned(),
        "--memory 1M: the memory must be 64MiB to 16TiB, not 1MiB".to_owned(),
    ];
    assert_eq!(lines.len(), starts.len(), "{text}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(&start), "{line}\n{start}");
    }
}

#[test]
fn all_option_lists_are_looked_at() {
    let error = assemble(&SpecArgs {
        cpus: Some("x".into()),
        disk: strings(&["a,b=1", "ok", "c,d=1"]),
        serial: Some("tty".into()),
        ..args(Some("k"))
    })
    .unwrap_err();
    let text = text(&error);
    assert!(text.starts_with("4 mistakes in the option lists:\n  --cpus x: "));
    assert_eq!(text.lines().count(), 5, "{text}");
}

#[test]
fn files_that_are_none() {
    let with = |path: PathBuf| {
        text(
            &assemble(&SpecArgs {
                spec: Some(path),
                ..args(None)
            })
            .unwrap_err(),
        )
    };
    let (_dir, path) = file("vm.json", "{\n \"name\": x}");
    assert_eq!(
        with(path.clone()),
        format!("{}: line 2, column 10: expected value", path.display())
    );
    let (_dir, path) = file("vm.toml", "rng = true\nname = web\n");
    assert!(with(path.clone()).starts_with(&format!("{}: line 2, column 8: ", path.display())));
    let (_dir, path) = file("vm.yaml", "");
    assert!(with(path).contains(".json or .toml"));
    assert!(with("/nonexistent/vm.json".into()).contains("No such file"));
    let (dir, path) = file("big.json", &" ".repeat(1 << 20));
    assert!(!with(path.clone()).contains("larger"));
    std::fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
    assert!(with(path).contains("larger than 1 MiB"));
    let binary = dir.path().join("b.json");
    std::fs::write(&binary, [0xff]).unwrap();
    assert!(with(binary).contains("UTF-8"));
    assert!(with("/dev/zero.json".into()).contains("No such file"));
}

#[test]
fn nothing_to_boot() {
    let (_dir, path) = file("vm.json", "{}");
    let error = assemble(&SpecArgs {
        spec: Some(path.clone()),
        ..args(None)
    })
    .unwrap_err();
    let expected = format!("{}: boot is missing", path.display());
    assert!(text(&error).starts_with(&expected), "{error}");
}

#[test]
fn firmware_replaces_a_kernel_and_the_other_way_round() {
    let boot = |args: &SpecArgs| {
        let config = assemble_for_api(args).unwrap();
        config.boot.unwrap()
    };
    let (_dir, path) = file(
        "vm.toml",
        r#"
        boot = { kernel = "k", initramfs = "i", command_line = "quiet" }
        disks = [{ path = "a" }]
        "#,
    );
    let with_file = |path: &Path| SpecArgs {
        spec: Some(path.to_owned()),
        ..SpecArgs::default()
    };
    let by_firmware = boot(&SpecArgs {
        firmware: Some(String::new()),
        variables: Some("v.fd".into()),
        boot_order: strings(&["disk0"]),
        ..with_file(&path)
    });
    let expected = BootConfig {
        firmware: Some(FirmwareConfig {
            variables: Some("v.fd".into()),
            ..FirmwareConfig::default()
        }),
        order: strings(&["disk0"]),
        ..BootConfig::default()
    };
    assert_eq!(by_firmware, expected);

    let (_dir, path) = file(
        "firmware.toml",
        r#"
        boot = { firmware = { path = "f", template = "t" }, order = ["disk0"] }
        disks = [{ path = "a" }]
        "#,
    );
    let by_kernel = boot(&SpecArgs {
        kernel: Some("k".into()),
        ..with_file(&path)
    });
    assert_eq!((by_kernel.firmware, by_kernel.order), (None, vec![]));
    let named = boot(&SpecArgs {
        firmware: Some("other".into()),
        ..with_file(&path)
    });
    let firmware = named.firmware.unwrap();
    assert_eq!(
        (firmware.path, firmware.template),
        (Some("other".into()), Some("t".into()))
    );
}

#[test]
fn firmware_flags_are_named_in_problems() {
    let refused = |args: &SpecArgs| text(&assemble(args).unwrap_err());
    let firmware = || SpecArgs {
        firmware: Some("f".into()),
        ..SpecArgs::default()
    };
    let order = refused(&SpecArgs {
        boot_order: strings(&["disk0", "disk0"]),
        ..firmware()
    });
    assert!(order.contains("--boot-order disk0,disk0: "), "{order}");
    let from_cd = assemble(&SpecArgs {
        cdrom: strings(&["install.iso"]),
        boot_order: strings(&["cdrom0"]),
        ..firmware()
    });
    let Boot::Firmware(from_cd) = from_cd.unwrap().0.boot else {
        panic!("a kernel");
    };
    assert_eq!(from_cd.order[0].as_str(), "cdrom0");
    let oem = refused(&SpecArgs {
        oem_string: strings(&["fine", "a\nb"]),
        asset_tag: Some("t".into()),
        ..firmware()
    });
    assert!(oem.contains("--oem-string \"a\\nb\": "), "{oem}");
    let smbios = refused(&SpecArgs {
        asset_tag: Some("a\nb".into()),
        ..args(Some("k"))
    });
    assert!(smbios.starts_with("--asset-tag \"a\\nb\": "), "{smbios}");
    let uuid = refused(&SpecArgs {
        uuid: Some("1".into()),
        ..args(Some("k"))
    });
    assert!(uuid.starts_with("--uuid 1: "), "{uuid}");
}
