//! The flags with option lists, each turned into its part of the spec. What the values must be is the spec's business.

use std::path::PathBuf;

use paddock_api::spec::{
    BalloonConfig, CdromConfig, ConsoleLogConfig, ConsoleTarget, CpuConfig, DirectIo, DiskConfig,
    DiskEngine, DiskLimits, ImageFormat, LonghornSocketConfig, MemoryConfig, NbdConfig,
    NbdTlsConfig, NicConfig, OnErrorConfig, PortConfig, RetryConfig, TopologyConfig, VolumeConfig,
};

use super::options::{Flag, OptionError, OptionList, shown};

type Parsed<T> = Result<T, Vec<OptionError>>;

/// `--cpus`
pub const CPUS: Flag = Flag {
    name: "--cpus",
    bare: Some("count"),
    keys: &["count", "max", "sockets", "cores", "threads", "nested"],
};
/// `--memory`
pub const MEMORY: Flag = Flag {
    name: "--memory",
    bare: Some("size"),
    keys: &["size", "max", "shared", "hugepages"],
};
/// `--balloon`
pub const BALLOON: Flag = Flag {
    name: "--balloon",
    bare: Some("size"),
    keys: &["size", "deflate-on-oom", "free-page-reporting"],
};
/// `--disk`
pub const DISK: Flag = Flag {
    name: "--disk",
    bare: Some("path"),
    keys: &[
        "path",
        "volume",
        "replica",
        "longhorn-socket",
        "size",
        "timeout",
        "revision-counter",
        "salvage",
        "format",
        "nbd",
        "tls-ca",
        "tls-certificate",
        "tls-key",
        "tls-hostname",
        "reconnect-deadline",
        "id",
        "readonly",
        "direct",
        "engine",
        "queues",
        "queue-size",
        "serial",
        "on-error",
        "retry-deadline",
        "iops",
        "bandwidth",
    ],
};
/// `--cdrom`
pub const CDROM: Flag = Flag {
    name: "--cdrom",
    bare: Some("path"),
    keys: &["path", "id"],
};
/// `--net`
pub const NET: Flag = Flag {
    name: "--net",
    bare: None,
    keys: &[
        "tap",
        "bridge",
        "vlan",
        "mac",
        "mtu",
        "queues",
        "queue-size",
        "id",
    ],
};
/// `--port`
pub const PORT: Flag = Flag {
    name: "--port",
    bare: None,
    keys: &["name", "socket"],
};

/// What `--serial` and `--hvc0` take. `target` is what is a word by itself.
const CONSOLE_KEYS: &[&str] = &["target", "file", "socket", "log", "log-size", "log-files"];
/// `--serial`
pub const SERIAL: Flag = Flag {
    name: "--serial",
    bare: Some("target"),
    keys: CONSOLE_KEYS,
};
/// `--hvc0`
pub const HVC0: Flag = Flag {
    name: "--hvc0",
    bare: Some("target"),
    keys: CONSOLE_KEYS,
};

/// Reads `--cpus`.
pub fn cpus(text: &str) -> Parsed<CpuConfig> {
    let mut list = OptionList::parse(CPUS, text);
    let topology = TopologyConfig {
        sockets: list.integer("sockets"),
        cores: list.integer("cores"),
        threads: list.integer("threads"),
    };
    let cpus = CpuConfig {
        count: list.integer("count"),
        max: list.integer("max"),
        topology: (topology != TopologyConfig::default()).then_some(topology),
        nested: list.switch("nested"),
    };
    list.finish(cpus)
}

/// Reads `--memory`.
pub fn memory(text: &str) -> Parsed<MemoryConfig> {
    let mut list = OptionList::parse(MEMORY, text);
    let memory = MemoryConfig {
        size: list.size("size"),
        max: list.size("max"),
        shared: list.switch("shared"),
        hugepages: list.size("hugepages"),
    };
    list.finish(memory)
}

