//! Adding and removing devices of the running machine, step by step, for the driver.
//!
//! ```text
//! add:     Opening (blocking thread) ──▶ machine.add ──▶ done
//! remove:  machine.want_back ──▶ WaitingForGuest ──▶ released ──▶ Closing (blocking thread) ──▶ done
//!                                       │
//!                                       └ deadline, cancel ──▶ machine.keep ──▶ failed, and it stays
//! ```
//!
//! Each change has a job, which it ends, whatever happens. Polled by the driver between its other work; nothing here blocks. A
//! removal that a reset overtakes is done by it: a guest that starts over holds nothing. Until the reset has taken the machine apart, which
//! takes as long as a dead disk does, the removal can still be given up: then the device is in the next machine again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use paddock_api::device::DeviceKind;
use paddock_api::jobs::{JobHandle, JobPhase};
use paddock_api::spec::VmSpec;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::inventory::{self, Inventory};
use super::opening::Opening;
use super::release::Held;
use crate::Error;
use crate::disks::Disks;
use crate::error::chain;
use crate::machine::Machine;
use crate::machine::devices::{DeviceKey, OpenDevice};
use crate::machine::resources::Resources;

/// How often a guest that has not looked is told again.
const REMINDER: Duration = Duration::from_secs(1);

/// A change of the VM's devices that was begun in the [`Inventory`].
#[derive(Debug)]
pub enum Change {
    /// Add the device that the spec has under this id.
    Add {
        /// What it is.
        kind: DeviceKind,
        /// Its id.
        id: String,
        /// What is told of it.
        job: JobHandle,
    },
    /// Remove it, unless the guest does not let go of it by the deadline.
    Remove {
        /// What it is.
        kind: DeviceKind,
        /// Its id.
        id: String,
        /// When to give up.
        deadline: Instant,
        /// What is told of it.
        job: JobHandle,
    },
}

/// Something of a change that is over.
#[derive(Debug)]
enum Step {
    Opened {
        id: String,
        job: JobHandle,
        /// `None` if it was cancelled.
        result: Option<Result<OpenDevice, Error>>,
    },
    GaveUp {
        /// Of the job.
        number: u64,
        cancelled: bool,
    },
    Closed {
        id: String,
        job: JobHandle,
        clean: bool,
    },
}

/// What comes next; see [`Plugging::next`].
#[derive(Debug)]
pub struct Next(Event);

#[derive(Debug)]
enum Event {
    Change(Change),
    Step(Box<Step>),
    Remind,
}

/// A removal that waits for the guest.
#[derive(Debug)]
struct Removal {
    key: DeviceKey,
    id: String,
    job: JobHandle,
}

/// The changes under way.
#[derive(Debug)]
pub struct Plugging {
    changes: mpsc::Receiver<Change>,
    inventory: Inventory,
    opening: Opening,
    disks: Disks,
    held: Held,
    steps: JoinSet<Step>,
    /// Devices that were opened while there was no machine to plug them into.
    waiting: VecDeque<Step>,
    removals: Vec<Removal>,
    /// Devices out of the machine whose backends may still touch guest RAM.
    closing: usize,
    next_reminder: Instant,
}

impl Plugging {
    /// For the VM of this inventory.
    pub fn new(
        inventory: Inventory,
        changes: mpsc::Receiver<Change>,
        opening: Opening,
        disks: Disks,
        held: Held,
    ) -> Self {
        Self {
            changes,
            inventory,
            opening,
            disks,
            held,
            steps: JoinSet::new(),
            waiting: VecDeque::new(),
            removals: Vec::new(),
            closing: 0,
            next_reminder: Instant::now(),
        }
    }

    /// Waits for the next thing to [`apply`](Self::apply). Nothing is lost when the wait is given up.
    pub async fn next(&mut self) -> Next {
        match self.waiting.pop_front() {
            Some(step) => Next(Event::Step(Box::new(step))),
            None => self.news().await,
        }
    }

    /// Waits for something that has not been seen yet, and likewise loses nothing.
    async fn news(&mut self) -> Next {
        loop {
            tokio::select! {
                Some(change) = self.changes.recv() => return Next(Event::Change(change)),
                Some(step) = self.steps.join_next() => {
                    // A step that panicked has dropped its job, which thereby failed.
                    if let Ok(step) = step {
                        return Next(Event::Step(Box::new(step)));
                    }
                }
                () = tokio::time::sleep_until(self.next_reminder), if !self.removals.is_empty() => {
                    self.next_reminder = Instant::now() + REMINDER;
                    return Next(Event::Remind);
                }
                else => std::future::pending().await,
            }
        }
    }

