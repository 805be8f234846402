//! The flags with option lists, each turned into its part of the spec. What the values must be is the spec's business.

use std::path::PathBuf;

use paddock_api::spec::{
    BalloonConfig, CdromConfig, ConsoleLogConfig, ConsoleTarget, CpuConfig, MemoryConfig,
    NicConfig, PortConfig, TopologyConfig,
};

use super::options::{Flag, OptionError, OptionList, shown};

mod disk;

pub use disk::{DISK, disk};

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