/// Reads `--balloon`.
pub fn balloon(text: &str) -> Parsed<BalloonConfig> {
    let mut list = OptionList::parse(BALLOON, text);
    let balloon = BalloonConfig {
        size: list.size("size"),
        deflate_on_oom: list.switch("deflate-on-oom"),
        free_page_reporting: list.switch("free-page-reporting"),
    };
    list.finish(balloon)
}

/// Reads `--disk`.
pub fn disk(text: &str) -> Parsed<DiskConfig> {
    let mut list = OptionList::parse(DISK, text);
    let (volume, longhorn_socket) = volume(&mut list);
    let disk = DiskConfig {
        id: list.text("id"),
        path: list.text("path").map(PathBuf::from),
        volume,
        longhorn_socket,
        format: list.choice(
            "format",
            &[("raw", ImageFormat::Raw), ("qcow2", ImageFormat::Qcow2)],
        ),
        read_only: list.switch("readonly"),
        direct: list.choice(
            "direct",
            &[
                ("auto", DirectIo::Auto),
                ("on", DirectIo::On),
                ("off", DirectIo::Off),
            ],
        ),
        engine: list.choice(
            "engine",
            &[
                ("auto", DiskEngine::Auto),
                ("io_uring", DiskEngine::IoUring),
                ("threads", DiskEngine::Threads),
            ],
        ),
        queues: list.integer("queues"),
        queue_size: list.integer("queue-size"),
        serial: list.text("serial"),
        on_error: on_error(&mut list),
        nbd: nbd(&mut list),
        limits: limits(&mut list),
        ..DiskConfig::default()
    };
    list.finish(disk)
}

fn nbd(list: &mut OptionList<'_>) -> Option<Box<NbdConfig>> {
    let seconds = list.integer("reconnect-deadline");
    let tls = NbdTlsConfig {
        ca: list.text("tls-ca").map(PathBuf::from),
        certificate: list.text("tls-certificate").map(PathBuf::from),
        key: list.text("tls-key").map(PathBuf::from),
        hostname: list.text("tls-hostname"),
    };
    let nbd = NbdConfig {
        uri: list.text("nbd"),
        tls: Some(tls).filter(|tls| *tls != NbdTlsConfig::default()),
        reconnect_deadline_ms: seconds.map(|seconds| seconds.saturating_mul(1000)),
        ..NbdConfig::default()
    };
    if nbd.uri.is_none() && nbd != NbdConfig::default() {
        list.error("tls-* and reconnect-deadline are for nbd=URI");
    }
    nbd.uri.is_some().then(|| Box::new(nbd))
}

fn limits(list: &mut OptionList<'_>) -> Option<DiskLimits> {
    let limits = DiskLimits {
        iops: list.integer("iops"),
        bandwidth: list.size("bandwidth"),
        ..DiskLimits::default()
    };
    (limits != DiskLimits::default()).then_some(limits)
}

fn on_error(list: &mut OptionList<'_>) -> Option<OnErrorConfig> {
    let seconds = list.integer("retry-deadline");
    let retry = RetryConfig {
        deadline_ms: seconds.map(|seconds| seconds.saturating_mul(1000)),
        ..RetryConfig::default()
    };
    let words = [
        ("report", OnErrorConfig::Report),
        ("stop", OnErrorConfig::Stop),
        ("retry", OnErrorConfig::Retry(retry)),
    ];
    let on_error = list.choice("on-error", &words);
    if seconds.is_some() && !matches!(on_error, Some(OnErrorConfig::Retry(_))) {
        list.error("retry-deadline is for on-error=retry");
    }
    on_error
}

/// What `--disk` says of a volume, with an engine of our own or behind Longhorn's.
fn volume(list: &mut OptionList<'_>) -> (Option<VolumeConfig>, Option<LonghornSocketConfig>) {
    let socket = list.text("longhorn-socket").map(PathBuf::from);
    let mut size = list.size("size");
    let socket = socket.map(|path| LonghornSocketConfig {
        path: Some(path),
        size: size.take(),
    });
    let volume = VolumeConfig {
        name: list.text("volume"),
        replicas: list.texts("replica"),
        size,
        timeout: list.integer("timeout"),
        revision_counter: list.switch("revision-counter"),
        salvage: list.switch("salvage"),
    };
    (
        (volume != VolumeConfig::default()).then_some(volume),
        socket,
    )
}

