//! Comparing all that replicas hold. Each is read by a task of its own, a little ahead of the comparison; nothing is written.

use std::time::Duration;

use paddock_longhorn::wire::MAX_DATA;
use tokio::sync::mpsc::{Receiver, channel};

use super::Watch;
use crate::longhorn::control::client::DataClient;
use crate::longhorn::control::peer::{Info, Peer};
use crate::longhorn::control::rebuild::verify::alike;
use crate::longhorn::error::VolumeError;
use crate::longhorn::options::{ReplicaAddress, VolumeOptions};

/// Pieces of [`MAX_DATA`] that are read ahead of the comparison, from each replica.
const AHEAD: usize = 4;

/// Where a difference begins and ends is told in these.
const SECTOR: usize = 512;

/// What came of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Bytes of the volume.
    pub size: u64,
    /// What is not alike about their files, for people. Where their sizes differ, nothing else is compared.
    pub problems: Vec<String>,
    /// The first difference in what they hold.
    pub difference: Option<Difference>,
}

/// A range in which two replicas differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The first byte of the first sector that differs.
    pub offset: u64,
    /// Bytes, up to the next sector that does not, or at most to the end of a piece of 1 MiB.
    pub length: u64,
    /// The two.
    pub replicas: [ReplicaAddress; 2],
}

fn refused(peer: &Peer, problem: impl Into<String>) -> VolumeError {
    VolumeError::Refused {
        replica: peer.address.clone(),
        action: "comparing it",
        problem: problem.into(),
    }
}

