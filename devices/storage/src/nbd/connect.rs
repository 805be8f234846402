//! The way to a server: socket, TLS, negotiation. Everything here blocks, on a thread that may, and nothing longer than its deadline.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, sockopt};
use rustls::ClientConfig;

use super::error::{Failure, NbdErrorKind};
use super::handshake::{self, Export};
use super::tls::{self, TlsTransport};
use super::{NbdAddress, NbdOptions};
use crate::fd::connect_unix;
use crate::link::Transport;

/// Bytes of the stack of a thread that looks a name up: what getaddrinfo takes is its secret.
const STACK_SIZE: usize = 1 << 20;

/// A connection in the transmission phase.
pub(super) struct Connected {
    pub transport: Box<dyn Transport>,
    pub export: Export,
}

/// Connects and negotiates.
pub(super) fn connect(
    options: &NbdOptions,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Connected, Failure> {
    let end = Instant::now() + options.connect_timeout;
    let socket = open(&options.uri.address, end)?;
    let mut stream = Timed {
        socket: &socket,
        end,
    };
    let no_zeroes = handshake::greet(&mut stream)?;
    let name = &options.uri.export;
    let Some(config) = tls else {
        let export = handshake::enter(&mut stream, name, no_zeroes)?;
        let transport = Box::new(socket);
        return Ok(Connected { transport, export });
    };
    handshake::start_tls(&mut stream)?;
    let mut connection = tls::handshake(config, options, &mut stream)?;
    let mut secure = rustls::Stream::new(&mut connection, &mut stream);
    let export = handshake::enter(&mut secure, name, no_zeroes).map_err(tls::blame)?;
    let transport = Box::new(TlsTransport::new(connection, socket));
    Ok(Connected { transport, export })
}

/// Opens a socket that does not block.
fn open(address: &NbdAddress, end: Instant) -> Result<Socket, Failure> {
    let socket = match address {
        NbdAddress::Tcp { host, port } => open_tcp(host, *port, end),
        NbdAddress::Unix(path) => {
            SocketAddrUnix::new(path).map_or_else(|e| Err(e.into()), |a| open_unix(&a, end))
        }
        NbdAddress::Abstract(name) => SocketAddrUnix::new_abstract_name(name)
            .map_or_else(|e| Err(e.into()), |a| open_unix(&a, end)),
    };
    socket.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => NbdErrorKind::Timeout.into(),
        _ => Failure::because(NbdErrorKind::Connect, error),
    })
}

fn left(end: Instant) -> io::Result<Duration> {
    match end.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

fn open_tcp(host: &str, port: u16, end: Instant) -> io::Result<Socket> {
    let addresses = resolve(host, port, end)?;
    let mut result = Err(io::Error::other("the host name has no address"));
    for address in addresses {
        match TcpStream::connect_timeout(&address, left(end)?) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                // What was not sent when the connection is given up must not reach the server any more, once the network has healed: it has been
                // sent on another connection then, and newer data after it.
                sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
                sockopt::set_socket_keepalive(&stream, true)?;
                return Ok(Socket(stream.into()));
            }
            Err(error) => result = Err(error),
        }
    }
    result
}

/// The resolver has no deadline that we could set, so it is waited for on another thread.
fn resolve(host: &str, port: u16, end: Instant) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, receiver) = channel();
    let host = host.to_owned();
    std::thread::Builder::new()
        .name("nbd-resolve".to_owned())
        .stack_size(STACK_SIZE)
        .spawn(move || {
            let found = (host.as_str(), port).to_socket_addrs().map(Vec::from_iter);
            // Nobody may be waiting any more.
            let _ = sender.send(found);
        })?;
    receiver
        .recv_timeout(left(end)?)
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn open_unix(address: &SocketAddrUnix, end: Instant) -> io::Result<Socket> {
    connect_unix(address, end).map(Socket)
}

/// A connected stream socket that does not block.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for &Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buffer)?)
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::writev(&self.0, slices)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that is waited for until a deadline, however slowly the peer drips.
pub(super) struct Timed<'a> {
    socket: &'a Socket,
    end: Instant,
}

impl Timed<'_> {
    fn attempt<T>(
        &self,
        ready: PollFlags,
        mut call: impl FnMut(&Socket) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            let left = left(self.end)?;
            match call(self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => return result,
            }
            let mut fds = [PollFd::new(self.socket, ready)];
            let timeout = Timespec::try_from(left).ok();
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.attempt(PollFlags::IN, |mut socket| socket.read(buffer))
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(PollFlags::OUT, |mut socket| socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