/// Reads `--cdrom`; without anything, a drive with an empty tray.
pub fn cdrom(text: &str) -> Parsed<CdromConfig> {
    if text.is_empty() {
        return Ok(CdromConfig::default());
    }
    let mut list = OptionList::parse(CDROM, text);
    let cdrom = CdromConfig {
        id: list.text("id"),
        path: list.text("path").map(PathBuf::from),
    };
    list.finish(cdrom)
}

/// Reads `--net`.
pub fn net(text: &str) -> Parsed<NicConfig> {
    let mut list = OptionList::parse(NET, text);
    let nic = NicConfig {
        id: list.text("id"),
        tap: list.text("tap"),
        bridge: list.text("bridge"),
        vlan: list.integer("vlan"),
        mac: list.text("mac"),
        mtu: list.integer("mtu"),
        queue_pairs: list.integer("queues"),
        queue_size: list.integer("queue-size"),
    };
    list.finish(nic)
}

/// Reads `--port`.
pub fn port(text: &str) -> Parsed<PortConfig> {
    let mut list = OptionList::parse(PORT, text);
    let port = PortConfig {
        name: list.text("name"),
        socket: list.text("socket").map(PathBuf::from),
    };
    list.finish(port)
}

/// What `--serial` or `--hvc0` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ConsoleFlag {
    /// Where the console is.
    pub target: Option<ConsoleTarget>,
    /// Its log, if there is a word about it.
    pub log: Option<ConsoleLogConfig>,
}

/// Reads `--serial` and `--hvc0`.
pub fn console(flag: Flag, text: &str) -> Parsed<ConsoleFlag> {
    let mut list = OptionList::parse(flag, text);
    let word = list.text("target");
    let word = word.and_then(|word| match word.as_str() {
        "terminal" => Some(ConsoleTarget::Terminal),
        "off" => Some(ConsoleTarget::Off),
        _ => {
            list.error(format!(
                "{} is not known; it takes terminal, off, file=PATH, socket=PATH",
                shown(&word)
            ));
            None
        }
    });
    let file = list.text("file").map(PathBuf::from);
    let socket = list.text("socket").map(PathBuf::from);
    let targets = [
        word,
        file.map(ConsoleTarget::File),
        socket.map(ConsoleTarget::Socket),
    ];
    let mut targets = targets.into_iter().flatten();
    let target = targets.next();
    if targets.next().is_some() {
        list.error("the console can be in one place only: terminal, off, file=PATH or socket=PATH");
    }
    let log = ConsoleLogConfig {
        path: list.text("log").map(PathBuf::from),
        size: list.size("log-size"),
        files: list.integer("log-files"),
    };
    list.finish(ConsoleFlag {
        target,
        log: (log != ConsoleLogConfig::default()).then_some(log),
    })
}

#[cfg(test)]
mod tests {
    use paddock_api::spec::ByteSize;

    use super::*;

