//! A data connection of the control thread's own: for pings, and for comparing replicas. One request at a time.

use std::time::Duration;

use paddock_longhorn::wire::{HEADER, Header, Kind, MAX_DATA, MAX_TEXT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::longhorn::options::ReplicaAddress;

/// A connection to a replica's data port. After an error it is of no use any more.
#[derive(Debug)]
pub(in crate::longhorn) struct DataClient {
    stream: TcpStream,
    sequence: u32,
}

fn broken(error: impl std::fmt::Display) -> String {
    format!("the connection ended: {error}")
}

fn late(what: &str, deadline: Duration) -> String {
    format!("it has not {what} for {} s", deadline.as_secs())
}

impl DataClient {
    /// Connects; the host alone would try for minutes.
    pub(in crate::longhorn) async fn connect(
        address: &ReplicaAddress,
        deadline: Duration,
    ) -> Result<Self, String> {
        let connected = timeout(deadline, TcpStream::connect(address.data())).await;
        let connected = connected.map_err(|_| late("taken a connection", deadline))?;
        let stream = connected.map_err(|error| format!("it cannot be connected to: {error}"))?;
        stream.set_nodelay(true).map_err(broken)?;
        Ok(Self {
            stream,
            sequence: 0,
        })
    }

    /// Asks for something and waits for the answer's data, of which there are to be so many bytes.
    async fn ask(&mut self, header: Header, data: &[u8], expected: u32) -> Result<Vec<u8>, String> {
        self.sequence = self.sequence.wrapping_add(1);
        let header = Header {
            sequence: self.sequence,
            ..header
        };
        let stream = &mut self.stream;
        stream.write_all(&header.encode()).await.map_err(broken)?;
        stream.write_all(data).await.map_err(broken)?;
        let mut bytes = [0; HEADER];
        stream.read_exact(&mut bytes).await.map_err(broken)?;
        let answer = Header::decode(&bytes).map_err(|error| error.to_string())?;
        let well = answer.sequence == self.sequence;
        match answer.kind {
            Kind::Response if well && answer.payload == expected => {
                // At most what was asked for.
                let mut data = vec![0; usize::try_from(expected).unwrap_or(0)];
                stream.read_exact(&mut data).await.map_err(broken)?;
                Ok(data)
            }
            Kind::Error | Kind::Eof | Kind::NoSpace if answer.payload <= MAX_TEXT => {
                let mut text = vec![0; usize::try_from(answer.payload).unwrap_or(0)];
                stream.read_exact(&mut text).await.map_err(broken)?;
                let text = String::from_utf8_lossy(&text);
                Err(match answer.kind {
                    Kind::NoSpace => {
                        format!("it answered: no space left on device {}", text.trim())
                    }
                    _ => format!("it answered: {}", text.trim()),
                })
            }
            kind => Err(format!(
                "it answered with a frame of type {kind:?} and {} bytes",
                answer.payload
            )),
        }
    }

    async fn within(
        &mut self,
        deadline: Duration,
        header: Header,
        data: &[u8],
        expected: u32,
    ) -> Result<Vec<u8>, String> {
        match timeout(deadline, self.ask(header, data, expected)).await {
            Ok(answer) => answer,
            Err(_) => Err(late("answered", deadline)),
        }
    }

    pub(super) async fn ping(&mut self, deadline: Duration) -> Result<(), String> {
        let header = Header::request(0, Kind::Ping, 0, 0);
        self.within(deadline, header, &[], 0).await.map(drop)
    }

    /// Reads at most [`MAX_DATA`].
    pub(in crate::longhorn) async fn read(
        &mut self,
        deadline: Duration,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, String> {
        let offset = i64::try_from(offset).map_err(|error| error.to_string())?;
        let size = size.min(MAX_DATA);
        let header = Header::request(0, Kind::Read, offset, size);
        self.within(deadline, header, &[], size).await
    }

    pub(super) async fn write(
        &mut self,
        deadline: Duration,
        offset: u64,
        data: &[u8],
    ) -> Result<(), String> {
        let offset = i64::try_from(offset).map_err(|error| error.to_string())?;
        let size = u32::try_from(data.len()).map_err(|error| error.to_string())?;
        let header = Header {
            payload: size,
            ..Header::request(0, Kind::Write, offset, size)
        };
        self.within(deadline, header, data, 0).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use super::DataClient;
    use crate::longhorn::options::ReplicaAddress;

    #[tokio::test]
    async fn whoever_takes_no_connection_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        // Nobody accepts, and the kernel takes no more than so many for it: to the next it does not answer.
        rustix::net::listen(&listener, 0).expect("listens");
        let port = listener.local_addr().expect("an address").port() - 1;
        let address: ReplicaAddress = format!("127.0.0.1:{port}").parse().expect("an address");
        let deadline = Duration::from_millis(300);
        let began = Instant::now();
        let mut clients = Vec::new();
        let reason = loop {
            match DataClient::connect(&address, deadline).await {
                Ok(client) => clients.push(client),
                Err(reason) => break reason,
            }
        };
        assert!(reason.contains("taken a connection"), "{reason}");
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
