//! Tells the service manager how the process is: READY, STATUS, STOPPING, and that it is alive.
//!
//! One task on the control plane's runtime. It follows the events of the process, so it says what the API's clients hear, too; and as it
//! shares its thread with the state driver and the API, its heartbeat stops when they hang.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use paddock_api::journal::{Delivery, Follower, Journal};
use paddock_api::resource::{EndReason, EventKind, VmEnd, VmState};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::inherited::Notify;
use super::notify::{NotifySocket, status_line};

/// How often the status is told at most: a guest may do nothing but reset.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);
/// How long the end waits for the last message to go out.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the process is there for: it decides when it is ready, and when it is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// One VM: ready when the guest runs, and at its end when the VM is.
    Run,
    /// The API: ready when it answers, whatever becomes of a VM.
    Serve,
}

/// Tells, as long as it is not [finished](Self::finish). Without a service manager it does nothing.
#[derive(Debug)]
pub struct Herald(Option<Task>);

#[derive(Debug)]
struct Task {
    /// How long the end may take from now on.
    stopping: mpsc::UnboundedSender<Duration>,
    handle: JoinHandle<()>,
}

impl Herald {
    /// Starts to tell `notify` what `journal` says from its beginning on, as a task of the present runtime.
    #[must_use]
    pub fn start(notify: Option<&Notify>, role: Role, journal: &Arc<Journal>) -> Self {
        let Some(notify) = notify else {
            return Self(None);
        };
        let socket = match NotifySocket::connect(&notify.socket) {
            Ok(socket) => socket,
            Err(error) => {
                let socket = notify.socket.display();
                tracing::warn!(%socket, %error, "the service manager in NOTIFY_SOCKET cannot be told anything");
                return Self(None);
            }
        };
        let (stopping, stops) = mpsc::unbounded_channel();
        let telling = Telling {
            socket,
            script: Script::new(role),
            status: None,
            quiet_until: Instant::now(),
        };
        let heartbeat = notify.watchdog.map(heartbeat);
        let handle = tokio::spawn(telling.tell(journal.follow(Some(0)), stops, heartbeat));
        Self(Some(Task { stopping, handle }))
    }

    /// The process is about to end, and that may take so long.
    pub fn stopping(&self, within: Duration) {
        if let Some(task) = &self.0 {
            // Fails once the task is gone, which is at the end.
            let _ = task.stopping.send(within);
        }
    }

    /// Tells what there still is to tell, and that the process ends.
    pub async fn finish(self) {
        let Some(Task { stopping, handle }) = self.0 else {
            return;
        };
        drop(stopping);
        let abort = handle.abort_handle();
        if tokio::time::timeout(LAST_WORDS, handle).await.is_err() {
            abort.abort();
        }
    }
}

