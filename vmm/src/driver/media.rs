//! Changing the media of the CD-ROM drives, for the driver, and the requests to do so.
//!
//! ```text
//! insert:  opening (blocking thread) ──▶ exchanged ──▶ answered
//!                     │
//!                     └ failure, deadline, nobody waits any more ──▶ refused, and the old one stays
//! eject:   exchanged ──▶ answered
//! ```
//!
//! Polled by the driver between its other work; nothing here blocks. A drive outlives the machine, so that what a reset overtakes is
//! done all the same. What the end of the VM overtakes is refused by it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use paddock_api::journal::Journal;
use paddock_api::resource::{EventKind, VmState};
use paddock_api::service::Refusal;
use paddock_devices::virtio::scsi::{CdromError, Medium};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::handle::Status;
use super::opening::Opening;
use super::release::Held;
use crate::cdrom::{Cdrom, Cdroms, open_medium};
use crate::error::chain;

/// How long the host may take to open a medium.
const OPENING_DEADLINE: Duration = Duration::from_secs(20);
/// Media that are being opened, or wait for it.
const MAX_OPENING: usize = 8;

/// A change that is asked for.
#[derive(Debug)]
pub struct Change {
    drive: Cdrom,
    /// Of the medium to insert; none to eject the one that is there.
    path: Option<PathBuf>,
    force: bool,
    answer: oneshot::Sender<Result<(), Refusal>>,
}

/// The way to a VM's media.
#[derive(Debug, Clone)]
pub struct MediaChanges {
    pub(super) drives: Cdroms,
    pub(super) status: watch::Receiver<Status>,
    pub(super) to_driver: mpsc::Sender<Change>,
}

impl MediaChanges {
    /// The drives.
    #[must_use]
    pub fn drives(&self) -> &Cdroms {
        &self.drives
    }

    /// Asks for another medium in the drive of this id, or for none. The future gives the drive when it is done; dropped before, it may
    /// be done or not.
    ///
    /// # Errors
    /// When there is no such drive, or it is not possible now. Later: when the medium cannot be had, or the guest has locked the old one
    /// in and it is not taken by `force`.
    pub fn change(
        &self,
        id: &str,
        path: Option<PathBuf>,
        force: bool,
    ) -> Result<impl Future<Output = Result<Cdrom, Refusal>> + Send + use<>, Refusal> {
        let state = self.status.borrow().state;
        if !matches!(state, VmState::Running | VmState::Paused) {
            return Err(Refusal::MediumNotNow { state });
        }
        let found = self.drives.find(id).cloned();
        let drive = found.ok_or_else(|| Refusal::NoCdrom { id: id.to_owned() })?;
        let (answer, answered) = oneshot::channel();
        let change = Change {
            drive: drive.clone(),
            path,
            force,
            answer,
        };
        self.to_driver
            .try_send(change)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Refusal::Busy,
                mpsc::error::TrySendError::Closed(_) => ended(),
            })?;
        let mut status = self.status.clone();
        Ok(async move {
            let is_over =
                |status: &Status| matches!(status.state, VmState::Stopping | VmState::Ended);
            tokio::select! {
                biased;
                answer = answered => answer.unwrap_or_else(|_| Err(ended()))?,
                // The driver does nothing else any more. Fails if it is gone.
                over = status.wait_for(is_over) => {
                    let state = over.map_or(VmState::Ended, |status| status.state);
                    return Err(Refusal::MediumNotNow { state });
                }
            }
            Ok(drive)
        })
    }
}

fn locked(error: &CdromError) -> Refusal {
    Refusal::TrayLocked(error.to_string())
}

fn ended() -> Refusal {
    let state = VmState::Ended;
    Refusal::MediumNotNow { state }
}

/// A change whose medium is there, if it needs one; see [`Media::next`].
#[derive(Debug)]
pub struct Next {
    change: Change,
    medium: Result<Option<Medium>, Refusal>,
}

/// The changes under way.
#[derive(Debug)]
pub struct Media {
    requests: mpsc::Receiver<Change>,
    opening: JoinSet<Next>,
    journal: Arc<Journal>,
    threads: Opening,
    held: Held,
}

