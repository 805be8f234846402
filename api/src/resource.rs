//! What the API answers: the VM with its state, and the events of its life. Plain data, the same on both sides of the socket.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::disk::DiskFailure;
use crate::jobs::Job;
use crate::spec::VmConfig;
use crate::timeline::Timeline;

/// Where the VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// Being built: files are opened, memory is taken, the kernel is loaded.
    Starting,
    /// The guest runs.
    Running,
    /// The guest stands still until it is resumed. Its clocks go on.
    Paused,
    /// Being torn down and built anew.
    Resetting,
    /// Being torn down for good; `end` will say why.
    Stopping,
    /// Over; `end` says why.
    Ended,
}

impl VmState {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Resetting,
        Self::Stopping,
        Self::Ended,
    ];
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Resetting => "resetting",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
        })
    }
}

/// Why a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a reset, and the spec's `on_reset` says that this is the end.
    Reset,
    /// It was stopped from outside.
    Stopped,
    /// The guest cannot go on; `detail` says where it was.
    Crashed,
    /// The VM could not be built, at its start or after a reset; `detail` says why.
    Failed,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmEnd {
    /// What class of end.
    pub reason: EndReason,
    /// What happened, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The JSON pointer to the part of the spec that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
}

impl VmEnd {
    /// An end that needs no explanation.
    #[must_use]
    pub fn new(reason: EndReason) -> Self {
        Self {
            reason,
            detail: None,
            pointer: None,
        }
    }
}

/// The file that keeps the variables of the VM's firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Variables {
    /// The guest has set variables that the file does not have yet. That is so for a fraction of a second each time, unless there is an error.
    pub unsaved: bool,
    /// Why the last write failed, if it did; it is tried again, and the guest goes on meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The VM of this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// What it is made of, with all defaults.
    pub spec: VmConfig,
    /// Where it is in its life.
    pub state: VmState,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<VmEnd>,
    /// How the file of its firmware's variables is. Nothing where they are in no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variables: Option<Variables>,
    /// Its disks that fail, whose errors are not simply reported to the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk_failures: Vec<DiskFailure>,
    /// When it came this far.
    pub timeline: Timeline,
    /// The sequence number of the last event before this answer: `GET /events?after=` it misses nothing. 0 if there was none.
    pub last_event: u64,
}

/// What can be done to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Presses the power button; what that does is the guest's choice.
    PowerButton,
    /// Resets the machine without asking the guest. It boots again, also where `on_reset` is `exit`.
    Reset,
    /// Pulls the NMI line: Linux shows where it is stuck, or panics, as it is configured.
    Nmi,
    /// Stops the guest's processors where they are. What it has asked of its devices is still done.
    Pause,
    /// Lets a paused guest go on. Disks that fail are tried again.
    Resume,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::PowerButton,
        Self::Reset,
        Self::Nmi,
        Self::Pause,
        Self::Resume,
    ];

    /// The states in which it is possible. A paused guest notices the power button when it is resumed.
    #[must_use]
    pub fn states(self) -> &'static [VmState] {
        match self {
            Self::PowerButton => &[VmState::Running, VmState::Paused],
            Self::Reset | Self::Nmi | Self::Pause => &[VmState::Running],
            Self::Resume => &[VmState::Paused],
        }
    }

    /// [`states`](Self::states) in words.
    pub(crate) fn states_in_words(self) -> String {
        let states: Vec<_> = self.states().iter().map(VmState::to_string).collect();
        states.join(" or ")
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerButton => "power-button",
            Self::Reset => "reset",
            Self::Nmi => "nmi",
            Self::Pause => "pause",
            Self::Resume => "resume",
        })
    }
}

