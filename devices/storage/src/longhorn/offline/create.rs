//! Making a volume: all its replicas get their files, or, as far as that can be told before, none.

use crate::longhorn::control::peer::{Info, Peer};
use crate::longhorn::error::VolumeError;
use crate::longhorn::options::{ReplicaAddress, VolumeOptions};

fn refused(replica: &ReplicaAddress, problem: impl Into<String>) -> VolumeError {
    VolumeError::Refused {
        replica: replica.clone(),
        action: "making the volume",
        problem: problem.into(),
    }
}

/// Why a replica that is open, and was closed and clean, is not as good as new; `None` if it is.
fn content(info: &Info, size: u64) -> Option<String> {
    if info.size != size {
        let has = info.size;
        return Some(format!("it has a volume of {has} bytes already"));
    }
    let files = info.disks.len();
    if files > 1 || info.head_bytes != 0 || !info.backing_file.is_empty() {
        return Some("it has a volume with data already".to_owned());
    }
    None
}

/// Opens a replica, looks at it, and closes it again.
pub(super) async fn look_inside(peer: &Peer, size: u64) -> Result<Info, VolumeError> {
    peer.open(size).await?;
    let info = peer.get().await;
    peer.close().await?;
    info
}

/// Makes the volume's files where there are none.
pub(super) async fn create(
    options: &VolumeOptions,
    peers: &[Peer],
    size: u64,
) -> Result<(), VolumeError> {
    let mut new = Vec::new();
    for peer in peers {
        let info = peer.get().await?;
        let found = match info.state.as_str() {
            "initial" => {
                new.push(peer);
                continue;
            }
            "closed" if info.dirty || info.rebuilding => Some("it has a volume already".to_owned()),
            "closed" => content(&look_inside(peer, size).await?, size),
            state => Some(format!("it is {state}: something uses it, or did")),
        };
        if let Some(found) = found {
            let problem = format!(
                "{found}; give a replica with an empty directory, or name the volume that this one belongs to in its other commands"
            );
            return Err(refused(&peer.address, problem));
        }
    }
    for peer in new {
        peer.create(size).await?;
    }
    let mut counts = None;
    for peer in peers {
        let info = look_inside(peer, size).await?;
        if let Some(problem) = content(&info, size) {
            return Err(refused(&peer.address, problem));
        }
        let ours = info.counts_revisions;
        if *counts.get_or_insert(ours) != ours {
            let problem = format!(
                "it {} its writes, unlike the first of volume {}; start all of them with --disableRevCounter, or none",
                if ours { "counts" } else { "does not count" },
                options.name
            );
            return Err(refused(&peer.address, problem));
        }
    }
    Ok(())
}
