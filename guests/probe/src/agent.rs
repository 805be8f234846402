//! The agent: reads requests from the port, runs each on a thread of its own, answers.
//!
//! The reading thread itself answers only what takes no time, so that a heartbeat can be started and the guest powered
//! off while a disk hangs. A request that panics is a mistake of ours and is answered like any other failure.

use crate::init::console;
use crate::ops::{
    self, blocks, button, cpu, exec, heartbeat, memory, net, ping, power, system, time,
};
use crate::port::{self, Input, Lines, Writer};
use crate::sysfs;
use paddock_probe::PORT_NAME;
use paddock_probe::protocol::{BadRequest, Done, Event, Op, Reply, Request};
use serde::Serialize;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long the port may take to appear before the guest's user gets a shell.
const PORT_DEADLINE: Duration = Duration::from_secs(10);

/// Requests in the works at the same time.
const MAX_RUNNING: usize = 64;

/// What operations share.
#[derive(Debug)]
pub struct Agent {
    /// Where replies and events go.
    pub writer: Writer,
    /// Whether this guest has no other init.
    pub init: bool,
    /// Commands that run.
    pub commands: exec::Commands,
    /// The memory of the memory operations.
    pub memory: memory::Slot,
    /// The heartbeat, while it is on.
    pub heartbeat: heartbeat::Slot,
    running: AtomicUsize,
}