/// Something that happened to the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts from 1 in each process, without holes.
    pub seq: u64,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened. The `type` is also the name of the server-sent event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum EventKind {
    /// There is a VM now; it is starting.
    Created {
        /// Its name in the spec.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// It has another state. The last one, `ended`, is an event of its own.
    State {
        /// The new state.
        state: VmState,
    },
    /// Someone's request was taken.
    Action {
        /// What was asked for.
        action: Action,
    },
    /// A medium was inserted, changed or ejected through the API.
    Medium {
        /// The CD-ROM drive.
        cdrom: String,
        /// What is in it now, by its path; absent if nothing is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        path: Option<PathBuf>,
    },
    /// A job began, went on to another phase, or ended.
    Job {
        /// As it is now.
        job: Job,
    },
    /// The file of the firmware's variables cannot be written any more, or is written again.
    Variables {
        /// Why it cannot; nothing when it is written again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A disk fails: its requests are held from now on.
    DiskError {
        /// Its id.
        disk: String,
        /// What the host said, by its number in Linux.
        errno: i32,
        /// The same in words.
        error: String,
        /// First byte on the disk of the request that failed; absent for a flush.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
    },
    /// A disk did not recover in the time that its policy gives it: what was held was answered with its error, and so is what fails from now
    /// on.
    DiskReporting {
        /// Its id.
        disk: String,
        /// What the host said last, by its number in Linux.
        errno: i32,
        /// The same in words.
        error: String,
    },
    /// A disk that failed works again: a request has succeeded, and nothing is held any more. What was held has been done, unless the guest was
    /// told of the error (`disk-reporting`) or has dropped it by a reset.
    DiskRecovered {
        /// Its id.
        disk: String,
        /// How long after it failed, in milliseconds.
        after_ms: u64,
        /// How often it was tried.
        attempts: u64,
    },
    /// A disk has another size, of which the guest was told.
    DiskResized {
        /// Its id.
        disk: String,
        /// In bytes.
        size: u64,
    },
    /// A disk's volume has one replica more, which is rebuilt from now on.
    ReplicaAdded {
        /// The disk's id.
        disk: String,
        /// The replica's address.
        replica: String,
    },
    /// A replica that was being rebuilt has all of the volume.
    ReplicaRebuilt {
        /// The disk's id.
        disk: String,
        /// The replica's address.
        replica: String,
        /// How long that took, in milliseconds.
        took_ms: u64,
    },
    /// A replica of a disk's volume failed. The volume goes on with the others, if there are any.
    ReplicaFailed {
        /// The disk's id.
        disk: String,
        /// The replica's address.
        replica: String,
        /// What happened, for people.
        reason: String,
        /// Whether it was being rebuilt.
        rebuilding: bool,
    },
    /// A replica that had failed is used again, for it had missed nothing.
    ReplicaReopened {
        /// The disk's id.
        disk: String,
        /// The replica's address.
        replica: String,
    },
    /// A replica is not the volume's any more.
    ReplicaRemoved {
        /// The disk's id.
        disk: String,
        /// The replica's address.
        replica: String,
    },
    /// The replicas of a disk's volume are being compared, for they were not closed when it was last used.
    ComparisonStarted {
        /// The disk's id.
        disk: String,
    },
    /// The replicas were compared, and those that are left have the same.
    ComparisonDone {
        /// The disk's id.
        disk: String,
        /// How long that took, in milliseconds.
        took_ms: u64,
    },
    /// A replica of a disk's volume has failed, and the volume's record of those that have everything cannot be written: no write is acknowledged until it
    /// can.
    RecordFailed {
        /// The disk's id.
        disk: String,
        /// What the host said, with the record's path; for people.
        error: String,
    },
    /// The volume's record is written again, and so are acknowledged the writes that waited for it.
    RecordRecovered {
        /// The disk's id.
        disk: String,
        /// How long after it failed, in milliseconds.
        after_ms: u64,
    },
    /// A snapshot of a disk's volume was taken.
    SnapshotTaken {
        /// The disk's id.
        disk: String,
        /// Its name.
        snapshot: String,
        /// How long the guest's I/O stood still for it, in microseconds.
        frozen_us: u64,
    },
    /// It is over.
    Ended {
        /// How.
        end: VmEnd,
    },
    /// There is no VM any more.
    Deleted,
}

impl EventKind {
    /// The `type`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "created",
            Self::State { .. } => "state",
            Self::Action { .. } => "action",
            Self::Medium { .. } => "medium",
            Self::Job { .. } => "job",
            Self::Variables { .. } => "variables",
            Self::DiskError { .. } => "disk-error",
            Self::DiskReporting { .. } => "disk-reporting",
            Self::DiskRecovered { .. } => "disk-recovered",
            Self::DiskResized { .. } => "disk-resized",
            Self::ReplicaAdded { .. } => "replica-added",
            Self::ReplicaRebuilt { .. } => "replica-rebuilt",
            Self::ReplicaFailed { .. } => "replica-failed",
            Self::ReplicaReopened { .. } => "replica-reopened",
            Self::ReplicaRemoved { .. } => "replica-removed",
            Self::ComparisonStarted { .. } => "comparison-started",
            Self::ComparisonDone { .. } => "comparison-done",
            Self::RecordFailed { .. } => "record-failed",
            Self::RecordRecovered { .. } => "record-recovered",
            Self::SnapshotTaken { .. } => "snapshot-taken",
            Self::Ended { .. } => "ended",
            Self::Deleted => "deleted",
        }
    }
}

