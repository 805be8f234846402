//! `--disk`: a file, a replicated volume or an NBD export, and what becomes of its requests.

use std::path::PathBuf;

use paddock_api::spec::{
    DirectIo, DiskConfig, DiskEngine, DiskLimits, ImageFormat, LonghornSocketConfig, NbdConfig,
    NbdTlsConfig, OnErrorConfig, RetryConfig, VolumeConfig,
};

use super::Parsed;
use crate::cli::options::{Flag, OptionList};

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
        "record",
        "controller",
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
        "block-size",
        "queues",
        "queue-size",
        "serial",
        "on-error",
        "retry-deadline",
        "iops",
        "bandwidth",
    ],
};

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
        block_size: list.integer("block-size"),
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
        record: list.text("record").map(PathBuf::from),
        controller: list.text("controller"),
    };
    if volume.name.is_none() {
        if volume != VolumeConfig::default() {
            list.error(
                "replica, timeout, revision-counter, salvage, record and controller are for volume=NAME, and size is for that or longhorn-socket=PATH",
            );
        }
        return (None, socket);
    }
    (Some(volume), socket)
}

#[cfg(test)]
mod tests {
    use paddock_api::spec::ByteSize;

    use super::*;

    #[test]
    fn disks() {
        assert_eq!(
            disk(
                "path=a.img,format=qcow2,readonly=on,id=x,serial=S 1,queues=2,queue-size=64,direct=off,engine=threads,block-size=4096"
            ),
            Ok(DiskConfig {
                id: Some("x".into()),
                path: Some("a.img".into()),
                format: Some(ImageFormat::Qcow2),
                read_only: Some(true),
                direct: Some(DirectIo::Off),
                engine: Some(DiskEngine::Threads),
                block_size: Some(4096),
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
        for words in [
            "a.img,size=1G",
            "a.img,timeout=9",
            "nbd=nbd://h,replica=a:1",
            "longhorn-socket=/s,size=1G,timeout=9",
            "longhorn-socket=/s,salvage",
        ] {
            let errors = disk(words).unwrap_err();
            assert_eq!(errors.len(), 1, "{errors:?}");
            let error = errors[0].to_string();
            assert!(error.contains("are for volume=NAME"), "{error}");
        }
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
                "volume=v,replica=a:1,replica=[::1]:2,size=1G,timeout=9,revision-counter=off,salvage,record=/r,controller=[::1]:9501,readonly"
            ),
            Ok(DiskConfig {
                volume: Some(VolumeConfig {
                    name: Some("v".into()),
                    replicas: vec!["a:1".into(), "[::1]:2".into()],
                    size: Some(ByteSize::from_mib(1024)),
                    timeout: Some(9),
                    revision_counter: Some(false),
                    salvage: Some(true),
                    record: Some("/r".into()),
                    controller: Some("[::1]:9501".into()),
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
}
