//! Replica processes, as an engine finds them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use paddock_longhorn::replica::replica_service_client::ReplicaServiceClient;
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

    /// Tells it to end, and returns whether it did so well.
    pub fn terminate(mut self) -> bool {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