impl Media {
    /// For the changes that come this way, which are told to the journal.
    pub fn new(
        requests: mpsc::Receiver<Change>,
        journal: Arc<Journal>,
        threads: Opening,
        held: Held,
    ) -> Self {
        Self {
            requests,
            opening: JoinSet::new(),
            journal,
            threads,
            held,
        }
    }

    /// Waits for the next change to [`apply`](Self::apply). Nothing is lost when the wait is given up.
    pub async fn next(&mut self) -> Next {
        loop {
            tokio::select! {
                Some(change) = self.requests.recv() => match &change.path {
                    Some(_) => self.open(change),
                    None => return Next { change, medium: Ok(None) },
                },
                // One that panicked has dropped its change, which is refused thereby.
                Some(opened) = self.opening.join_next() => if let Ok(next) = opened {
                    return next;
                },
                else => std::future::pending().await,
            }
        }
    }

    fn open(&mut self, change: Change) {
        if self.opening.len() >= MAX_OPENING {
            // Nobody may wait any more.
            let _ = change.answer.send(Err(Refusal::Busy));
            return;
        }
        if !change.force {
            // Before it is opened: a descriptor that was passed in can be had only once.
            if let Err(error) = change.drive.handle().ask_to_eject() {
                let _ = change.answer.send(Err(locked(&error)));
                return;
            }
        }
        let path = change.path.clone().unwrap_or_default();
        let threads = self.threads.clone();
        self.opening.spawn(async move {
            let opening = threads.run(move || open_medium("/path", &path));
            let medium = match tokio::time::timeout(OPENING_DEADLINE, opening).await {
                Ok(opened) => opened.map(Some).map_err(|error| {
                    let cause = error.at_pointer().unwrap_or(&error);
                    Refusal::NoMedium(chain(cause))
                }),
                Err(_) => Err(Refusal::NoMedium(format!(
                    "the host has not opened it within {OPENING_DEADLINE:?}"
                ))),
            };
            Next { change, medium }
        });
    }

    /// Makes the change, unless nobody waits for it any more, and answers.
    pub fn apply(&self, next: Next) {
        let Next { change, medium } = next;
        if change.answer.is_closed() {
            return self.close(medium.ok().flatten());
        }
        let result = medium.and_then(|medium| self.exchange(&change, medium));
        // Who has just gone sees it all the same.
        let _ = change.answer.send(result);
    }

    fn exchange(&self, change: &Change, medium: Option<Medium>) -> Result<(), Refusal> {
        let Change { drive, path, .. } = change;
        let handle = drive.handle();
        let exchanged = match medium.clone() {
            Some(medium) => handle.insert(medium, change.force),
            None => handle.eject(change.force),
        };
        match exchanged {
            Ok(old) => {
                let (cdrom, path) = (drive.id().to_owned(), path.clone());
                if old.is_some() || path.is_some() {
                    tracing::info!(cdrom, ?path, "medium changed");
                    self.journal.publish(EventKind::Medium { cdrom, path });
                }
                self.close(old);
                Ok(())
            }
            Err(error) => {
                self.close(medium);
                Err(locked(&error))
            }
        }
    }