    /// Goes on with a change.
    pub fn apply(&mut self, next: Next, machine: &mut Machine) {
        match next.0 {
            Event::Change(Change::Add { kind, id, job }) => self.open(kind, id, job),
            Event::Change(Change::Remove {
                kind,
                id,
                deadline,
                job,
            }) => self.want_back(kind, id, deadline, job, machine),
            Event::Step(step) => self.step(*step, machine),
            Event::Remind => machine.remind(),
        }
    }

    /// Goes on with what the guest has let go of.
    pub fn released(&mut self, machine: &mut Machine) {
        for device in machine.take_released() {
            let key = device.key();
            match self.take_removal(|removal| removal.key == key) {
                Some(removal) => self.close(removal, move || device.close()),
                // Nobody waits for it; it is out all the same.
                None => drop(tokio::task::spawn_blocking(|| device.close())),
            }
        }
    }

    /// While there is no machine, waits for the next thing and goes on with it as far as it goes without one. Nothing is lost when the
    /// wait is given up.
    pub async fn advance_without_machine(&mut self) {
        match self.news().await.0 {
            Event::Change(Change::Add { kind, id, job }) => self.open(kind, id, job),
            // The guest is asked as soon as there is one, unless the device is gone by then.
            Event::Change(Change::Remove {
                kind,
                id,
                deadline,
                job,
            }) => self.watch(inventory::key(kind, &id), id, deadline, job),
            Event::Step(step) => match *step {
                Step::Opened { id, job, result } => self.opened_without_machine(id, job, result),
                Step::GaveUp { number, cancelled } => self.gave_up(number, cancelled, None),
                Step::Closed { id, job, clean } => self.closed(&id, job, clean),
            },
            Event::Remind => {}
        }
    }

    /// A reset has taken the machine apart: what was to be removed is not in the next one.
    pub fn reset(&mut self, resources: &mut Resources) {
        for removal in std::mem::take(&mut self.removals) {
            match resources.take(&removal.key) {
                Some(device) => self.close(removal, || device.close()),
                None => self.is_gone(removal),
            }
        }
    }

