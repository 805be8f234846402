//! The datagram socket of `sd_notify(3)`: one datagram a message, lines of `NAME=value`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// How long the service manager may leave its socket full before a message is given up.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a status, at most. It is one line in `systemctl status`.
const MAX_STATUS: usize = 256;

/// The way to the service manager. To be used within the control plane's runtime.
#[derive(Debug)]
pub struct NotifySocket(tokio::net::UnixDatagram);

impl NotifySocket {
    /// Connects to `address`, as `NOTIFY_SOCKET` has it: an absolute path, or `@` and a name that is in no file system.
    ///
    /// # Errors
    /// When it is something else, or nobody listens there.
    pub fn connect(address: &OsStr) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(address)?,
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        tokio::net::UnixDatagram::from_std(socket).map(Self)
    }

    /// Sends one message. Waits where the service manager is behind, but not for long.
    ///
    /// # Errors
    /// When it cannot be delivered.
    pub async fn send(&self, message: &str) -> io::Result<()> {
        let sent = tokio::time::timeout(PATIENCE, self.0.send(message.as_bytes())).await;
        sent.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
            .map(drop)
    }
}

/// The line that tells the status. The text may come from a guest, and must not become a line of its own.
#[must_use]
pub fn status_line(text: &str) -> String {
    let mut line = String::from("STATUS=");
    for character in text.trim().chars() {
        if line.len() + character.len_utf8() > MAX_STATUS {
            break;
        }
        let harmless = !character.is_control();
        line.push(if harmless { character } else { ' ' });
    }
    line
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn within_runtime<T>(future: impl Future<Output = T>) -> T {
        let runtime = { tokio::runtime::Builder::new_current_thread() }
            .enable_all()
            .build();
        runtime.unwrap().block_on(future)
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    #[test]
    fn both_kinds_of_addresses() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let in_files = UnixDatagram::bind(&path).unwrap();
        let name = format!("paddock-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let in_no_files = UnixDatagram::bind_addr(&address).unwrap();
        within_runtime(async {
            let socket = NotifySocket::connect(path.as_os_str()).unwrap();
            socket.send("READY=1\nSTATUS=running").await.unwrap();
            let socket = NotifySocket::connect(&OsString::from(format!("@{name}"))).unwrap();
            socket.send("STOPPING=1").await.unwrap();
        });
        assert_eq!(receive(&in_files), "READY=1\nSTATUS=running");
        assert_eq!(receive(&in_no_files), "STOPPING=1");
    }

    #[test]
    fn addresses_that_are_none() {
        within_runtime(async {
            for address in ["", "relative", "vsock:2:1", "/absent/notify"] {
                assert!(
                    NotifySocket::connect(OsStr::new(address)).is_err(),
                    "{address}"
                );
            }
        });
    }

    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _deaf = UnixDatagram::bind(&path).unwrap();
        within_runtime(async {
            let socket = NotifySocket::connect(path.as_os_str()).unwrap();
            let mut sent = 0;
            let error = loop {
                match socket.send("STATUS=running").await {
                    Ok(()) => sent += 1,
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(sent > 0);
        });
    }

    #[test]
    fn a_status_is_one_line() {
        assert_eq!(status_line("running"), "STATUS=running");
        assert_eq!(
            status_line("crashed: a\nREADY=1\r\x1b[1m\n"),
            "STATUS=crashed: a READY=1  [1m"
        );
        assert_eq!(status_line(&"ä".repeat(500)).len(), 255);
    }
}
