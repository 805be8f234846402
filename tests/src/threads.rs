//! What the threads of a process have cost so far.

use std::fs;
use std::io;
use std::time::Duration;

/// CPU time of the threads of `pid` whose names begin with `prefix`; threads that have ended do not count.
///
/// # Errors
/// When the process is gone, or has no such thread.
pub fn cpu_time(pid: u32, prefix: &str) -> io::Result<Duration> {
    let (mut nanoseconds, mut found) = (0, false);
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if !fs::read_to_string(task.join("comm"))?.starts_with(prefix) {
            continue;
        }
        found = true;
        let text = fs::read_to_string(task.join("schedstat"))?;
        let first = text.split_whitespace().next().unwrap_or_default();
        nanoseconds += first.parse::<u64>().map_err(io::Error::other)?;
    }
    if !found {
        let text = format!("process {pid} has no thread named {prefix}…");
        return Err(io::Error::other(text));
    }
    Ok(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{TryRecvError, channel};

    use super::*;

    #[test]
    fn work_is_counted_where_it_is_done() {
        let worker = std::thread::Builder::new().name("busy".to_owned());
        let (stop, stopped) = channel::<()>();
        let worker = worker.spawn(move || while stopped.try_recv() == Err(TryRecvError::Empty) {});
        let own = std::process::id();
        while cpu_time(own, "busy").unwrap_or_default() < Duration::from_millis(5) {}
        drop(stop);
        worker.unwrap().join().unwrap();
        assert!(cpu_time(own, "nobody").is_err());
    }
}
