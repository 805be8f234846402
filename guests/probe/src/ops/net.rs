//! NICs: bringing them up, and TCP transfers in which every byte is known beforehand.
//!
//! Configuration goes through `ip`, which both busybox and a distribution have.

use super::{Result, system};
use crate::sysfs;
use paddock_probe::protocol::{NetReceive, NetSend, NetUp, NetUpReply, TransferReply};
use paddock_probe::stream::{Checksum, Stream};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

const PIECE: u64 = 64 << 10;

/// How long the link may take to come up.
const LINK: Duration = Duration::from_secs(5);

/// Answers `net.up`.
pub fn up(request: &NetUp) -> Result<NetUpReply> {
    let device = find(&request.device)?;
    if let Some(mtu) = request.mtu {
        ip(&["link", "set", "dev", &device, "mtu", &mtu.to_string()])?;
    }
    ip(&["link", "set", "dev", &device, "up"])?;
    if let Some(address) = &request.address {
        let family = family(address.split('/').next().unwrap_or_default(), "address")?;
        ip(&[
            family, "address", "flush", "dev", &device, "scope", "global",
        ])?;
        ip(&[family, "address", "add", address, "dev", &device])?;
    }
    if let Some(gateway) = &request.gateway {
        let family = family(gateway, "gateway")?;
        ip(&[
            family, "route", "replace", "default", "via", gateway, "dev", &device,
        ])?;
    }
    let deadline = Instant::now() + LINK;
    while system::carrier(&device) != Some(true) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(NetUpReply {
        carrier: system::carrier(&device),
        device,
    })
}

/// `-4` or `-6`, which also keeps an address from being taken for an option.
fn family(address: &str, field: &str) -> Result<&'static str> {
    match address.parse() {
        Ok(IpAddr::V4(_)) => Ok("-4"),
        Ok(IpAddr::V6(_)) => Ok("-6"),
        Err(_) => Err(format!("`{field}` is not an IP address: {address}")),
    }
}

/// The name of the NIC with this name or MAC.
fn find(device: &str) -> Result<String> {
    let names = sysfs::names("/sys/class/net");
    let has_mac = |name: &&String| {
        sysfs::text(format!("/sys/class/net/{name}/address")).eq_ignore_ascii_case(device)
    };
    match names
        .iter()
        .find(|name| *name == device)
        .or_else(|| names.iter().find(has_mac))
    {
        Some(name) => Ok(name.clone()),
        None => Err(format!(
            "no NIC has the name or MAC {device}; there are: {}",
            names.join(", ")
        )),
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let line = arguments.join(" ");
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot run ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "ip {line}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

fn connect(peer: &str, timeout_ms: u64) -> Result<TcpStream> {
    let address: SocketAddr = peer
        .parse()
        .map_err(|_| format!("`peer` is not address:port: {peer}"))?;
    let timeout = Duration::from_millis(timeout_ms.max(1));
    let connect = || {
        let socket = TcpStream::connect_timeout(&address, timeout)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(socket)
    };
    connect().map_err(|error: io::Error| format!("cannot connect to {peer}: {error}"))
}

/// The piece that is due next, of what is left.
fn piece(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let length = usize::try_from(left.min(PIECE)).unwrap_or(0);
    &mut buffer[..length]
}

/// Answers `net.send`. Waits for the peer to close its side too, so that the time is that of the whole transfer.
pub fn send(request: &NetSend) -> Result<TransferReply> {
    let mut socket = connect(&request.peer, request.timeout_ms)?;
    let (start, mut stream, mut sum) = (
        Instant::now(),
        Stream::new(request.seed),
        Checksum::default(),
    );
    let mut buffer = vec![0; usize::try_from(PIECE).unwrap_or(0)];
    let mut sent = 0;
    let mut transfer = || {
        while sent < request.bytes {
            let piece = piece(&mut buffer, request.bytes - sent);
            stream.fill(piece);
            socket.write_all(piece)?;
            sum.update(piece);
            sent += piece.len() as u64;
        }
        socket.shutdown(Shutdown::Write)?;
        while socket.read(&mut buffer)? > 0 {}
        Ok(())
    };
    let error = transfer().err().map(|error: io::Error| error.to_string());
    let seconds = start.elapsed().as_secs_f64();
    Ok(TransferReply {
        bytes: sent,
        checksum: sum.value(),
        seconds,
        mismatch: None,
        error,
    })
}

/// Answers `net.receive`.
pub fn receive(request: &NetReceive) -> Result<TransferReply> {
    let mut socket = connect(&request.peer, request.timeout_ms)?;
    let (start, mut stream, mut sum) = (
        Instant::now(),
        Stream::new(request.seed),
        Checksum::default(),
    );
    let length = usize::try_from(PIECE).unwrap_or(0);
    let (mut buffer, mut expected) = (vec![0; length], vec![0; length]);
    let (mut received, mut mismatch) = (0, None);
    let mut transfer = || {
        while received < request.bytes {
            let count = socket.read(piece(&mut buffer, request.bytes - received))?;
            if count == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer closed the connection early",
                ));
            }
            let (got, wanted) = (&buffer[..count], &mut expected[..count]);
            stream.fill(wanted);
            sum.update(got);
            if mismatch.is_none() && got != wanted {
                let place = got
                    .iter()
                    .zip(wanted.iter())
                    .position(|(got, wanted)| got != wanted);
                mismatch = place.map(|place| received + place as u64);
            }
            received += count as u64;
        }
        Ok(())
    };
    let error = transfer().err().map(|error: io::Error| error.to_string());
    let seconds = start.elapsed().as_secs_f64();
    Ok(TransferReply {
        bytes: received,
        checksum: sum.value(),
        seconds,
        mismatch,
        error,
    })
}
