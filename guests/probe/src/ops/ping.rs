//! Ping: ICMP echo over IPv4, with a payload that is compared when it comes back.
//!
//! One thread sends at a fixed pace whatever comes back, and the request's own receives: so a network that is away for a
//! while shows as a row of requests without answers, whose length is told. Other hosts' packets are ignored.

use super::Result;
use paddock_probe::protocol::{NetPing, PingReply};
use paddock_probe::stream::Stream;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrV4, SocketType, ipproto};
use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const MAX_COUNT: u32 = 100_000;
const MAX_SIZE: u16 = 65_507;
const HEADER: usize = 8;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// Tells this process's runs apart; the high half of what the payload is drawn from.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// Answers `net.ping`.
pub fn ping(request: &NetPing) -> Result<PingReply> {
    let address: Ipv4Addr = request
        .address
        .parse()
        .map_err(|_| format!("`address` is not an IPv4 address: {}", request.address))?;
    if request.count == 0 || request.count > MAX_COUNT || request.size > MAX_SIZE {
        return Err(format!(
            "`count` must be 1 to {MAX_COUNT}, and `size` at most {MAX_SIZE}"
        ));
    }
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))
        .map_err(|error| format!("cannot open an ICMP socket: {error}"))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(50)))
        .map_err(|error| format!("cannot set the socket's timeout: {error}"))?;
    let run = Run {
        request,
        socket,
        address,
        identifier: u16::try_from(std::process::id() & 0xffff).unwrap_or(0),
        number: RUNS.fetch_add(1, Ordering::Relaxed),
        sent: Mutex::default(),
    };
    thread::scope(|scope| {
        let sender = thread::Builder::new()
            .name("ping".to_owned())
            .spawn_scoped(scope, || run.send());
        let sender = sender.map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(run.receive(&sender))
    })
}

struct Run<'a> {
    request: &'a NetPing,
    socket: OwnedFd,
    address: Ipv4Addr,
    identifier: u16,
    number: u64,
    /// When each request left.
    sent: Mutex<Vec<Instant>>,
}

impl Run<'_> {
    /// The packet with this number: ICMP's header, and a payload nobody else sends.
    fn packet(&self, number: u32, kind: u8) -> Vec<u8> {
        let mut packet = vec![0; HEADER + usize::from(self.request.size)];
        packet[0] = kind;
        packet[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        packet[6..8].copy_from_slice(&sequence(number).to_be_bytes());
        Stream::new(self.number << 32 | u64::from(number)).fill(&mut packet[HEADER..]);
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// Sends all requests at their pace; the first refusal, if any.
    fn send(&self) -> Option<String> {
        let (start, interval) = (
            Instant::now(),
            Duration::from_millis(self.request.interval_ms),
        );
        let to = SocketAddrV4::new(self.address, 0);
        let mut refused = None;
        for number in 0..self.request.count {
            let packet = self.packet(number, ECHO_REQUEST);
            self.sent
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Instant::now());
            if let Err(error) = rustix::net::sendto(&self.socket, &packet, SendFlags::empty(), &to)
            {
                refused.get_or_insert_with(|| error.to_string());
            }
            thread::sleep(
                (start + interval * (number + 1)).saturating_duration_since(Instant::now()),
            );
        }
        refused
    }

    fn receive(&self, sender: &thread::ScopedJoinHandle<'_, Option<String>>) -> PingReply {
        let mut buffer = vec![0; 1 << 16];
        let mut tally = Tally::default();
        let mut deadline = None;
        while tally.answered.len() < usize::try_from(self.request.count).unwrap_or(usize::MAX) {
            if sender.is_finished() {
                let limit = Duration::from_millis(self.request.timeout_ms);
                if Instant::now() >= *deadline.get_or_insert_with(|| Instant::now() + limit) {
                    break;
                }
            }
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, length)) => self.take(&buffer[..length.min(buffer.len())], &mut tally),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => {
                    tally.refused.get_or_insert_with(|| error.to_string());
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
        tally.reply(self.request.count)
    }

    /// Counts a packet if it answers one of ours.
    fn take(&self, packet: &[u8], tally: &mut Tally) {
        // A raw socket of IPv4 hands out the IP header too; its length is in words of 4 bytes.
        let Some(header) = packet.first().map(|&first| usize::from(first & 15) * 4) else {
            return;
        };
        let Some(reply) = packet.get(header..).filter(|reply| reply.len() >= HEADER) else {
            return;
        };
        let from_peer = packet.get(12..16) == Some(&self.address.octets()[..]);
        if !from_peer || reply[0] != ECHO_REPLY || reply[4..6] != self.identifier.to_be_bytes() {
            return;
        }
        let wanted = u16::from_be_bytes([reply[6], reply[7]]);
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        // Sequence numbers wrap: the newest request with this one is meant.
        let newest = u32::try_from(sent.len()).unwrap_or(0);
        let Some(number) = (0..newest)
            .rev()
            .take(1 << 16)
            .find(|&number| sequence(number) == wanted)
        else {
            return;
        };
        let Some(&left) = usize::try_from(number)
            .ok()
            .and_then(|number| sent.get(number))
        else {
            return;
        };
        drop(sent);
        if reply[HEADER..] != self.packet(number, ECHO_REPLY)[HEADER..] {
            tally.corrupt += 1;
        } else if tally.answered.insert(number) {
            tally.rtt.push(left.elapsed());
        } else {
            tally.duplicates += 1;
        }
    }
}

fn sequence(number: u32) -> u16 {
    u16::try_from(number & 0xffff).unwrap_or(0)
}

#[derive(Default)]
struct Tally {
    answered: HashSet<u32>,
    rtt: Vec<Duration>,
    duplicates: u32,
    corrupt: u32,
    refused: Option<String>,
}

impl Tally {
    fn reply(self, sent: u32) -> PingReply {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let count = u32::try_from(self.rtt.len()).unwrap_or(u32::MAX);
        let mean = self
            .rtt
            .iter()
            .sum::<Duration>()
            .checked_div(count)
            .unwrap_or_default();
        let (mut outage, mut longest_outage) = (0, 0);
        for number in 0..sent {
            outage = if self.answered.contains(&number) {
                0
            } else {
                outage + 1
            };
            longest_outage = longest_outage.max(outage);
        }
        PingReply {
            sent,
            received: count,
            duplicates: self.duplicates,
            corrupt: self.corrupt,
            refused: self.refused,
            rtt_us: [
                self.rtt.iter().min().copied().map_or(0, micros),
                micros(mean),
                self.rtt.iter().max().copied().map_or(0, micros),
            ],
            longest_outage,
        }
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let sum = bytes.chunks(2).fold(0u32, |sum, pair| {
        sum + (u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from))
    });
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded & 0xffff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums() {
        // The example of RFC 1071, section 3.
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
        assert_eq!(checksum(&[0xff]), !0xff00);
    }

    #[test]
    fn outages_are_measured() {
        let mut tally = Tally::default();
        tally.answered.extend([0, 1, 5, 6, 8]);
        tally.rtt = vec![Duration::from_micros(10); 5];
        let reply = tally.reply(10);
        assert_eq!(
            (reply.received, reply.longest_outage, reply.rtt_us),
            (5, 3, [10, 10, 10])
        );
    }
}
