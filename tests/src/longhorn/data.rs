//! A plain client of data connections, to an engine's socket or to a replica: one request at a time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use paddock_longhorn::wire::{HEADER, Header, Kind, MAX_TEXT, WireError};

/// How long an answer may take: an engine that has lost sight of its last replica says so after 16 s.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The peer says that it cannot.
    #[error("refused: {0}")]
    Refused(String),
    /// The connection broke, or nothing came in time.
    #[error("the connection")]
    Connection(#[from] io::Error),
    /// What came is no frame.
    #[error("what came is no frame")]
    Frame(#[from] WireError),
    /// What came is no answer to the request.
    #[error("no answer to the request: {0:?}")]
    Answer(Header),
}

trait Stream: Read + Write + Send + std::fmt::Debug {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

/// A data connection.
#[derive(Debug)]
pub struct DataConnection {
    stream: Box<dyn Stream>,
    sequence: u32,
}

impl DataConnection {
    /// Connects to a replica.
    ///
    /// # Errors
    /// When nobody is there.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self::new(stream))
    }

    /// Connects to an engine.
    ///
    /// # Errors
    /// When nobody is there.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self::new(stream))
    }

    fn new(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            sequence: 0,
        }
    }

    /// Fills a buffer from byte `offset` on.
    ///
    /// # Errors
    /// When it is not done.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DataError> {
        let answer = self.ask(Kind::Read, offset, length(buffer)?, &[])?;
        if answer.payload != length(buffer)? {
            return Err(DataError::Answer(answer));
        }
        Ok(self.stream.read_exact(buffer)?)
    }

    /// Writes from byte `offset` on, which has to end within the volume: Longhorn's replicas do not survive another.
    ///
    /// # Errors
    /// When it is not done.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DataError> {
        let answer = self.ask(Kind::Write, offset, length(data)?, data)?;
        if answer.payload == 0 {
            Ok(())
        } else {
            Err(DataError::Answer(answer))
        }
    }

    /// Sends a request and reads the header of its answer, or all of a refusal.
    fn ask(
        &mut self,
        kind: Kind,
        offset: u64,
        size: u32,
        data: &[u8],
    ) -> Result<Header, DataError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Header::request(self.sequence, kind, offset.cast_signed(), size);
        request.payload = length(data)?;
        self.stream.write_all(&request.encode())?;
        self.stream.write_all(data)?;

        let mut bytes = [0; HEADER];
        self.stream.read_exact(&mut bytes)?;
        let answer = Header::decode(&bytes)?;
        match answer.kind {
            _ if answer.sequence != self.sequence => Err(DataError::Answer(answer)),
            Kind::Response => Ok(answer),
            Kind::Error | Kind::Eof | Kind::NoSpace if answer.payload <= MAX_TEXT => {
                let mut text = vec![0; answer.payload as usize];
                self.stream.read_exact(&mut text)?;
                let text = String::from_utf8_lossy(&text);
                Err(DataError::Refused(format!("{:?}: {text}", answer.kind)))
            }
            _ => Err(DataError::Answer(answer)),
        }
    }
}

fn length(data: &[u8]) -> io::Result<u32> {
    u32::try_from(data.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}