    #[test]
    fn cpus_and_memory() {
        let count = |count| CpuConfig {
            count: Some(count),
            ..CpuConfig::default()
        };
        assert_eq!(cpus("4"), Ok(count(4)));
        let all = CpuConfig {
            topology: Some(TopologyConfig {
                sockets: Some(1),
                cores: Some(2),
                threads: Some(2),
            }),
            nested: Some(true),
            ..count(4)
        };
        assert_eq!(
            cpus("count=4,sockets=1,cores=2,threads=2,nested=on"),
            Ok(all.clone())
        );
        assert_eq!(cpus("4,sockets=1,cores=2,threads=2,nested"), Ok(all));
        let more = CpuConfig {
            max: Some(8),
            ..count(2)
        };
        assert_eq!(cpus("2,max=8"), Ok(more));
        for bad in [
            "four",
            "4,4",
            "4,max",
            "4,max=x",
            "-1",
            "4,cpus=2",
            "",
            "count",
            "4,nested=2",
        ] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
        assert_eq!(
            memory("2G,max=4G,shared=on,hugepages=2M"),
            Ok(MemoryConfig {
                size: Some(ByteSize::from_mib(2048)),
                max: Some(ByteSize::from_mib(4096)),
                shared: Some(true),
                hugepages: Some(ByteSize::from_mib(2)),
            })
        );
        for bad in ["1MB", "", "size", "512M,512M", "shared=yes", "512M,huge=on"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn balloons() {
        let all = BalloonConfig {
            size: Some(ByteSize::from_mib(64)),
            deflate_on_oom: Some(true),
            free_page_reporting: Some(false),
        };
        assert_eq!(
            balloon("64M,deflate-on-oom,free_page_reporting=off"),
            Ok(all)
        );
        assert_eq!(balloon("0").unwrap().size, Some(ByteSize::default()));
        assert_eq!(balloon("deflate-on-oom=on").unwrap().size, None);
        for bad in ["", "on", "64MB", "64M,oom=on", "deflate-on-oom=1"] {
            assert!(balloon(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn disks() {
        assert_eq!(
            disk(
                "path=a.img,format=qcow2,readonly=on,id=x,serial=S 1,queues=2,queue-size=64,direct=off,engine=threads"
            ),
            Ok(DiskConfig {
                id: Some("x".into()),
                path: Some("a.img".into()),
                format: Some(ImageFormat::Qcow2),
                read_only: Some(true),
                direct: Some(DirectIo::Off),
                engine: Some(DiskEngine::Threads),
                queues: Some(2),
                queue_size: Some(64),
                serial: Some("S 1".into()),
                ..DiskConfig::default()
            })
        );
        let limits = disk("a,iops=100,bandwidth=1M").unwrap().limits.unwrap();
        assert_eq!(
            (limits.iops, limits.bandwidth),
            (Some(100), Some(ByteSize::from_mib(1)))
        );
        let retry = |seconds: Option<u64>| {
            Some(OnErrorConfig::Retry(RetryConfig {
                deadline_ms: seconds.map(|seconds| seconds * 1000),
                ..RetryConfig::default()
            }))
        };
        for (words, expected) in [
            ("a,on-error=stop", Some(OnErrorConfig::Stop)),
            ("a,on-error=report", Some(OnErrorConfig::Report)),
            ("a,on-error=retry", retry(None)),
            ("a,on_error=retry,retry-deadline=5", retry(Some(5))),
        ] {
            assert_eq!(disk(words).unwrap().on_error, expected, "{words}");
        }
        let uri = "nbds+unix:///x?socket=/s";
        let words = format!(
            "nbd={uri},tls-ca=c,tls-certificate=d,tls-key=e,tls-hostname=f,reconnect-deadline=9"
        );
        let tls = NbdTlsConfig {
            ca: Some("c".into()),
            certificate: Some("d".into()),
            key: Some("e".into()),
            hostname: Some("f".into()),
        };
        let nbd = NbdConfig {
            uri: Some(uri.into()),
            tls: Some(tls),
            reconnect_deadline_ms: Some(9000),
            ..NbdConfig::default()
        };
        assert_eq!(
            disk(&words),
            Ok(DiskConfig {
                nbd: Some(Box::new(nbd)),
                ..DiskConfig::default()
            })
        );
        for bad in [
            "a,tls-ca=c",
            "a,reconnect-deadline=5",
            "a,retry-deadline=5",
            "a,on-error=retry,retry-deadline=1m",
            "a,on-error",
        ] {
            assert!(disk(bad).is_err(), "{bad}");
        }
        assert_eq!(
            disk(
                "volume=v,replica=a:1,replica=[::1]:2,size=1G,timeout=9,revision-counter=off,salvage,readonly"
            ),
            Ok(DiskConfig {
                volume: Some(VolumeConfig {
                    name: Some("v".into()),
                    replicas: vec!["a:1".into(), "[::1]:2".into()],
                    size: Some(ByteSize::from_mib(1024)),
                    timeout: Some(9),
                    revision_counter: Some(false),
                    salvage: Some(true),
                }),
                read_only: Some(true),
                ..DiskConfig::default()
            })
        );
        assert_eq!(
            disk("longhorn-socket=/s,size=1G"),
            Ok(DiskConfig {
                longhorn_socket: Some(LonghornSocketConfig {
                    path: Some("/s".into()),
                    size: Some(ByteSize::from_mib(1024)),
                }),
                ..DiskConfig::default()
            })
        );
        let many = disk("a.img,readonly=1,direct=yes,queues=x,format=vmdk,nosuch").unwrap_err();
        assert_eq!(many.len(), 5, "{many:?}");
    }

    #[test]
    fn cdroms() {
        let drive = |id: Option<&str>, path: Option<&str>| {
            Ok(CdromConfig {
                id: id.map(ToOwned::to_owned),
                path: path.map(PathBuf::from),
            })
        };
        assert_eq!(cdrom("a.iso"), drive(None, Some("a.iso")));
        assert_eq!(cdrom("a.iso,id=cd"), drive(Some("cd"), Some("a.iso")));
        assert_eq!(cdrom("id=cd"), drive(Some("cd"), None));
        assert_eq!(cdrom(""), drive(None, None));
        for bad in ["a.iso,b.iso", "a.iso,readonly", "path"] {
            assert!(cdrom(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nets_and_ports() {
        assert_eq!(
            net("bridge=br0,vlan=100,mac=02:00:00:00:00:01,mtu=9000,queues=2,queue_size=64,id=n"),
            Ok(NicConfig {
                id: Some("n".into()),
                bridge: Some("br0".into()),
                vlan: Some(100),
                mac: Some("02:00:00:00:00:01".into()),
                mtu: Some(9000),
                queue_pairs: Some(2),
                queue_size: Some(64),
                ..NicConfig::default()
            })
        );
        assert!(
            net("tap0").unwrap_err()[0]
                .detail
                .contains("did you mean tap?")
        );
        assert_eq!(
            port("name=agent,socket=a.sock"),
            Ok(PortConfig {
                name: Some("agent".into()),
                socket: Some("a.sock".into()),
            })
        );
    }

    #[test]
    fn consoles() {
        let target = |target| {
            Ok(ConsoleFlag {
                target: Some(target),
                log: None,
            })
        };
        assert_eq!(console(SERIAL, "terminal"), target(ConsoleTarget::Terminal));
        assert_eq!(console(SERIAL, "off"), target(ConsoleTarget::Off));
        assert_eq!(
            console(SERIAL, "file=a,,b"),
            target(ConsoleTarget::File("a,b".into()))
        );
        assert_eq!(
            console(HVC0, "socket=/run/c"),
            target(ConsoleTarget::Socket("/run/c".into()))
        );
        let log = ConsoleLogConfig {
            path: Some("l".into()),
            size: Some(ByteSize::from_mib(1)),
            files: Some(5),
        };
        for (text, place) in [
            ("off,", Some(ConsoleTarget::Off)),
            ("socket=s,", Some(ConsoleTarget::Socket("s".into()))),
            ("", None),
        ] {
            assert_eq!(
                console(SERIAL, &format!("{text}log=l,log-size=1M,log-files=5")),
                Ok(ConsoleFlag {
                    target: place,
                    log: Some(log.clone()),
                })
            );
        }
        for bad in [
            "",
            "file",
            "socket",
            "stdout",
            "Terminal",
            "off,terminal",
            "terminal,file=a",
            "file=a,socket=b",
            "off,log",
            "log=l,log-size=2MB",
            "log=l,log-files=-1",
        ] {
            assert!(console(SERIAL, bad).is_err(), "{bad}");
        }
        let error = &console(HVC0, "tty").unwrap_err()[0];
        assert_eq!(
            error.to_string(),
            "--hvc0 tty: tty is not known; it takes terminal, off, file=PATH, socket=PATH"
        );
    }
}
