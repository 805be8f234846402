//! What the tests share: a replica whose data is served, and a client that knows nothing but frames.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use paddock_longhorn::wire::{HEADER, Header, Kind};
use tempfile::TempDir;

use crate::data::{Address, DataServer, Engine, Limits};
use crate::volume::replica::{Options, Replica};

pub(crate) const MIB: i64 = 1 << 20;

/// A directory on a disk file system.
pub(crate) fn place() -> TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

/// A replica, open and served.
pub(crate) struct Served {
    pub replica: Arc<Replica>,
    pub server: DataServer,
}

/// Makes or opens a replica of `size` bytes.
pub(crate) fn serve(options: Options, size: i64, engine: Engine) -> Served {
    serve_limited(options, size, engine, Limits::default())
}

/// The same, for so many.
pub(crate) fn serve_limited(options: Options, size: i64, engine: Engine, limits: Limits) -> Served {
    let replica = Replica::new(options);
    replica.create(size).unwrap();
    replica.open().unwrap();
    let address = Address::Tcp("127.0.0.1:0".parse().unwrap());
    let server = DataServer::start_limited(&address, Arc::clone(&replica), engine, limits).unwrap();
    Served { replica, server }
}

/// The same, of one MiB, without a counter.
pub(crate) fn serve_small(directory: &Path, engine: Engine) -> Served {
    serve(Options::new(directory), MIB, engine)
}

impl Served {
    /// Ends as a process does: nothing of it is left.
    pub(crate) fn end(self) {
        assert!(self.server.stop(Duration::from_secs(20)));
        while Arc::strong_count(&self.replica) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn client(&self) -> Client {
        let stream = TcpStream::connect(self.server.local_address().unwrap()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Client {
            stream,
            sequence: 0,
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub header: Header,
    pub payload: Vec<u8>,
}

impl Answer {
    /// What a successful answer carries, or the text of an error.
    pub(crate) fn result(self) -> Result<Vec<u8>, String> {
        match self.header.kind {
            Kind::Response => Ok(self.payload),
            Kind::Error => Err(String::from_utf8(self.payload).unwrap()),
            other => panic!("an answer of type {other:?}"),
        }
    }
}

pub(crate) struct Client {
    pub stream: TcpStream,
    sequence: u32,
}

impl Client {
    /// Sends a request and returns its number.
    pub(crate) fn send(&mut self, kind: Kind, offset: i64, size: u32, payload: &[u8]) -> u32 {
        self.sequence += 1;
        let header = Header {
            sequence: self.sequence,
            kind,
            offset,
            size,
            payload: u32::try_from(payload.len()).unwrap(),
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend(payload);
        self.stream.write_all(&bytes).unwrap();
        self.sequence
    }

    /// The next answer, or nothing at the end.
    pub(crate) fn receive(&mut self) -> Option<Answer> {
        let mut bytes = [0; HEADER];
        self.stream.read_exact(&mut bytes).ok()?;
        let header = Header::decode(&bytes).unwrap();
        let mut payload = vec![0; header.payload as usize];
        self.stream.read_exact(&mut payload).unwrap();
        Some(Answer { header, payload })
    }

    /// Waits for the connection's end. A signal may come in between: where a socket has a timeout, it ends a call.
    #[track_caller]
    pub(crate) fn end(&mut self) {
        let error = self.stream.read_exact(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
    }

    fn call(&mut self, kind: Kind, offset: i64, size: u32, payload: &[u8]) -> Answer {
        let sequence = self.send(kind, offset, size, payload);
        let answer = self.receive().unwrap();
        assert_eq!(
            (answer.header.sequence, answer.header.offset),
            (sequence, offset)
        );
        answer
    }

    pub(crate) fn write(&mut self, offset: i64, data: &[u8]) -> Result<(), String> {
        let size = u32::try_from(data.len()).unwrap();
        let answer = self.call(Kind::Write, offset, size, data);
        if answer.header.kind == Kind::Response {
            assert_eq!((answer.header.size, answer.header.payload), (size, 0));
        }
        answer.result().map(drop)
    }

    pub(crate) fn read(&mut self, offset: i64, size: u32) -> Result<Vec<u8>, String> {
        let answer = self.call(Kind::Read, offset, size, &[]);
        assert_eq!(answer.header.size, answer.header.payload);
        answer.result()
    }

    /// Returns how many bytes came free.
    pub(crate) fn unmap(&mut self, offset: i64, size: u32) -> Result<u32, String> {
        let answer = self.call(Kind::Unmap, offset, size, &[]);
        let freed = answer.header.size;
        answer.result().map(|_| freed)
    }

    pub(crate) fn ping(&mut self) -> Result<(), String> {
        let answer = self.call(Kind::Ping, 0, 0, &[]);
        answer.result().map(drop)
    }
}