/// Runs the agent for as long as the port is there.
pub fn run(init: bool) -> ExitCode {
    if init {
        let info = rustix::system::sysinfo();
        let memory = u64::from(info.mem_unit).saturating_mul(info.totalram) >> 20;
        console(&format!(
            "up, {} cpus, {memory} MiB",
            sysfs::online_cpus().len()
        ));
    }
    match wait_for_port(init).and_then(|path| serve(init, &path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console(&format!("error: {error}"));
            eprintln!("paddock-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The port's device file. An initramfs without a port gets a shell meanwhile; a service gives up.
fn wait_for_port(init: bool) -> io::Result<PathBuf> {
    if let Some(path) = port::find(PORT_NAME, Instant::now() + PORT_DEADLINE) {
        return Ok(path);
    }
    if !init {
        let message = format!("no virtio console port is named {PORT_NAME}: add one to the VM");
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    console(&format!(
        "no virtio console port is named {PORT_NAME}, so no test can reach this guest; here is a shell"
    ));
    thread::Builder::new()
        .name("shell".to_owned())
        .spawn(shells)?;
    loop {
        if let Some(path) = port::find(PORT_NAME, Instant::now()) {
            return Ok(path);
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// A shell on the console, and another when it ends, unless the console is one on which nobody types.
fn shells() {
    let mut short = 0;
    while short < 3 {
        let start = Instant::now();
        let status = Command::new("/bin/sh")
            .args([
                "-c",
                "exec setsid cttyhack sh </dev/console >/dev/console 2>&1",
            ])
            .status();
        if status.is_err() || start.elapsed() < Duration::from_secs(1) {
            short += 1;
        }
    }
    console("the console gives the shell no input: no more shells");
}

fn serve(init: bool, path: &PathBuf) -> io::Result<()> {
    let (reader, port) = port::open(path).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot open {}: {error}", path.display()),
        )
    })?;
    let agent = Arc::new(Agent {
        writer: Writer::start(port)?,
        init,
        commands: exec::Commands::default(),
        memory: memory::Slot::default(),
        heartbeat: heartbeat::Slot::default(),
        running: AtomicUsize::new(0),
    });
    button::watch(&agent)?;
    let mut lines = Lines::new(reader);
    loop {
        match lines.next()? {
            Input::Connected => drop(agent.writer.try_event(Event::Hello(system::hello(&agent)))),
            Input::Line(line) => request(&agent, &line),
            Input::TooLong => {
                refuse(
                    &agent,
                    BadRequest {
                        id: 0,
                        reason: "the line is longer than 16 MiB".to_owned(),
                    },
                );
            }
        }
    }
}

fn refuse(agent: &Agent, bad: BadRequest) {
    agent.writer.reply(Reply {
        id: bad.id,
        ok: None,
        error: Some(bad.reason),
    });
}

fn request(agent: &Arc<Agent>, line: &[u8]) {
    let Request { id, op } = match Request::parse(line) {
        Ok(request) => request,
        Err(bad) => return refuse(agent, bad),
    };
    match op {
        // Order matters for these, or they are what a test falls back on when all else hangs.
        Op::Hello(_) => answer(agent, id, Ok(system::hello(agent))),
        Op::HeartbeatStart(start) => answer(agent, id, heartbeat::start(agent, start)),
        Op::HeartbeatStop(_) => answer(agent, id, Ok(heartbeat::stop(agent))),
        Op::ExecKill(kill) => answer(agent, id, agent.commands.kill(kill.exec)),
        Op::Exec(command) => {
            // Known before the next line is read, which may be its standard input.
            agent.commands.announce(id);
            in_background(agent, id, Op::Exec(command));
        }
        op => in_background(agent, id, op),
    }
}

fn in_background(agent: &Arc<Agent>, id: u64, op: Op) {
    if agent.running.fetch_add(1, Ordering::Relaxed) >= MAX_RUNNING {
        agent.running.fetch_sub(1, Ordering::Relaxed);
        return refuse(
            agent,
            BadRequest {
                id,
                reason: format!("{MAX_RUNNING} requests are running: wait for one to end"),
            },
        );
    }
    let worker = Arc::clone(agent);
    let spawned = thread::Builder::new()
        .name(op.name().to_owned())
        .spawn(move || {
            if catch_unwind(AssertUnwindSafe(|| run_op(&worker, id, op))).is_err() {
                refuse(
                    &worker,
                    BadRequest {
                        id,
                        reason: "the probe panicked: see the guest's console".to_owned(),
                    },
                );
            }
            worker.running.fetch_sub(1, Ordering::Relaxed);
        });
    if let Err(error) = spawned {
        agent.running.fetch_sub(1, Ordering::Relaxed);
        refuse(
            agent,
            BadRequest {
                id,
                reason: format!("cannot start a thread: {error}"),
            },
        );
    }
}

fn run_op(agent: &Arc<Agent>, id: u64, op: Op) {
    match op {
        Op::Info(_) => answer(agent, id, Ok(system::info())),
        Op::Exec(command) => answer(agent, id, exec::run(agent, id, &command)),
        Op::ExecStdin(input) => answer(agent, id, agent.commands.stdin(&input)),
        Op::BlocksWrite(write) => answer(agent, id, blocks::write(&write)),
        Op::BlocksVerify(verify) => answer(agent, id, blocks::verify(&verify)),
        Op::BlocksRead(read) => answer(agent, id, blocks::read(&read)),
        Op::BlocksFlush(flush) => answer(agent, id, Ok(blocks::flush(&flush))),
        Op::BlocksDiscard(discard) => answer(agent, id, Ok(blocks::discard(&discard))),
        Op::BlocksZero(zero) => answer(agent, id, Ok(blocks::zero(&zero))),
        Op::NetUp(up) => answer(agent, id, net::up(&up)),
        Op::NetPing(request) => answer(agent, id, ping::ping(&request)),
        Op::NetSend(send) => answer(agent, id, net::send(&send)),
        Op::NetReceive(receive) => answer(agent, id, net::receive(&receive)),
        Op::MemoryTouch(touch) => answer(agent, id, memory::touch(agent, &touch)),
        Op::MemoryDirty(dirty) => answer(agent, id, memory::dirty(agent, &dirty)),
        Op::MemoryStop(_) => answer(agent, id, Ok(memory::stop(agent))),
        Op::MemoryVerify(_) => answer(agent, id, Ok(memory::verify(agent))),
        Op::CpuSpin(spin) => answer(agent, id, cpu::spin(spin)),
        Op::Cpus(_) => answer(agent, id, cpu::cpus()),
        Op::Clock(_) => answer(agent, id, Ok(time::clock())),
        Op::Random(random) => answer(agent, id, time::random(random)),
        Op::PowerOff(_) => end(agent, id, power::Ending::PowerOff),
        Op::Reboot(how) => end(agent, id, power::Ending::Reboot(how.method)),
        Op::Halt(_) => end(agent, id, power::Ending::Halt),
        Op::Crash(how) => end(agent, id, power::Ending::Crash(how.kind)),
        // Answered by the reading thread.
        Op::Hello(_) | Op::ExecKill(_) | Op::HeartbeatStart(_) | Op::HeartbeatStop(_) => {
            refuse(
                agent,
                BadRequest {
                    id,
                    reason: format!("{} does not run in the background", op.name()),
                },
            );
        }
    }
}

/// Answers before the guest ends, for afterwards is too late; what fails then is told on the console.
fn end(agent: &Agent, id: u64, ending: power::Ending) {
    if let Err(error) = power::prepare(ending) {
        return answer::<Done>(agent, id, Err(error));
    }
    answer(agent, id, Ok(Done {}));
    agent.writer.flush(Duration::from_secs(5));
    if let Err(error) = power::perform(ending, agent.init) {
        console(&format!("{ending:?} failed: {error}"));
    }
}

fn answer<T: Serialize>(agent: &Agent, id: u64, result: ops::Result<T>) {
    let value =
        result.and_then(|reply| serde_json::to_value(reply).map_err(|error| error.to_string()));
    let (ok, error) = match value {
        Ok(value) => (Some(value), None),
        Err(error) => (None, Some(error)),
    };
    agent.writer.reply(Reply { id, ok, error });
}
