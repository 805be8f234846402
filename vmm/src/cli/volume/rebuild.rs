//! `paddock volume rebuild`.

use std::time::Duration;

use paddock_storage::longhorn::{Found, Mode, ReplicaAddress, Standing, Volume};
use serde_json::json;

use super::args::RebuildArgs;
use super::open::{Stage, attend, describe, open, survey_unused};
use super::{Session, VolumeFailure};
use crate::cli::ctl::render;

/// Gives those what they lack that lack something.
pub fn rebuild(session: &Session, args: &RebuildArgs) -> Result<(), VolumeFailure> {
    let mut options = args.which.options();
    for address in &args.anew {
        if !options.replicas.contains(address) {
            return Err(VolumeFailure::Usage(format!(
                "--anew {address}: it is not one of the volume's replicas; name it with --replica, too"
            )));
        }
    }
    let found = survey_unused(&options)?;
    ensure_source(&found, &args.anew)?;
    let is_lost = |found: &&Found| !has_all(found) || args.anew.contains(&found.address);
    let lost = found.iter().filter(is_lost);
    let mut lost: Vec<_> = lost.map(|found| found.address.clone()).collect();
    options.replicas.retain(|replica| !lost.contains(replica));

    let volume = open(session, options)?;
    let replicas = volume.replicas().into_iter();
    let failed = replicas.filter(|replica| replica.mode == Mode::Failed);
    let failed: Vec<ReplicaAddress> = failed.map(|replica| replica.address).collect();
    lost.extend(failed.iter().cloned());
    let mut rebuilt = Vec::new();
    let mut problems = Vec::new();
    for address in lost {
        if let Some(gone) = unreachable(&found, &address) {
            problems.push(describe(gone));
            continue;
        }
        if session.interrupt.is_wanted() {
            problems.push(format!("replica {address}: it is not rebuilt: interrupted"));
            continue;
        }
        match add(session, &volume, &address, failed.contains(&address)) {
            Ok(took) => rebuilt.push((address, took)),
            Err(error) => problems.push(super::told(&error)),
        }
    }
    volume.close()?;
    print(session, args, &rebuilt)?;
    match problems.is_empty() {
        true => Ok(()),
        false => Err(VolumeFailure::Found(problems.join("\n"))),
    }
}

fn unreachable<'a>(found: &'a [Found], address: &ReplicaAddress) -> Option<&'a Found> {
    let mut gone = found
        .iter()
        .filter(|f| matches!(f.standing, Standing::Unreachable | Standing::Broken));
    gone.find(|found| found.address == *address)
}

/// Whether it has everything, as far as is known.
fn has_all(found: &Found) -> bool {
    matches!(found.standing, Standing::Complete | Standing::Unclean)
}

/// There has to be one that has everything: an engine that is given an incomplete one alone takes that.
fn ensure_source(found: &[Found], anew: &[ReplicaAddress]) -> Result<(), VolumeFailure> {
    let is_source = |found: &Found| has_all(found) && !anew.contains(&found.address);
    if found.iter().any(is_source) {
        return Ok(());
    }
    let lines: Vec<String> = found.iter().map(describe).collect();
    Err(VolumeFailure::Found(format!(
        "no replica is left that has everything, and could be rebuilt from\n{}",
        lines.join("\n")
    )))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn found(address: &str, standing: Standing) -> Found {
        Found {
            address: address.parse().unwrap(),
            standing,
            problem: Some("it misses something".to_owned()),
            size: None,
            inside: None,
        }
    }

    #[test]
    fn what_is_rebuilt_from_has_everything() {
        let a = found("a:1", Standing::Complete);
        for standing in [
            Standing::Incomplete,
            Standing::Stale,
            Standing::Empty,
            Standing::Broken,
            Standing::Unreachable,
        ] {
            let set = [a.clone(), found("b:1", standing)];
            assert!(ensure_source(&set, &[]).is_ok(), "{standing:?}");
            let error = ensure_source(&set, std::slice::from_ref(&a.address));
            let error = error.unwrap_err().to_string();
            assert!(error.contains("no replica is left"), "{error}");
        }
        let set = [a.clone(), found("b:1", Standing::Unclean)];
        assert!(ensure_source(&set, &[a.address]).is_ok());
    }
}