/// Compares all of them.
pub(super) async fn compare(
    options: &VolumeOptions,
    peers: &[Peer],
    watch: &Watch,
) -> Result<Comparison, VolumeError> {
    for peer in peers {
        let info = peer.get().await?;
        if info.state != "closed" {
            let problem = format!("it is {} and must be closed", info.state);
            return Err(refused(peer, problem));
        }
        if info.dirty || info.rebuilding {
            return Err(refused(
                peer,
                "it was not closed, or not rebuilt, when it was last used",
            ));
        }
    }
    let mut opened = Vec::new();
    let mut result = Ok(());
    for peer in peers {
        match peer.open(0).await {
            Ok(_) => opened.push(peer),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    let result = match result {
        Ok(()) => compare_open(options, peers, watch).await,
        Err(error) => Err(error),
    };
    let mut closed = Ok(());
    for peer in opened {
        closed = closed.and(peer.close().await.map(drop));
    }
    let comparison = result?;
    closed?;
    Ok(comparison)
}

async fn compare_open(
    options: &VolumeOptions,
    peers: &[Peer],
    watch: &Watch,
) -> Result<Comparison, VolumeError> {
    let mut infos = Vec::new();
    for peer in peers {
        infos.push(peer.get().await?);
    }
    let Some(first) = infos.first() else {
        return Err(VolumeError::Options {
            problem: "there is no replica to compare".to_owned(),
        });
    };
    let mut comparison = Comparison {
        size: first.size,
        problems: Vec::new(),
        difference: None,
    };
    for (peer, info) in peers.iter().zip(&infos).skip(1) {
        if let Some(problem) = unlike(&peers[0], first, peer, info) {
            comparison.problems.push(problem);
        }
    }
    if infos.iter().all(|info| info.size == first.size) {
        comparison.difference = find_difference(options, peers, first.size, watch).await?;
    }
    Ok(comparison)
}

/// What is not alike about two replicas, apart from what they hold.
fn unlike(one: &Peer, first: &Info, other: &Peer, info: &Info) -> Option<String> {
    let (one, other) = (&one.address, &other.address);
    if first.size != info.size {
        let (a, b) = (first.size, info.size);
        return Some(format!("{one} has {a} bytes, and {other} {b}"));
    }
    if !alike(first, info) {
        return Some(format!("{one} and {other} have different snapshots"));
    }
    if (first.counts_revisions, first.revision_counter)
        != (info.counts_revisions, info.revision_counter)
    {
        let count = |info: &Info| match info.counts_revisions {
            true => format!("has seen {} writes", info.revision_counter),
            false => "does not count its writes".to_owned(),
        };
        let (first, second) = (count(first), count(info));
        return Some(format!("{one} {first}, and {other} {second}"));
    }
    None
}

/// The length of the piece that begins at an offset.
fn piece(size: u64, offset: u64) -> u32 {
    u32::try_from(size - offset).map_or(MAX_DATA, |left| left.min(MAX_DATA))
}

/// Reads a replica from the beginning to the end, as long as somebody takes the pieces.
fn read(peer: &Peer, size: u64, deadline: Duration) -> Receiver<Result<Vec<u8>, String>> {
    let (sender, receiver) = channel(AHEAD);
    let address = peer.address.clone();
    tokio::spawn(async move {
        let mut client = match DataClient::connect(&address, deadline).await {
            Ok(client) => client,
            Err(error) => {
                let _ = sender.send(Err(error)).await;
                return;
            }
        };
        let mut offset = 0;
        while offset < size {
            let length = piece(size, offset);
            let read = client.read(deadline, offset, length).await;
            let failed = read.is_err();
            // Nobody takes it once a difference is found.
            if sender.send(read).await.is_err() || failed {
                return;
            }
            offset += u64::from(length);
        }
    });
    receiver
}

async fn find_difference(
    options: &VolumeOptions,
    peers: &[Peer],
    size: u64,
    watch: &Watch,
) -> Result<Option<Difference>, VolumeError> {
    watch.begin(size);
    let readers = peers.iter().map(|peer| read(peer, size, options.timeout));
    let mut readers: Vec<_> = readers.collect();
    let mut offset = 0;
    while offset < size {
        if watch.is_cancelled() {
            return Err(VolumeError::State {
                volume: options.name.clone(),
                problem: "the comparison was ended before it was done".to_owned(),
            });
        }
        let mut first: Option<Vec<u8>> = None;
        for (place, reader) in readers.iter_mut().enumerate() {
            let gone = || Err("its reader has ended".to_owned());
            let data = reader.recv().await.unwrap_or_else(gone);
            let data = data.map_err(|problem| refused(&peers[place], problem))?;
            let Some(right) = &first else {
                first = Some(data);
                continue;
            };
            if let Some((start, length)) = first_difference(right, &data) {
                return Ok(Some(Difference {
                    offset: offset + start,
                    length,
                    replicas: [peers[0].address.clone(), peers[place].address.clone()],
                }));
            }
        }
        offset += u64::from(piece(size, offset));
        watch.reach(offset);
    }
    Ok(None)
}

/// The sectors from the first that differs up to the next that does not: the first byte, and how many.
fn first_difference(one: &[u8], other: &[u8]) -> Option<(u64, u64)> {
    let differ = |(a, b): (&[u8], &[u8])| a != b;
    let sectors = one.chunks(SECTOR).zip(other.chunks(SECTOR));
    let mut differs = sectors.map(differ);
    let start = differs.position(|differs| differs)? * SECTOR;
    let more = differs.take_while(|differs| *differs).count();
    let end = (start + (more + 1) * SECTOR).min(one.len());
    Some((start as u64, (end - start) as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn differences_are_whole_sectors() {
        let one = vec![0; 4 * SECTOR];
        let mut other = one.clone();
        assert_eq!(first_difference(&one, &other), None);
        other[3 * SECTOR + 1] = 1;
        assert_eq!(first_difference(&one, &other), Some((1536, 512)));
        other[SECTOR] = 1;
        assert_eq!(first_difference(&one, &other), Some((512, 512)));
        other[2 * SECTOR + 511] = 1;
        assert_eq!(first_difference(&one, &other), Some((512, 1536)));
    }

    #[test]
    fn the_last_piece_is_what_is_left() {
        let most = u64::from(MAX_DATA);
        assert_eq!(piece(4096, 0), 4096);
        assert_eq!(piece(most + 4096, 0), MAX_DATA);
        assert_eq!(piece(most + 4096, most), 4096);
        assert_eq!(piece(u64::MAX, 0), MAX_DATA);
    }

    proptest! {
        #[test]
        fn what_comes_before_the_first_difference_is_the_same(
            one in proptest::collection::vec(any::<u8>(), 0..3000),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut other = one.clone();
            for (place, byte) in changes.into_iter().filter(|_| !one.is_empty()) {
                other[place.index(one.len())] = byte;
            }
            let Some((start, length)) = first_difference(&one, &other) else {
                prop_assert_eq!(one, other);
                return Ok(());
            };
            let start = usize::try_from(start).unwrap();
            let end = start + usize::try_from(length).unwrap();
            prop_assert_eq!(&one[..start], &other[..start]);
            for (a, b) in one[start..end].chunks(SECTOR).zip(other[start..end].chunks(SECTOR)) {
                prop_assert_ne!(a, b);
            }
            if end < one.len() {
                let next = end..one.len().min(end + SECTOR);
                prop_assert_eq!(&one[next.clone()], &other[next]);
            }
        }
    }
}
