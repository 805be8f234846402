//! Commands: run to their end on the request's thread, with one more thread for each of their three streams.
//!
//! A command is the leader of a process group of its own, which is killed as a whole.

use super::Result;
use crate::agent::Agent;
use paddock_probe::protocol::{
    Bytes, Command as CommandLine, Done, Event, Exec, ExecReply, ExecStdin, ExitStatus, Output,
    OutputStream,
};
use rustix::process::{Pid, Signal};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long output may still come after the command has ended: longer than a pipe takes to drain, but a daemon left
/// behind may hold it open for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// How long `exec.stdin` waits for its command to start.
const START: Duration = Duration::from_secs(10);

/// The commands that run, by the id of their request.
#[derive(Debug, Default)]
pub struct Commands {
    entries: Mutex<HashMap<u64, Entry>>,
    changed: Condvar,
}

/// A command announced but not started has neither group nor stdin.
#[derive(Debug, Default)]
struct Entry {
    group: Option<Pid>,
    killed: bool,
    stdin: Option<Arc<Mutex<Option<ChildStdin>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Commands {
    /// Makes an id known before its command has started.
    pub fn announce(&self, id: u64) {
        lock(&self.entries).insert(id, Entry::default());
    }

    /// Forgets an id.
    pub fn forget(&self, id: u64) {
        lock(&self.entries).remove(&id);
        self.changed.notify_all();
    }

    fn started(&self, id: u64, group: Pid, stdin: Option<ChildStdin>) {
        let mut entries = lock(&self.entries);
        let entry = entries.entry(id).or_default();
        entry.group = Some(group);
        entry.stdin = stdin.map(|stdin| Arc::new(Mutex::new(Some(stdin))));
        if entry.killed {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        self.changed.notify_all();
    }

    /// Appends to a command's standard input; returns when it has taken it.
    pub fn stdin(&self, input: &ExecStdin) -> Result<Done> {
        let gone = || format!("no command with id {} runs", input.exec);
        let (entries, _) = self
            .changed
            .wait_timeout_while(lock(&self.entries), START, |entries| {
                entries
                    .get(&input.exec)
                    .is_some_and(|entry| entry.group.is_none())
            })
            .unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(&input.exec).ok_or_else(gone)?;
        let stdin = entry
            .stdin
            .clone()
            .ok_or("the command does not keep its standard input open (`keep_stdin`)")?;
        drop(entries);
        let mut stdin = lock(&stdin);
        let pipe = stdin.as_mut().ok_or("its standard input has been closed")?;
        pipe.write_all(&input.data.0)
            .map_err(|error| format!("the command does not read: {error}"))?;
        if input.close {
            *stdin = None;
        }
        Ok(Done {})
    }

    /// Kills a command, or sees to it that it ends as soon as it has started.
    pub fn kill(&self, id: u64) -> Result<Done> {
        let mut entries = lock(&self.entries);
        let entry = entries
            .get_mut(&id)
            .ok_or_else(|| format!("no command with id {id} runs"))?;
        entry.killed = true;
        if let Some(group) = entry.group {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        Ok(Done {})
    }
}

/// Runs a command that was announced.
pub fn run(agent: &Arc<Agent>, id: u64, exec: &Exec) -> Result<ExecReply> {
    let reply = run_announced(agent, id, exec);
    agent.commands.forget(id);
    reply
}

fn run_announced(agent: &Arc<Agent>, id: u64, exec: &Exec) -> Result<ExecReply> {
    if exec.keep_stdin && !exec.stdin.0.is_empty() {
        return Err("give either `stdin` or `keep_stdin`".to_owned());
    }
    let start = Instant::now();
    let mut child = spawn(exec)?;
    let group = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or("the command has no process id")?;
    let mut stdin = child.stdin.take();
    agent
        .commands
        .started(id, group, if exec.keep_stdin { stdin.take() } else { None });
    if let Some(mut pipe) = stdin {
        let input = exec.stdin.0.clone();
        // A command that does not read all of its input is none of our business.
        spawn_thread("stdin", move || drop(pipe.write_all(&input)))?;
    }
    let stdout = Collector::start(agent, id, exec, OutputStream::Stdout, child.stdout.take())?;
    let stderr = Collector::start(agent, id, exec, OutputStream::Stderr, child.stderr.take())?;
    let status = wait(child, group, Duration::from_millis(exec.timeout_ms))?;
    let ((stdout, cut_out), (stderr, cut_err)) = (stdout.finish(), stderr.finish());
    Ok(ExecReply {
        status,
        stdout,
        stderr,
        truncated: cut_out || cut_err,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn spawn(exec: &Exec) -> Result<Child> {
    let mut command = match &exec.command {
        CommandLine::Shell(line) => {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(line);
            command
        }
        CommandLine::Argv(arguments) => {
            let (program, rest) = arguments.split_first().ok_or("`argv` is empty")?;
            let mut command = Command::new(program);
            command.args(rest);
            command
        }
    };
    command
        .stdin(if exec.keep_stdin || !exec.stdin.0.is_empty() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .map_err(|error| {
            format!(
                "cannot run {}: {error}",
                command.get_program().to_string_lossy()
            )
        })
}

fn spawn_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
    thread
        .map(drop)
        .map_err(|error| format!("cannot start a thread: {error}"))
}

/// Waits for the command and kills its group when its time is up.
fn wait(mut child: Child, group: Pid, limit: Duration) -> Result<ExitStatus> {
    let (sender, receiver) = mpsc::sync_channel(1);
    spawn_thread("wait", move || drop(sender.send(child.wait())))?;
    let mut timed_out = false;
    let status = match receiver.recv_timeout(limit) {
        Err(RecvTimeoutError::Timeout) => {
            timed_out = true;
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
            receiver.recv_timeout(START)
        }
        other => other,
    };
    let status = match status {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return Err(format!("cannot wait for the command: {error}")),
        Err(_) => {
            return Err(
                "the command has been killed but does not end: it hangs in the kernel".to_owned(),
            );
        }
    };
    Ok(match (timed_out, status.code(), status.signal()) {
        (true, _, _) => ExitStatus::TimedOut,
        (_, Some(code), _) => ExitStatus::Exited(code),
        (_, _, signal) => ExitStatus::Signaled(signal.unwrap_or(0)),
    })
}

/// Takes what comes out of one stream.
struct Collector {
    kept: Arc<Mutex<Kept>>,
    ended: Receiver<()>,
}

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    seen: u64,
    truncated: bool,
}

impl Collector {
    fn start<R: Read + Send + 'static>(
        agent: &Arc<Agent>,
        id: u64,
        exec: &Exec,
        stream: OutputStream,
        pipe: Option<R>,
    ) -> Result<Self> {
        let mut pipe = pipe.ok_or("the command has no output pipe")?;
        let kept = Arc::new(Mutex::new(Kept::default()));
        let (sender, ended) = mpsc::sync_channel(1);
        let (writer, streamed, mine) = (agent.writer.clone(), exec.stream, Arc::clone(&kept));
        let limit = usize::try_from(exec.limit)
            .unwrap_or(usize::MAX)
            .min(paddock_probe::protocol::MAX_LINE / 4);
        spawn_thread("output", move || {
            let mut buffer = [0; 16 << 10];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                if streamed {
                    let data = Bytes(buffer[..count].to_vec());
                    writer.event(Event::Output(Output { id, stream, data }));
                }
                let mut kept = lock(&mine);
                kept.seen = kept.seen.saturating_add(count as u64);
                if !streamed {
                    let room = limit.saturating_sub(kept.bytes.len());
                    kept.truncated |= count > room;
                    kept.bytes.extend_from_slice(&buffer[..count.min(room)]);
                }
            }
            let _ = sender.try_send(());
        })?;
        Ok(Self { kept, ended })
    }

    /// What came, once the stream has ended or nothing has come for a while.
    fn finish(self) -> (Bytes, bool) {
        let mut seen = lock(&self.kept).seen;
        while self.ended.recv_timeout(DRAIN) == Err(RecvTimeoutError::Timeout) {
            let now = lock(&self.kept).seen;
            if now == seen {
                break;
            }
            seen = now;
        }
        let mut kept = lock(&self.kept);
        (Bytes(std::mem::take(&mut kept.bytes)), kept.truncated)
    }
}
