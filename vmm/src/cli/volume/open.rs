//! Opening a volume for a command, and what takes long with it.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use paddock_api::jobs::JobProgress;
use paddock_storage::longhorn::{
    Found, Nobody, Offline, ReplicaAddress, Standing, Volume, VolumeOptions,
};

use super::{Session, VolumeFailure};
use crate::cli::ctl::progress::{Counted, Progress};
use crate::cli::ctl::render;

/// How often it is told how far something is.
const TICK: Duration = Duration::from_millis(50);

/// How long replicas that were not closed may not be compared further.
const STUCK: Duration = Duration::from_secs(120);

/// Does something on a thread of its own, and `tell`s meanwhile how far it is.
pub fn attend<T: Send>(work: impl FnOnce() -> T + Send, mut tell: impl FnMut()) -> T {
    thread::scope(|scope| {
        let worker = scope.spawn(work);
        while !worker.is_finished() {
            tell();
            thread::sleep(TICK);
        }
        worker.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Something that is done, on standard error.
pub struct Stage {
    progress: Progress,
    title: String,
    since: Instant,
}

impl Stage {
    /// Begins.
    pub fn start(title: impl Into<String>) -> Self {
        Self {
            progress: Progress::start(),
            title: title.into(),
            since: Instant::now(),
        }
    }

    /// It is so far; of nothing while that is not known.
    pub fn tell(&mut self, done: u64, total: u64) {
        let time = render::duration(self.since.elapsed());
        let progress = JobProgress { done, total };
        let counted = (total > 0).then_some(Counted {
            progress,
            bytes: false,
        });
        self.progress.tell(&self.title, &time, counted);
    }
}

/// What the replicas have, of which none may be in use.
pub fn survey_unused(options: &VolumeOptions) -> Result<Vec<Found>, VolumeFailure> {
    let found = Offline::new(options.clone())?.survey()?;
    let used = found.iter().filter(|f| f.standing == Standing::InUse);
    let used: Vec<String> = used.map(describe).collect();
    match used.is_empty() {
        true => Ok(found),
        false => Err(VolumeFailure::Found(used.join("\n"))),
    }
}

/// A replica and what is the matter with it, in a line.
pub fn describe(found: &Found) -> String {
    let problem = found.problem.as_deref().unwrap_or("it is complete");
    let address = found.address.to_string();
    // An engine's reasons begin with the replica.
    match problem.strip_prefix(&format!("replica {address} ")) {
        Some(rest) => format!("replica {address} {rest}"),
        None => format!("replica {address}: {problem}"),
    }
}

/// Opens a volume, and waits until its replicas are known to have the same.
pub fn open(session: &Session, options: VolumeOptions) -> Result<Volume, VolumeFailure> {
    session.ensure_wanted()?;
    let volume = Volume::open(options, Arc::new(Nobody))?;
    let mut stage = Stage::start("comparing the replicas, which were not closed");
    let mut last = (0, Instant::now());
    while !volume.is_compared() {
        let percent = volume.progress().map_or(0, |progress| progress.percent);
        if percent != last.0 {
            last = (percent, Instant::now());
        }
        if session.interrupt.is_wanted() || last.1.elapsed() > STUCK {
            volume.close()?;
            let problem = format!(
                "volume {}: its replicas are not compared to the end; start their processes anew, and begin again",
                volume.name()
            );
            return Err(VolumeFailure::Found(problem));
        }
        stage.tell(percent.into(), 100);
        thread::sleep(TICK);
    }
    if let Err(unwanted) = session.ensure_wanted() {
        close(&volume)?;
        return Err(unwanted);
    }
    Ok(volume)
}

/// The replicas that an engine has left, with the reason.
pub fn failed(volume: &Volume) -> impl Iterator<Item = (ReplicaAddress, String)> {
    volume.replicas().into_iter().filter_map(|replica| {
        let reason = replica.failure?.reason;
        let address = replica.address;
        let reason = match reason.starts_with(&format!("replica {address}")) {
            true => reason,
            false => format!("replica {address}: {reason}"),
        };
        Some((address, reason))
    })
}

/// Closes those that failed, or were left, and are still open, as ones that are to be rebuilt. An engine leaves them open; then nobody could rebuild them
/// until their processes were started anew.
pub fn give_back(volume: &Volume) -> Result<(), VolumeFailure> {
    let left: Vec<ReplicaAddress> = failed(volume).map(|(address, _)| address).collect();
    if left.is_empty() {
        return Ok(());
    }
    let options = VolumeOptions::new(volume.name(), left);
    for found in Offline::new(options)?.survey()? {
        // None was before the volume was opened.
        if found.standing == Standing::InUse {
            volume.remove_replica(&found.address)?;
        }
    }
    Ok(())
}

/// Closes a volume; its replicas that failed are the error.
pub fn close(volume: &Volume) -> Result<(), VolumeFailure> {
    let failed: Vec<String> = failed(volume).map(|(_, reason)| reason).collect();
    let given_back = give_back(volume);
    volume.close()?;
    given_back?;
    match failed.is_empty() {
        true => Ok(()),
        false => Err(VolumeFailure::Found(format!(
            "{}\n  it is done on the others; then rebuild these: paddock volume rebuild {} --replica …",
            failed.join("\n"),
            volume.name()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_told_until_it_is_done() {
        let mut told = 0;
        let result = attend(
            || {
                thread::sleep(3 * TICK);
                7
            },
            || told += 1,
        );
        assert_eq!(result, 7);
        assert!(told > 1, "{told}");
    }

    #[test]
    fn a_replica_is_named_once() {
        let found = |problem: &str| Found {
            address: "a:1".parse().unwrap(),
            standing: Standing::Stale,
            problem: Some(problem.to_owned()),
            size: None,
            inside: None,
        };
        for problem in ["replica a:1 has seen 1 writes", "it has no files"] {
            let line = describe(&found(problem));
            assert_eq!(line.matches("a:1").count(), 1, "{line}");
        }
    }
}