    /// Whether a device that is out of the machine may still touch guest RAM.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing > 0
    }

    /// There is a machine again: asks its guest for what is to be removed since the reset.
    pub fn resume(&mut self, machine: &Machine) {
        let removals = std::mem::take(&mut self.removals);
        for removal in removals {
            self.ask(removal, machine);
        }
    }

    fn open(&mut self, kind: DeviceKind, id: String, job: JobHandle) {
        let (spec, opening, name) = (self.inventory.spec(), self.opening.clone(), id.clone());
        let disks = self.disks.clone();
        self.steps.spawn(async move {
            let opening = opening.run(move || open(&spec, kind, &name, &disks));
            let result = tokio::select! {
                result = opening => Some(result),
                () = job.cancelled() => None,
            };
            Step::Opened { id, job, result }
        });
    }

    fn want_back(
        &mut self,
        kind: DeviceKind,
        id: String,
        deadline: Instant,
        job: JobHandle,
        machine: &Machine,
    ) {
        let key = inventory::key(kind, &id);
        self.watch(key, id, deadline, job);
        if let Some(removal) = self.removals.pop() {
            self.ask(removal, machine);
        }
    }

    /// Asks the guest to let go of a device.
    fn ask(&mut self, removal: Removal, machine: &Machine) {
        if machine.want_back(&removal.key) {
            tracing::info!(device = %removal.key, "guest is asked to let go");
            self.removals.push(removal);
        } else {
            self.is_gone(removal);
        }
    }

    fn is_gone(&self, removal: Removal) {
        self.inventory.forget(&removal.id);
        removal.job.fail("it is gone");
    }

    /// Notes a removal, and sees to it that it is given up at its deadline.
    fn watch(&mut self, key: DeviceKey, id: String, deadline: Instant, job: JobHandle) {
        let (number, cancelled) = (job.id(), job.cancelled());
        self.steps.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => Step::GaveUp { number, cancelled: false },
                () = cancelled => Step::GaveUp { number, cancelled: true },
            }
        });
        self.removals.push(Removal { key, id, job });
    }

    fn step(&mut self, step: Step, machine: &mut Machine) {
        match step {
            Step::Opened { id, job, result } => self.opened(&id, job, result, machine),
            Step::GaveUp { number, cancelled } => self.gave_up(number, cancelled, Some(machine)),
            Step::Closed { id, job, clean } => self.closed(&id, job, clean),
        }
    }

    fn opened(
        &self,
        id: &str,
        job: JobHandle,
        result: Option<Result<OpenDevice, Error>>,
        machine: &mut Machine,
    ) {
        let Some(result) = result else {
            return self.not_added(id, job, None);
        };
        let added = result.and_then(|device| {
            machine.add(device).map_err(|refused| {
                let (error, device) = *refused;
                self.dispose(device);
                error
            })
        });
        match added {
            Ok(()) => {
                tracing::info!(device = id, "plugged in");
                self.inventory.settle(id);
                job.succeed();
            }
            Err(error) => self.not_added(id, job, Some(&error)),
        }
    }

    /// Closes a device that was never the machine's, which may block.
    fn dispose(&self, device: OpenDevice) {
        let held = self.held.clone();
        tokio::task::spawn_blocking(move || {
            drop(device);
            drop(held);
        });
    }

    /// The VM has ended: closes what was opened and never plugged in.
    pub fn end(&mut self) {
        let mut steps = std::mem::take(&mut self.waiting);
        while let Some(step) = self.steps.try_join_next() {
            steps.extend(step);
        }
        for step in steps {
            if let Step::Opened {
                result: Some(Ok(device)),
                ..
            } = step
            {
                self.dispose(device);
            }
        }
    }

    fn opened_without_machine(
        &mut self,
        id: String,
        job: JobHandle,
        result: Option<Result<OpenDevice, Error>>,
    ) {
        match result {
            Some(Ok(device)) => {
                let result = Some(Ok(device));
                self.waiting.push_back(Step::Opened { id, job, result });
            }
            Some(Err(error)) => self.not_added(&id, job, Some(&error)),
            None => self.not_added(&id, job, None),
        }
    }

    /// A device is not added: without an error, it was cancelled.
    fn not_added(&self, id: &str, job: JobHandle, error: Option<&Error>) {
        self.inventory.forget(id);
        let Some(error) = error else {
            return job.cancel();
        };
        let failure = chain(error);
        tracing::warn!(device = id, failure, "not plugged in");
        job.fail(failure);
    }

    /// Keeps the device that a job was to remove. Where there is no machine, nobody can have let go of it.
    fn gave_up(&mut self, number: u64, cancelled: bool, machine: Option<&Machine>) {
        let is_it = |removal: &Removal| removal.job.id() == number;
        let pending = self.removals.iter().find(|removal| is_it(removal));
        // Over, or let go of at the last moment.
        let stays = |removal: &Removal| machine.is_none_or(|machine| machine.keep(&removal.key));
        if !pending.is_some_and(stays) {
            return;
        }
        let Some(removal) = self.take_removal(is_it) else {
            return;
        };
        self.inventory.settle(&removal.id);
        if cancelled {
            tracing::info!(device = %removal.key, "guest may keep it");
            removal.job.cancel();
        } else if machine.is_some() {
            tracing::warn!(device = %removal.key, "guest did not let go in time; it stays");
            removal.job.fail(
                "the guest did not let go of it by the deadline, so it stays; see in the guest what uses it, and try again",
            );
        } else {
            tracing::warn!(device = %removal.key, "the reset did not end in time; it stays");
            removal.job.fail(
                "the VM was still resetting at the deadline, so it stays; see which disk does not answer, and try again when the VM runs",
            );
        }
    }

    fn close(&mut self, removal: Removal, close: impl FnOnce() -> bool + Send + 'static) {
        let Removal { id, job, .. } = removal;
        job.advance(JobPhase::Closing, false);
        let held = self.held.clone();
        self.closing += 1;
        self.steps.spawn(async move {
            let closing = tokio::task::spawn_blocking(move || {
                let _held = held;
                close()
            });
            let clean = closing.await.unwrap_or(false);
            Step::Closed { id, job, clean }
        });
    }

    fn closed(&mut self, id: &str, job: JobHandle, clean: bool) {
        self.closing -= 1;
        self.inventory.forget(id);
        if clean {
            tracing::info!(device = id, "unplugged and closed");
            job.succeed();
        } else {
            tracing::error!(device = id, "unplugged, but something still holds it");
            job.fail("it is out of the VM, but the process still holds its file or tap");
        }
    }

    fn take_removal(&mut self, is_it: impl Fn(&Removal) -> bool) -> Option<Removal> {
        let index = self.removals.iter().position(is_it)?;
        Some(self.removals.swap_remove(index))
    }
}

/// Opens the device that the spec has under `id`.
fn open(
    spec: &Arc<VmSpec>,
    kind: DeviceKind,
    id: &str,
    disks: &Disks,
) -> Result<OpenDevice, Error> {
    let gone = || Error::part(id, std::io::Error::other("it is not in the spec any more"));
    match kind {
        DeviceKind::Disk => {
            let disk = spec.disks.iter().find(|disk| disk.id.as_str() == id);
            OpenDevice::disk(id, disk.ok_or_else(gone)?, disks)
        }
        DeviceKind::Nic => {
            let nic = spec.nics.iter().find(|nic| nic.id.as_str() == id);
            OpenDevice::nic(id, nic.ok_or_else(gone)?)
        }
    }
}

#[cfg(test)]
mod tests;
