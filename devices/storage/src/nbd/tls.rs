//! TLS on a connection: TLS 1.3 with certificates. The server's is checked against the CA that was given and nothing else, for
//! a storage server is somebody's own. There are no pre-shared keys and no anonymous sessions: rustls has neither.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::connect::Socket;
use super::error::{Failure, NbdErrorKind};
use super::{NbdAddress, NbdOptions, NbdTls};

/// Bytes of TLS that wait for the socket at most.
const BUFFER: usize = 256 << 10;

/// Reads the certificates.
pub(super) fn configure(options: &NbdTls) -> Result<Arc<ClientConfig>, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&options.ca)? {
        let unusable = |error| credentials(&options.ca, error);
        roots.add(certificate).map_err(unusable)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Failure::because(NbdErrorKind::Tls, io::Error::other(error)))?
        .with_root_certificates(roots);
    let config = match &options.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::from_pem_file(&identity.key)
                .map_err(|error| credentials(&identity.key, error))?;
            builder
                .with_client_auth_cert(certificates(&identity.certificate)?, key)
                .map_err(|error| credentials(&identity.certificate, error))?
        }
    };
    Ok(Arc::new(config))
}

fn credentials(path: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    let kind = NbdErrorKind::Credentials(PathBuf::from(path));
    Failure::because(kind, io::Error::other(error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let unusable = |error| credentials(path, error);
    let found = CertificateDer::pem_file_iter(path).map_err(unusable)?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(unusable)?;
    if found.is_empty() {
        return Err(credentials(path, "there is no certificate in it"));
    }
    Ok(found)
}

/// The name that the server's certificate must have.
pub(super) fn server_name(options: &NbdOptions) -> Result<ServerName<'static>, Failure> {
    let given = options.tls.as_ref().and_then(|tls| tls.hostname.as_deref());
    let name = given
        .or(options.uri.tls_hostname.as_deref())
        .or(match &options.uri.address {
            NbdAddress::Tcp { host, .. } => Some(host),
            NbdAddress::Unix(_) | NbdAddress::Abstract(_) => None,
        });
    name.and_then(|name| ServerName::try_from(name.to_owned()).ok())
        .ok_or_else(|| NbdErrorKind::Hostname.into())
}

/// Begins TLS; returns when both sides are content.
pub(super) fn handshake(
    config: &Arc<ClientConfig>,
    options: &NbdOptions,
    stream: &mut (impl Read + Write),
) -> Result<ClientConnection, Failure> {
    let failed = |error| Failure::because(NbdErrorKind::Tls, io::Error::other(error));
    let name = server_name(options)?;
    let mut connection = ClientConnection::new(Arc::clone(config), name).map_err(failed)?;
    connection.set_buffer_limit(Some(BUFFER));
    while connection.is_handshaking() {
        connection
            .complete_io(stream)
            .map_err(|e| blame(e.into()))?;
    }
    Ok(connection)
}

/// A server that does not like our certificate says so only after the handshake: whatever ends the negotiation by TLS is its fault.
pub(super) fn blame(failure: Failure) -> Failure {
    match failure {
        Failure {
            kind: NbdErrorKind::Io,
            source,
        } => Failure {
            kind: NbdErrorKind::Tls,
            source,
        },
        failure => failure,
    }
}

/// TLS on a socket that does not block.
pub(super) struct TlsTransport {
    connection: ClientConnection,
    socket: Socket,
}

impl TlsTransport {
    pub(super) fn new(connection: ClientConnection, socket: Socket) -> Self {
        Self { connection, socket }
    }

    /// Sends what waits for the socket; `WouldBlock` when some of it still does.
    fn push(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Takes in what the socket has. Whether there was something.
    fn pull(&mut self) -> io::Result<bool> {
        match self.connection.read_tls(&mut self.socket) {
            // The reader tells a clean end from a cut.
            Ok(0) => Ok(false),
            Ok(_) => {
                self.connection
                    .process_new_packets()
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for TlsTransport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for TlsTransport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.connection.reader().read(&mut buffer[done..]) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.pull() {
                    Ok(true) => {}
                    Ok(false) if done > 0 => break,
                    // Nothing, or the end: the reader knows.
                    Ok(false) => return self.connection.reader().read(buffer),
                    Err(_) if done > 0 => break,
                    Err(error) => return Err(error),
                },
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        // An update of keys is answered at once, if it can be.
        match self.push() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock && done == 0 => Err(error),
            _ => Ok(done),
        }
    }
}

impl Write for TlsTransport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        // There is room afterwards, for what waits is never more than the limit.
        self.push()?;
        self.connection.writer().write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()
    }
}