    /// Closes what is in no tray, which may block.
    fn close(&self, medium: Option<Medium>) {
        if let Some(medium) = medium {
            let held = self.held.clone();
            tokio::task::spawn_blocking(move || {
                drop(medium);
                drop(held);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use paddock_api::journal::Delivery;
    use paddock_api::spec::VmSpec;
    use tempfile::TempDir;

    use super::super::release::Released;
    use super::*;

    struct Setup {
        changes: MediaChanges,
        media: Media,
        status: watch::Sender<Status>,
        journal: Arc<Journal>,
        released: Released,
        directory: TempDir,
    }

    impl Setup {
        fn new() -> Self {
            let spec = r#"{"boot": {"kernel": "k"}, "cdroms": [{}]}"#;
            let (status, watch) = watch::channel(Status {
                state: VmState::Running,
                end: None,
            });
            let (to_driver, requests) = mpsc::channel(2);
            let (held, released) = Held::new();
            let journal = Arc::<Journal>::default();
            Self {
                changes: MediaChanges {
                    drives: Cdroms::new(&VmSpec::from_json(spec).unwrap()),
                    status: watch,
                    to_driver,
                },
                media: Media::new(
                    requests,
                    Arc::clone(&journal),
                    Opening::new(held.clone()),
                    held,
                ),
                status,
                journal,
                released,
                directory: tempfile::tempdir().unwrap(),
            }
        }

        fn image(&self, name: &str) -> PathBuf {
            let path = self.directory.path().join(name);
            std::fs::write(&path, [1; 2048]).unwrap();
            path
        }

        fn is_now(&self, state: VmState) {
            self.status.send_modify(|status| status.state = state);
        }

        /// The medium in the tray.
        fn present(&self) -> Option<PathBuf> {
            let drive = self.changes.drives().find("cdrom0").unwrap();
            drive.handle().status().medium.map(PathBuf::from)
        }

        /// Asks for a change and makes it, as the driver does.
        async fn change(&mut self, path: Option<&Path>) -> Result<(), Refusal> {
            let path = path.map(Path::to_owned);
            let asked = self.changes.change("cdrom0", path, false)?;
            let next = self.media.next().await;
            self.media.apply(next);
            asked.await.map(|drive| assert_eq!(drive.id(), "cdrom0"))
        }
    }

    #[tokio::test]
    async fn media_come_and_go_and_are_told() {
        let mut setup = Setup::new();
        let mut follower = setup.journal.follow(Some(0));
        let [a, b] = ["a.iso", "b.iso"].map(|name| setup.image(name));
        assert_eq!(setup.change(None).await, Ok(()), "it is empty already");
        for path in [&a, &b] {
            assert_eq!(setup.change(Some(path)).await, Ok(()));
            assert_eq!(setup.present().as_ref(), Some(path));
        }
        let absent = setup.directory.path().join("absent.iso");
        let Err(Refusal::NoMedium(detail)) = setup.change(Some(&absent)).await else {
            panic!("there is no such file");
        };
        assert!(
            detail.contains("absent.iso") && !detail.contains("/path"),
            "{detail}"
        );
        assert_eq!(setup.present(), Some(b.clone()));
        setup.is_now(VmState::Paused);
        assert_eq!((setup.change(None).await, setup.present()), (Ok(()), None));
        for expected in [Some(a), Some(b), None] {
            let Some(Delivery::Event(event)) = follower.next().await else {
                panic!("no event");
            };
            let cdrom = "cdrom0".to_owned();
            let path = expected;
            assert_eq!(event.kind, EventKind::Medium { cdrom, path });
        }
        assert_eq!(setup.journal.last(), 3);
    }

    #[tokio::test]
    async fn what_is_not_possible_is_refused_when_it_is_asked_for() {
        let setup = Setup::new();
        let ask = |id: &str| setup.changes.change(id, None, true).map(|_| ());
        let id = "cdrom1".to_owned();
        assert_eq!(ask("cdrom1"), Err(Refusal::NoCdrom { id }));
        assert_eq!((ask("cdrom0"), ask("cdrom0")), (Ok(()), Ok(())));
        assert_eq!(ask("cdrom0"), Err(Refusal::Busy));
        for state in [VmState::Starting, VmState::Resetting, VmState::Ended] {
            setup.is_now(state);
            assert_eq!(ask("cdrom0"), Err(Refusal::MediumNotNow { state }));
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_a_driver_that_has_ended() {
        let mut setup = Setup::new();
        let image = setup.image("a.iso");
        let asked = || {
            let asked = setup.changes.change("cdrom0", Some(image.clone()), false);
            asked.unwrap()
        };
        let (stopping, dropped) = (asked(), asked());
        setup.is_now(VmState::Stopping);
        let state = VmState::Stopping;
        let refused = stopping.await.unwrap_err();
        assert_eq!(refused, Refusal::MediumNotNow { state });
        setup.is_now(VmState::Running);
        // Whoever has gone gets nothing.
        let (mut next, mut other) = (setup.media.next().await, setup.media.next().await);
        // They are opened at once, and either may come first.
        if other.change.answer.is_closed() {
            std::mem::swap(&mut next, &mut other);
        }
        assert!(next.change.answer.is_closed() && !other.change.answer.is_closed());
        setup.media.apply(next);
        assert_eq!(setup.present(), None);
        drop((setup.media, other));
        assert_eq!(dropped.await.unwrap_err(), ended());
        setup.released.wait().await;
    }
}
