//! `paddock volume rebuild`.

use std::time::Duration;

use paddock_storage::longhorn::{
    Found, Mode, Offline, ReplicaAddress, ReplicaStatus, Standing, Volume, VolumeOptions,
};
use serde_json::json;

use super::args::RebuildArgs;
use super::open::{Stage, attend, describe, failed, give_back, open, survey_unused};
use super::plan::Plan;
use super::{Session, VolumeFailure};
use crate::cli::ctl::render;

/// Gives those what they lack that lack something.
pub fn rebuild(session: &Session, args: &RebuildArgs) -> Result<(), VolumeFailure> {
    let options = args.which.options();
    for address in &args.anew {
        if !options.replicas.contains(address) {
            return Err(VolumeFailure::Usage(format!(
                "--anew {address}: it is not one of the volume's replicas; name it with --replica, too"
            )));
        }
    }
    let found = survey_unused(&options)?;
    let plan = Plan::new(&found, &args.anew)?;
    let sources = plan.sources().iter().map(|found| found.address.clone());
    let sources = VolumeOptions {
        replicas: sources.collect(),
        ..options.clone()
    };
    let volume = open(session, sources)?;
    let left: Vec<ReplicaAddress> = failed(&volume).map(|(address, _)| address).collect();
    let plan = match plan.without(&left) {
        Ok(plan) => plan,
        Err(refusal) => return Err(give_up(volume, &found, refusal)),
    };
    let mut rebuilt = Vec::new();
    let mut problems = Problems::default();
    for found in plan.lost() {
        let address = &found.address;
        if matches!(found.standing, Standing::Unreachable | Standing::Broken) {
            problems.add(address, describe(found));
        } else if session.interrupt.is_wanted() {
            let problem = format!("replica {address}: it is not rebuilt: interrupted");
            problems.add(address, problem);
        } else {
            match add(session, &volume, address, left.contains(address)) {
                Ok(took) => rebuilt.push((address.clone(), took)),
                Err(error) => problems.add(address, super::told(&error)),
            }
        }
    }
    for (address, reason) in failed(&volume) {
        problems.add(&address, reason);
    }
    let given_back = give_back(&volume);
    volume.close()?;
    given_back?;
    // One may have ended just now, with nothing left to notice it by.
    for found in Offline::new(options)?.survey()? {
        if found.standing != Standing::Complete {
            problems.add(&found.address, describe(&found));
        }
    }
    print(session, args, &rebuilt)?;
    problems.told()
}

/// What is told of replicas: of each the first.
#[derive(Debug, Default)]
struct Problems(Vec<(ReplicaAddress, String)>);

impl Problems {
    fn add(&mut self, address: &ReplicaAddress, problem: String) {
        if !self.0.iter().any(|(known, _)| known == address) {
            self.0.push((address.clone(), problem));
        }
    }

    fn told(self) -> Result<(), VolumeFailure> {
        let lines: Vec<String> = self.0.into_iter().map(|(_, problem)| problem).collect();
        match lines.is_empty() {
            true => Ok(()),
            false => Err(VolumeFailure::Found(lines.join("\n"))),
        }
    }
}

/// Lets go of the replicas, of which none was overwritten, and has them found as they were. Closed, one that was not would look as if it had been.
fn give_up(volume: Volume, found: &[Found], refusal: VolumeFailure) -> VolumeFailure {
    let standing = |address: &ReplicaAddress| {
        let mut found = found.iter().filter(|found| found.address == *address);
        found.next().map(|found| found.standing)
    };
    let replicas = volume.replicas().into_iter();
    let (used, left): (Vec<_>, Vec<_>) = replicas.partition(|r| r.mode != Mode::Failed);
    let was_closed = |r: &ReplicaStatus| standing(&r.address) == Some(Standing::Complete);
    let mut open = left;
    open.retain(|replica| standing(&replica.address) == Some(Standing::Unclean));
    if used.iter().any(was_closed) {
        if let Err(error) = volume.close() {
            return error.into();
        }
    } else {
        drop(volume);
        open.extend(used);
    }
    if open.is_empty() {
        return refusal;
    }
    let open: Vec<String> = open.iter().map(|r| r.address.to_string()).collect();
    VolumeFailure::Found(format!(
        "{refusal}\n  nothing was rebuilt; {}: not closed, as before; start the process anew",
        open.join(", ")
    ))
}

/// Rebuilds one. Returns how long it took.
fn add(
    session: &Session,
    volume: &Volume,
    address: &ReplicaAddress,
    failed: bool,
) -> Result<Duration, VolumeFailure> {
    if failed {
        volume.remove_replica(address)?;
    }
    let mut stage = Stage::start(format!("rebuilding replica {address}"));
    let mut is_closed = false;
    let rebuilt = attend(
        || volume.add_replica(address.clone()),
        || {
            if session.interrupt.is_wanted() && !is_closed {
                // Ends the rebuild. It does not fail.
                let _ = volume.close();
                is_closed = true;
            }
            let percent = volume.progress().map_or(0, |progress| progress.percent);
            stage.tell(percent.into(), 100);
        },
    );
    Ok(rebuilt?.took)
}

fn print(
    session: &Session,
    args: &RebuildArgs,
    rebuilt: &[(ReplicaAddress, Duration)],
) -> Result<(), VolumeFailure> {
    let told = json!({
        "volume": args.which.name.as_str(),
        "rebuilt": rebuilt.iter().map(|(address, took)| json!({
            "address": address.to_string(),
            "seconds": took.as_secs_f64(),
        })).collect::<Vec<_>>(),
    });
    session.print(&told, |page| {
        if rebuilt.is_empty() {
            page.sentence("nothing was rebuilt");
        }
        for (address, took) in rebuilt {
            let took = render::duration(*took);
            page.sentence(&format!("replica {address} is rebuilt, in {took}"));
        }
    })
}