/// Twice as often as needed.
fn heartbeat(watchdog: Duration) -> Interval {
    let period = (watchdog / 2).max(Duration::from_millis(1));
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// The task.
struct Telling {
    socket: NotifySocket,
    script: Script,
    /// Not told yet.
    status: Option<String>,
    /// No status before.
    quiet_until: Instant,
}

impl Telling {
    async fn tell(
        mut self,
        mut events: Follower,
        mut stops: mpsc::UnboundedReceiver<Duration>,
        mut heartbeat: Option<Interval>,
    ) {
        let said = self.script.begin();
        self.say(said).await;
        let mut more = true;
        loop {
            tokio::select! {
                // What happened is told before the end is.
                biased;
                delivery = events.next(), if more => match delivery {
                    Some(Delivery::Event(event)) => {
                        let said = self.script.event(&event.kind);
                        self.say(said).await;
                    }
                    Some(Delivery::Gap { .. }) => {}
                    None => more = false,
                },
                stop = stops.recv() => {
                    let Some(within) = stop else { break };
                    let said = self.script.stopping(Some(within));
                    self.say(said).await;
                }
                () = beat(&mut heartbeat) => self.send("WATCHDOG=1").await,
                () = tokio::time::sleep_until(self.quiet_until), if self.status.is_some() => {
                    self.say(Said::default()).await;
                }
            }
        }
        self.quiet_until = Instant::now();
        let said = self.script.stopping(None);
        self.say(said).await;
    }

    /// Sends what is urgent at once, with the status; a status alone when it is its turn.
    async fn say(&mut self, said: Said) {
        if said.status.is_some() {
            self.status = said.status;
        }
        let now = Instant::now();
        let mut lines = said.urgent;
        if !lines.is_empty() || now >= self.quiet_until {
            if let Some(status) = self.status.take() {
                lines.push(status_line(&status));
                self.quiet_until = now + STATUS_INTERVAL;
            }
        }
        if !lines.is_empty() {
            self.send(&lines.join("\n")).await;
        }
    }

    async fn send(&self, message: &str) {
        match self.socket.send(message).await {
            Ok(()) => tracing::debug!(message, "told the service manager"),
            Err(error) => explain(&error, message),
        }
    }
}

fn explain(error: &io::Error, message: &str) {
    tracing::warn!(%error, message, "telling the service manager");
}

async fn beat(heartbeat: &mut Option<Interval>) {
    match heartbeat {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// What is to be told at one time.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    urgent: Vec<String>,
    status: Option<String>,
}

impl Said {
    fn status(text: impl Into<String>) -> Self {
        Self {
            urgent: Vec::new(),
            status: Some(text.into()),
        }
    }
}

/// What is told when: without a clock and without a socket.
#[derive(Debug)]
struct Script {
    role: Role,
    ready: bool,
    stopping: bool,
}

impl Script {
    fn new(role: Role) -> Self {
        Self {
            role,
            ready: false,
            stopping: false,
        }
    }

    fn begin(&mut self) -> Said {
        match self.role {
            Role::Run => Said::status("starting"),
            Role::Serve => {
                let mut said = Said::status("no VM");
                self.set_ready(&mut said);
                said
            }
        }
    }

    fn event(&mut self, event: &EventKind) -> Said {
        match event {
            EventKind::Created { .. } => Said::status("starting"),
            EventKind::State { state } => {
                let mut said = Said::status(state.to_string());
                if self.role == Role::Run {
                    match state {
                        VmState::Running => self.set_ready(&mut said),
                        VmState::Stopping => self.set_stopping(&mut said),
                        _ => {}
                    }
                }
                said
            }
            EventKind::Ended { end } => {
                let mut said = Said::status(end_text(end));
                if self.role == Role::Run {
                    self.set_stopping(&mut said);
                }
                said
            }
            EventKind::Deleted => Said::status("no VM"),
            EventKind::Action { .. }
            | EventKind::Medium { .. }
            | EventKind::Job { .. }
            | EventKind::Variables { .. }
            | EventKind::DiskError { .. }
            | EventKind::DiskReporting { .. }
            | EventKind::DiskRecovered { .. }
            | EventKind::DiskResized { .. }
            | EventKind::ReplicaAdded { .. }
            | EventKind::ReplicaRebuilt { .. }
            | EventKind::ReplicaFailed { .. }
            | EventKind::ReplicaReopened { .. }
            | EventKind::ReplicaRemoved { .. }
            | EventKind::ComparisonStarted { .. }
            | EventKind::ComparisonDone { .. }
            | EventKind::RecordFailed { .. }
            | EventKind::RecordRecovered { .. }
            | EventKind::SnapshotTaken { .. } => Said::default(),
        }
    }

    /// The process ends, and the service manager is to wait so long for it.
    fn stopping(&mut self, within: Option<Duration>) -> Said {
        let mut said = Said::default();
        self.set_stopping(&mut said);
        if let Some(within) = within {
            let microseconds = within.as_micros();
            let extend = format!("EXTEND_TIMEOUT_USEC={microseconds}");
            said.urgent.push(extend);
        }
        said
    }

    fn set_ready(&mut self, said: &mut Said) {
        if !std::mem::replace(&mut self.ready, true) {
            said.urgent.push("READY=1".to_owned());
        }
    }

    fn set_stopping(&mut self, said: &mut Said) {
        if !std::mem::replace(&mut self.stopping, true) {
            said.urgent.push("STOPPING=1".to_owned());
        }
    }
}

fn end_text(end: &VmEnd) -> String {
    let what = match end.reason {
        EndReason::PoweredOff => "ended: the guest powered off",
        EndReason::Reset => "ended: the guest asked for a reset",
        EndReason::Stopped => "ended: it was stopped",
        EndReason::Crashed => "crashed",
        EndReason::Failed => "failed",
    };
    let place = end.pointer.as_deref();
    let mut text = what.to_owned();
    for more in place.into_iter().chain(end.detail.as_deref()) {
        text.push_str(": ");
        text.push_str(more);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn state(state: VmState) -> EventKind {
        EventKind::State { state }
    }

    fn ended(reason: EndReason) -> EventKind {
        EventKind::Ended {
            end: VmEnd::new(reason),
        }
    }

    /// What the service manager is told of these events, line by line.
    fn told(role: Role, events: &[EventKind]) -> Vec<String> {
        let mut script = Script::new(role);
        let begin = script.begin();
        let mut lines = Vec::new();
        let said = events.iter().map(|event| script.event(event));
        for said in std::iter::once(begin).chain(said) {
            lines.extend(said.urgent);
            lines.extend(said.status);
        }
        lines
    }

    #[test]
    fn a_vm_is_ready_when_its_guest_runs() {
        let lines = told(
            Role::Run,
            &[
                EventKind::Created { name: None },
                state(VmState::Running),
                state(VmState::Resetting),
                state(VmState::Running),
                state(VmState::Paused),
                state(VmState::Stopping),
                ended(EndReason::PoweredOff),
            ],
        );
        let expected = [
            "starting",
            "starting",
            "READY=1",
            "running",
            "resetting",
            "running",
            "paused",
            "STOPPING=1",
            "stopping",
            "ended: the guest powered off",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_vm_that_fails_was_never_ready() {
        let end = VmEnd {
            reason: EndReason::Failed,
            detail: Some("no such file".to_owned()),
            pointer: Some("/disks/0".to_owned()),
        };
        let lines = told(Role::Run, &[EventKind::Ended { end }]);
        let status = "failed: /disks/0: no such file";
        assert_eq!(lines, ["starting", "STOPPING=1", status]);
    }

    #[test]
    fn a_server_is_ready_at_once_and_survives_its_vms() {
        let one = [
            EventKind::Created { name: None },
            state(VmState::Running),
            state(VmState::Stopping),
            ended(EndReason::Crashed),
            EventKind::Deleted,
        ];
        let lines = told(Role::Serve, &[one.clone(), one].concat());
        assert_eq!(lines[..2], ["READY=1", "no VM"]);
        let one = ["starting", "running", "stopping", "crashed", "no VM"];
        assert_eq!(lines[2..], [one, one].concat());
    }

    #[test]
    fn the_end_is_told_once_and_how_long_it_may_take() {
        let mut script = Script::new(Role::Serve);
        let first = script.stopping(Some(Duration::from_secs(50)));
        let extended = "EXTEND_TIMEOUT_USEC=50000000";
        assert_eq!(first.urgent, ["STOPPING=1", extended]);
        let second = script.stopping(Some(Duration::from_secs(50)));
        assert_eq!(second.urgent, [extended]);
        assert_eq!(script.stopping(None), Said::default());
    }

    struct Manager {
        _directory: tempfile::TempDir,
        socket: UnixDatagram,
        notify: Notify,
    }

    fn manager(watchdog: Option<Duration>) -> Manager {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let notify = Notify {
            socket: path.into(),
            watchdog,
        };
        Manager {
            _directory: directory,
            socket,
            notify,
        }
    }

    impl Manager {
        fn receive(&self) -> String {
            let mut buffer = [0; 1024];
            let count = self.socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..count].to_vec()).unwrap()
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = { tokio::runtime::Builder::new_current_thread() }
            .enable_all()
            .build();
        runtime.unwrap().block_on(future)
    }

    /// Lets the task do what there is to do.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_vms_life_as_the_manager_hears_it() {
        let manager = manager(None);
        block_on(async {
            let journal = Arc::<Journal>::default();
            let herald = Herald::start(Some(&manager.notify), Role::Run, &journal);
            settle().await;
            assert_eq!(manager.receive(), "STATUS=starting");
            journal.publish(state(VmState::Running));
            settle().await;
            assert_eq!(manager.receive(), "READY=1\nSTATUS=running");
            herald.stopping(Duration::from_secs(7));
            settle().await;
            assert_eq!(manager.receive(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=7000000");
            journal.publish(state(VmState::Stopping));
            journal.publish(ended(EndReason::PoweredOff));
            herald.finish().await;
            // Before it "stopping", unless that was too short to tell.
            let last = "STATUS=ended: the guest powered off";
            while manager.receive() != last {}
        });
    }

    #[test]
    fn a_guest_that_does_nothing_but_reset_does_not_flood_the_manager() {
        let manager = manager(None);
        block_on(async {
            let journal = Arc::<Journal>::default();
            let herald = Herald::start(Some(&manager.notify), Role::Serve, &journal);
            settle().await;
            assert_eq!(manager.receive(), "READY=1\nSTATUS=no VM");
            for _ in 0..200 {
                journal.publish(state(VmState::Resetting));
                journal.publish(state(VmState::Running));
                tokio::task::yield_now().await;
            }
            herald.finish().await;
        });
        manager.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 1024];
        let mut messages = Vec::new();
        while let Ok(count) = manager.socket.recv(&mut buffer) {
            messages.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
        assert!(messages.len() < 20, "{messages:?}");
        assert!(messages.last().unwrap().starts_with("STOPPING=1"));
        let mut statuses = messages.iter().rev().filter(|m| m.contains("STATUS="));
        assert!(statuses.next().unwrap().ends_with("STATUS=running"));
    }

    #[test]
    fn the_watchdog_hears_the_control_plane_and_nothing_when_it_hangs() {
        let manager = manager(Some(Duration::from_millis(200)));
        block_on(async {
            let journal = Arc::<Journal>::default();
            let herald = Herald::start(Some(&manager.notify), Role::Serve, &journal);
            settle().await;
            assert_eq!(manager.receive(), "READY=1\nSTATUS=no VM");
            tokio::time::sleep(Duration::from_millis(250)).await;
            assert_eq!(manager.receive(), "WATCHDOG=1");
            assert_eq!(manager.receive(), "WATCHDOG=1");
            // The thread that is to give signs of life hangs.
            manager.socket.set_nonblocking(true).unwrap();
            while manager.socket.recv(&mut [0; 64]).is_ok() {}
            std::thread::sleep(Duration::from_millis(300));
            assert!(manager.socket.recv(&mut [0; 64]).is_err());
            herald.finish().await;
        });
    }

    #[test]
    fn without_a_manager_nothing_is_said() {
        block_on(async {
            let journal = Arc::<Journal>::default();
            for notify in [
                None,
                Some(Notify {
                    socket: "/absent/notify".into(),
                    watchdog: None,
                }),
            ] {
                let herald = Herald::start(notify.as_ref(), Role::Run, &journal);
                assert!(herald.0.is_none());
                herald.stopping(Duration::ZERO);
                herald.finish().await;
            }
        });
    }
}
