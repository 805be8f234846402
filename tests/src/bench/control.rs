//! What it costs to be ready: the CPU time of the process when somebody can connect to its API and is answered.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::BenchError;
use super::vmm::Vmm;
use crate::threads::cpu_time;

const DEADLINE: Duration = Duration::from_secs(60);
/// Often enough to be near the moment, seldom enough to leave the process alone.
const INTERVAL: Duration = Duration::from_millis(2);

/// Milliseconds.
pub(super) fn measure(vmm: &Vmm) -> Result<f64, BenchError> {
    let host = |what: &str| {
        let what = what.to_owned();
        move |source| BenchError::Host { what, source }
    };
    let directory = tempfile::tempdir().map_err(host("making a temporary directory"))?;
    let socket = directory.path().join("api.sock");
    let running = vmm.serve(&socket)?;
    answered(vmm, &socket).map_err(host("waiting for an answer of the API"))?;
    cpu_time(running.pid(), "")
        .map(|time| time.as_secs_f64() * 1000.0)
        .map_err(host("reading the process's CPU time"))
}

/// Waits until the API says something.
fn answered(vmm: &Vmm, socket: &Path) -> std::io::Result<()> {
    let end = Instant::now() + DEADLINE;
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => sleep(INTERVAL),
        }
    };
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(vmm.question().as_bytes())?;
    stream.read_exact(&mut [0])
}
