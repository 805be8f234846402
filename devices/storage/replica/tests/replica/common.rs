//! Replica processes, as an engine finds them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use paddock_longhorn::messages as m;
use paddock_longhorn::replica::replica_service_client::ReplicaServiceClient;
use paddock_longhorn::sync_agent::sync_agent_service_client::SyncAgentServiceClient;
use paddock_longhorn::wire::{HEADER, Header, Kind};
use tonic::transport::{Channel, Endpoint};

/// A process that is killed when the test is over.
pub struct Process {
    child: Child,
    pub port: u16,
}

/// A port that is free, and so are those after it.
fn free_ports(count: u16) -> u16 {
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if port < u16::MAX - count && (1..count).all(|more| free(port + more)) {
            return port;
        }
    }
    panic!("there are no {count} free ports in a row");
}

impl Process {
    /// Starts a replica of the volume `v` in a directory.
    pub fn start(directory: &Path, arguments: &[&str]) -> Self {
        let port = free_ports(6);
        let child = Command::new(env!("CARGO_BIN_EXE_paddock-replica"))
            .args([
                "--volume-name",
                "v",
                "replica",
                "--listen",
                &format!("127.0.0.1:{port}"),
            ])
            .args(arguments)
            .arg(directory)
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self { child, port }
    }

    /// Its address, as engines name it.
    pub fn address(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// Its sync agent, once it listens.
    pub async fn agent(&self) -> SyncAgentServiceClient<Channel> {
        SyncAgentServiceClient::new(self.channel(2).await)
    }

    /// A data connection.
    pub fn data(&self) -> Data {
        let stream = TcpStream::connect(("127.0.0.1", self.port + 1)).unwrap();
        Data { stream }
    }

    /// Its `ReplicaService`, once it listens.
    pub async fn control(&self) -> ReplicaServiceClient<Channel> {
        ReplicaServiceClient::new(self.channel(0).await)
    }

    /// A channel to one of its ports.
    pub async fn channel(&self, port: u16) -> Channel {
        let address = format!("http://127.0.0.1:{}", self.port + port);
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match Endpoint::from_shared(address.clone())
                .unwrap()
                .connect()
                .await
            {
                Ok(channel) => return channel,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Has it do nothing any more, or go on.
    pub fn freeze(&self, frozen: bool) {
        let signal = match frozen {
            true => rustix::process::Signal::STOP,
            false => rustix::process::Signal::CONT,
        };
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Tells it to end, and returns whether it did so well.
    pub fn terminate(mut self) -> bool {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().success()
    }
}

/// A data connection.
pub struct Data {
    stream: TcpStream,
}

impl Data {
    fn call(&mut self, header: Header, payload: &[u8]) -> Vec<u8> {
        self.stream.write_all(&header.encode()).unwrap();
        self.stream.write_all(payload).unwrap();
        let mut bytes = [0; HEADER];
        self.stream.read_exact(&mut bytes).unwrap();
        let answer = Header::decode(&bytes).unwrap();
        let mut payload = vec![0; answer.payload as usize];
        self.stream.read_exact(&mut payload).unwrap();
        let text = || String::from_utf8_lossy(&payload).into_owned();
        assert_eq!(answer.kind, Kind::Response, "{}", text());
        payload
    }

    pub fn write(&mut self, offset: i64, data: &[u8]) {
        let payload = u32::try_from(data.len()).unwrap();
        let header = Header {
            payload,
            ..Header::request(1, Kind::Write, offset, payload)
        };
        self.call(header, data);
    }

    pub fn read(&mut self, offset: i64, size: u32) -> Vec<u8> {
        self.call(Header::request(2, Kind::Read, offset, size), &[])
    }
}

/// A snapshot that a user asks for.
pub fn snapshot(name: &str) -> m::ReplicaSnapshotRequest {
    m::ReplicaSnapshotRequest {
        name: name.to_owned(),
        user_created: true,
        created: "2026-01-02T03:04:05Z".to_owned(),
        labels: [("a".to_owned(), "b".to_owned())].into(),
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