/// The data of the event `gap`: what comes after it does not follow what came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gap {
    /// How many events were lost, because the process keeps only the last ones; `null` where that cannot be known,
    /// because the number that was asked for is another process's.
    #[serde(default)]
    pub lost: Option<u64>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn actions_have_one_name() {
        for action in Action::ALL {
            assert_eq!(json!(action), json!(action.to_string()));
        }
    }

    #[test]
    fn events_in_json() {
        let end = VmEnd::new(EndReason::PoweredOff);
        for (kind, expected) in [
            (
                EventKind::Created { name: None },
                json!({"seq": 1, "time_ms": 2, "type": "created"}),
            ),
            (
                EventKind::State {
                    state: VmState::Running,
                },
                json!({"seq": 1, "time_ms": 2, "type": "state", "state": "running"}),
            ),
            (
                EventKind::Action {
                    action: Action::PowerButton,
                },
                json!({"seq": 1, "time_ms": 2, "type": "action", "action": "power-button"}),
            ),
            (
                EventKind::Variables { error: None },
                json!({"seq": 1, "time_ms": 2, "type": "variables"}),
            ),
            (
                EventKind::Variables {
                    error: Some("full".to_owned()),
                },
                json!({"seq": 1, "time_ms": 2, "type": "variables", "error": "full"}),
            ),
            (
                EventKind::Medium {
                    cdrom: "cdrom0".to_owned(),
                    path: None,
                },
                json!({"seq": 1, "time_ms": 2, "type": "medium", "cdrom": "cdrom0"}),
            ),
            (
                EventKind::DiskError {
                    disk: "disk0".to_owned(),
                    errno: 28,
                    error: "full".to_owned(),
                    offset: None,
                },
                json!({"seq": 1, "time_ms": 2, "type": "disk-error", "disk": "disk0", "errno": 28, "error": "full"}),
            ),
            (
                EventKind::DiskRecovered {
                    disk: "disk0".to_owned(),
                    after_ms: 5,
                    attempts: 1,
                },
                json!({"seq": 1, "time_ms": 2, "type": "disk-recovered", "disk": "disk0", "after_ms": 5, "attempts": 1}),
            ),
            (
                EventKind::DiskResized {
                    disk: "disk0".to_owned(),
                    size: 512,
                },
                json!({"seq": 1, "time_ms": 2, "type": "disk-resized", "disk": "disk0", "size": 512}),
            ),
            (
                EventKind::ReplicaAdded {
                    disk: "disk0".to_owned(),
                    replica: "a:1".to_owned(),
                },
                json!({"seq": 1, "time_ms": 2, "type": "replica-added", "disk": "disk0", "replica": "a:1"}),
            ),
            (
                EventKind::ReplicaRebuilt {
                    disk: "disk0".to_owned(),
                    replica: "a:1".to_owned(),
                    took_ms: 5,
                },
                json!({"seq": 1, "time_ms": 2, "type": "replica-rebuilt", "disk": "disk0", "replica": "a:1", "took_ms": 5}),
            ),
            (
                EventKind::ReplicaFailed {
                    disk: "disk0".to_owned(),
                    replica: "a:1".to_owned(),
                    reason: "gone".to_owned(),
                    rebuilding: true,
                },
                json!({"seq": 1, "time_ms": 2, "type": "replica-failed", "disk": "disk0", "replica": "a:1", "reason": "gone", "rebuilding": true}),
            ),
            (
                EventKind::ReplicaReopened {
                    disk: "disk0".to_owned(),
                    replica: "a:1".to_owned(),
                },
                json!({"seq": 1, "time_ms": 2, "type": "replica-reopened", "disk": "disk0", "replica": "a:1"}),
            ),
            (
                EventKind::ReplicaRemoved {
                    disk: "disk0".to_owned(),
                    replica: "a:1".to_owned(),
                },
                json!({"seq": 1, "time_ms": 2, "type": "replica-removed", "disk": "disk0", "replica": "a:1"}),
            ),
            (
                EventKind::ComparisonStarted {
                    disk: "disk0".to_owned(),
                },
                json!({"seq": 1, "time_ms": 2, "type": "comparison-started", "disk": "disk0"}),
            ),
            (
                EventKind::ComparisonDone {
                    disk: "disk0".to_owned(),
                    took_ms: 5,
                },
                json!({"seq": 1, "time_ms": 2, "type": "comparison-done", "disk": "disk0", "took_ms": 5}),
            ),
            (
                EventKind::RecordFailed {
                    disk: "disk0".to_owned(),
                    error: "full".to_owned(),
                },
                json!({"seq": 1, "time_ms": 2, "type": "record-failed", "disk": "disk0", "error": "full"}),
            ),
            (
                EventKind::RecordRecovered {
                    disk: "disk0".to_owned(),
                    after_ms: 5,
                },
                json!({"seq": 1, "time_ms": 2, "type": "record-recovered", "disk": "disk0", "after_ms": 5}),
            ),
            (
                EventKind::SnapshotTaken {
                    disk: "disk0".to_owned(),
                    snapshot: "s".to_owned(),
                    frozen_us: 5,
                },
                json!({"seq": 1, "time_ms": 2, "type": "snapshot-taken", "disk": "disk0", "snapshot": "s", "frozen_us": 5}),
            ),
            (
                EventKind::Ended { end },
                json!({"seq": 1, "time_ms": 2, "type": "ended", "end": {"reason": "powered-off"}}),
            ),
            (
                EventKind::Deleted,
                json!({"seq": 1, "time_ms": 2, "type": "deleted"}),
            ),
        ] {
            assert_eq!(expected["type"], kind.name());
            let event = Event {
                seq: 1,
                time_ms: 2,
                kind,
            };
            assert_eq!(json!(event), expected);
            assert_eq!(serde_json::from_value::<Event>(expected).unwrap(), event);
        }
    }

    #[test]
    fn states_are_shown_as_in_json() {
        for state in VmState::ALL {
            assert_eq!(json!(state), json!(state.to_string()));
        }
    }
}
