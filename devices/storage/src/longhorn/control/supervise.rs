//! Watching over replicas: who does not answer is left. And telling the volume's owner who was.
//!
//! Longhorn's rule for requests: a replica that is silent for the timeout while it is asked for something is left, as long as another is there to go on
//! with; the last one has twice as long. Silence is looked at connection by connection, so that one live connection does not keep a stuck one
//! alive. Neither do answers to other requests keep a stuck one alive for ever: that one has four times as long. Pings find those that die while nobody asks.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::client::DataClient;
use super::{Control, closing, resync};
use crate::longhorn::error::VolumeError;
use crate::longhorn::member::{Failure, Member, Mode};
use crate::longhorn::shared::Event;

/// How often silence is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// So long after the last look, this process has stood still: it was stopped, or its host was.
const LATE: Duration = Duration::from_secs(3);

/// How often a replica is pinged.
const PING: Duration = Duration::from_secs(2);

/// How long until a record that could not be made is made again.
const RECORD_AGAIN: Duration = Duration::from_secs(1);

/// Starts it all. It ends with the volume.
pub(super) fn start(control: &Arc<Control>, events: UnboundedReceiver<Event>) {
    tokio::spawn(listen(Arc::downgrade(control), events));
    tokio::spawn(look(Arc::downgrade(control)));
    tokio::spawn(resync::mend(Arc::downgrade(control)));
    for member in control.shared.members() {
        watch(control, &member);
    }
}

/// Pings a replica from now on.
pub(super) fn watch(control: &Arc<Control>, member: &Arc<Member>) {
    if member.mode() != Mode::Failed {
        tokio::spawn(ping_for_ever(
            Arc::downgrade(control),
            Arc::downgrade(member),
        ));
    }
}

/// Tells the owner who has failed, and who is back, and records it.
async fn listen(control: Weak<Control>, mut events: UnboundedReceiver<Event>) {
    while events.recv().await.is_some() {
        let mut changes = 1;
        loop {
            while events.try_recv().is_ok() {
                changes += 1;
            }
            let Some(control) = control.upgrade() else {
                return;
            };
            control.tell_listener();
            if control.record_changes(changes) {
                break;
            }
            drop(control);
            sleep(RECORD_AGAIN).await;
        }
    }
}

/// Leaves replicas that are silent for too long.
async fn look(control: Weak<Control>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        ticks.tick().await;
        let since = std::mem::replace(&mut last, Instant::now()).elapsed();
        if since > LATE {
            // What came meanwhile, queues read in the time until the next look.
            tracing::warn!(
                ?since,
                "this process stood still; replicas are not judged by that"
            );
            continue;
        }
        let Some(control) = control.upgrade() else {
            return;
        };
        control.look_for_silence();
    }
}

impl Control {
    /// Tells the owner which replicas there are and what they are good for.
    pub(super) fn tell_listener(&self) {
        self.listener.replicas(&self.replicas());
    }

    /// Records which replicas have everything, after so many changes. Whether it is recorded.
    fn record_changes(&self, changes: u32) -> bool {
        let Some(record) = &self.record else {
            return true;
        };
        let written = record.write(&self.complete_replicas());
        let is_written = written.is_ok();
        self.set_record_failure(written.err());
        if is_written {
            self.shared.recorded(changes);
        }
        is_written
    }

    /// Why and since when the record lacks that a replica has failed.
    pub(crate) fn record_failure(&self) -> Option<Failure> {
        self.record_failure.lock().clone()
    }

    fn set_record_failure(&self, error: Option<VolumeError>) {
        let volume = &self.options.name;
        let before = self.record_failure();
        let now = error.map(|error| Failure {
            reason: error.to_string(),
            at: before
                .as_ref()
                .map_or_else(SystemTime::now, |known| known.at),
        });
        self.record_failure.lock().clone_from(&now);
        match (before, &now) {
            (None, Some(failure)) => {
                tracing::error!(%volume, error = failure.reason,
                    "the failure of a replica cannot be recorded; writes are not acknowledged until it is");
            }
            (Some(_), None) => {
                tracing::info!(%volume, "the failure of a replica is recorded after all");
            }
            _ => return,
        }
        self.listener.record(now.as_ref());
    }

    /// Whether no other replica is there to go on with.
    fn is_last(&self, member: &Member) -> bool {
        let members = self.shared.members();
        let goes_on = |other: &Arc<Member>| other.id != member.id && other.is_complete();
        !members.iter().any(goes_on)
    }

    /// How long a replica may be silent.
    pub(super) fn patience(&self, member: &Member) -> Duration {
        match self.is_last(member) {
            true => self.options.timeout * 2,
            false => self.options.timeout,
        }
    }

    fn look_for_silence(&self) {
        let now = self.shared.now();
        for member in self.shared.members() {
            if member.mode() == Mode::Failed {
                continue;
            }
            let patience = self.patience(&member);
            let patience = match self.closing.is_overdue() {
                true => patience.min(closing::PATIENCE),
                false => patience,
            };
            if let Some(reason) = member.silence(now, patience) {
                self.shared.fail(&member, &reason);
            }
        }
    }
}

/// Pings a replica until it fails or is gone.
async fn ping_for_ever(control: Weak<Control>, member: Weak<Member>) {
    let mut client = None;
    loop {
        sleep(PING).await;
        let (Some(control), Some(member)) = (control.upgrade(), member.upgrade()) else {
            return;
        };
        if member.mode() == Mode::Failed || control.is_ending() {
            return;
        }
        let patience = control.patience(&member);
        let Err(reason) = ping(&member, &mut client, patience).await else {
            continue;
        };
        client = None;
        if control.is_closed() {
            // What was closed meanwhile says so.
            return;
        }
        // The last replica is only given up when somebody asks it for something in vain. Which may be this one by now: others may have hung as long.
        if !control.is_last(&member) {
            let reason = format!("it does not answer pings: {reason}");
            control.shared.fail(&member, &reason);
        }
    }
}

/// Pings a replica once, on a connection that is kept.
async fn ping(
    member: &Member,
    kept: &mut Option<DataClient>,
    patience: Duration,
) -> Result<(), String> {
    let client = match kept {
        Some(client) => client,
        None => {
            let address = member
                .address
                .parse()
                .map_err(|error: VolumeError| error.to_string())?;
            kept.insert(DataClient::connect(&address, patience).await?)
        }
    };
    client.ping(patience).await
}
