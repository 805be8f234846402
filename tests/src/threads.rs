//! What a process and its threads have cost so far.

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

/// CPU time of all of a process, threads that have ended too; in ticks of 10 ms, as proc_pid_stat(5) has it.
///
/// # Errors
/// When the process is gone.
pub fn process_cpu_time(pid: u32) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = ticks(&text)
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat says no times: {text}")))?;
    // USER_HZ, which is the same on all of x86.
    Ok(Duration::from_millis(10 * ticks))
}

/// Fields 14 and 15: in user mode, and in the kernel.
fn ticks(stat: &str) -> Option<u64> {
    // The name, which is field 2, may have anything in it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse);
    let (user, kernel): (u64, u64) = (times.next()?.ok()?, times.next()?.ok()?);
    user.checked_add(kernel)
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

    #[test]
    fn work_of_threads_that_have_ended_counts_for_the_process() {
        let own = std::process::id();
        let before = process_cpu_time(own).unwrap();
        let enough = before + Duration::from_millis(50);
        let work = move || while process_cpu_time(own).unwrap() < enough {};
        std::thread::spawn(work).join().unwrap();
        assert!(process_cpu_time(own).unwrap() >= enough);
    }

    #[test]
    fn a_name_does_not_move_the_fields() {
        let stat = "7 (a ) 1 2) S 3 4 5 6 7 8 9 10 11 12 130 20 0 0";
        assert_eq!(ticks(stat), Some(150));
        assert_eq!(ticks("7 (name) S 3"), None);
    }
}
