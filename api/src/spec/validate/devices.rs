//! Disks, CD-ROM drives and network interfaces, and the ids they share.

use std::collections::HashSet;

use super::super::config::{NicConfig, VmConfig};
use super::super::machine::{Cdrom, Disk, Nic, NicAttachment};
use super::super::pointer::JsonPointer;
use super::super::problem::{ProblemCode, Problems, quoted};
use super::super::types::{
    DeviceId, MacAddr, Mtu, PassedTap, QueueSize, Uuid, ValueError, VlanId, in_range,
};
use super::cdroms::{MAX_CDROMS, cdrom, written_media};
use super::disks::{MAX_DISKS, disk, shared_files};
use super::volumes::{shared_records, shared_volumes};
use super::{at_most, optional, passed};

pub(super) const MAX_NICS: usize = 32;
const MAX_QUEUE_PAIRS: u64 = 8;
/// Ids of the devices that are in a VM without being listed in its spec.
const RESERVED_IDS: [&str; 4] = ["balloon", "console", "memory", "rng"];

/// All devices that a spec lists.
pub(super) struct Devices {
    pub(super) disks: Vec<Disk>,
    pub(super) cdroms: Vec<Cdrom>,
    pub(super) nics: Vec<Nic>,
}

impl Devices {
    /// The ids of all of them.
    pub(super) fn ids(&self) -> HashSet<&DeviceId> {
        let disks = self.disks.iter().map(|disk| &disk.id);
        let cdroms = self.cdroms.iter().map(|cdrom| &cdrom.id);
        let nics = self.nics.iter().map(|nic| &nic.id);
        disks.chain(cdroms).chain(nics).collect()
    }
}

/// Checks all devices of a VM with so many processors.
pub(super) fn devices(
    config: &VmConfig,
    processors: u8,
    uuid: Option<Uuid>,
    problems: &mut Problems,
) -> Option<Devices> {
    let [at_disks, at_cdroms, at_nics] =
        ["disks", "cdroms", "nics"].map(|list| JsonPointer::root().key(list));
    // A longer list is not looked into: it would only make a long answer.
    let few_disks = at_most(problems, &at_disks, config.disks.len(), MAX_DISKS, "disks");
    let drives = "CD-ROM drives";
    let few_cdroms = at_most(
        problems,
        &at_cdroms,
        config.cdroms.len(),
        MAX_CDROMS,
        drives,
    );
    let few_nics = at_most(problems, &at_nics, config.nics.len(), MAX_NICS, "NICs");
    few_disks.and(few_cdroms).and(few_nics)?;

    let Ids {
        disks: disk_ids,
        cdroms: cdrom_ids,
        nics: nic_ids,
    } = ids(config, problems);
    let disks: Vec<Option<Disk>> = (0..)
        .zip(config.disks.iter().zip(disk_ids))
        .map(|(index, (config, id))| disk(config, id, processors, &at_disks.index(index), problems))
        .collect();
    let cdroms: Vec<Option<Cdrom>> = (0..)
        .zip(config.cdroms.iter().zip(cdrom_ids))
        .map(|(index, (config, id))| cdrom(config, id, &at_cdroms.index(index), problems))
        .collect();
    let nics: Vec<Option<Nic>> = (0..)
        .zip(config.nics.iter().zip(nic_ids))
        .map(|(index, (config, id))| nic(config, id, uuid, &at_nics.index(index), problems))
        .collect();
    passed::each_once(config, problems);
    shared_files(&config.disks, &at_disks, problems);
    shared_volumes(&config.disks, &at_disks, problems);
    shared_records(&config.disks, &at_disks, problems);
    written_media(config, &at_cdroms, problems);
    shared_taps_and_macs(&config.nics, &at_nics, problems);
    Some(Devices {
        disks: disks.into_iter().collect::<Option<_>>()?,
        cdroms: cdroms.into_iter().collect::<Option<_>>()?,
        nics: nics.into_iter().collect::<Option<_>>()?,
    })
}

/// The ids of all listed devices; `None` where one is wrong.
struct Ids {
    disks: Vec<Option<DeviceId>>,
    cdroms: Vec<Option<DeviceId>>,
    nics: Vec<Option<DeviceId>>,
}

/// The ids: those given, checked and unique, and for the others the first free `diskN`, `cdromN` or `nicN`.
fn ids(config: &VmConfig, problems: &mut Problems) -> Ids {
    let disks = config.disks.iter().map(|disk| &disk.id).enumerate();
    let cdroms = config.cdroms.iter().map(|cdrom| &cdrom.id).enumerate();
    let nics = config.nics.iter().map(|nic| &nic.id).enumerate();
    let given = disks
        .map(|(index, id)| ("disks", index, id))
        .chain(cdroms.map(|(index, id)| ("cdroms", index, id)))
        .chain(nics.map(|(index, id)| ("nics", index, id)));
    let mut taken: HashSet<String> = RESERVED_IDS.map(str::to_owned).into();
    let mut checked = Vec::new();
    for (list, index, id) in given {
        let at = JsonPointer::root().key(list).index(index).key("id");
        let id = optional(problems, &at, id.as_deref(), str::parse::<DeviceId>);
        if let Some(Some(id)) = &id {
            if RESERVED_IDS.contains(&id.as_str()) {
                let detail = format!("{} is the id of a built-in device", quoted(id.as_str()));
                problems.add(at, ProblemCode::Duplicate, detail);
            } else if !taken.insert(id.to_string()) {
                let detail = format!("another device has the id {}", quoted(id.as_str()));
                problems.add(at, ProblemCode::Duplicate, detail);
            }
        }
        checked.push(id);
    }
    let mut free = |prefix: &str, index: usize| {
        let mut names = (index..).map(|number| format!("{prefix}{number}"));
        let name = names.find(|name| taken.insert(name.clone()))?;
        name.parse().ok()
    };
    let mut complete = |prefix: &str, index: usize, id: Option<Option<DeviceId>>| match id? {
        Some(id) => Some(id),
        None => free(prefix, index),
    };
    let nics = checked.split_off(config.disks.len() + config.cdroms.len());
    let cdroms = checked.split_off(config.disks.len());
    let mut fill = |prefix: &str, ids: Vec<Option<Option<DeviceId>>>| {
        ids.into_iter()
            .enumerate()
            .map(|(index, id)| complete(prefix, index, id))
            .collect()
    };
    Ids {
        disks: fill("disk", checked),
        cdroms: fill("cdrom", cdroms),
        nics: fill("nic", nics),
    }
}

fn nic(
    config: &NicConfig,
    id: Option<DeviceId>,
    uuid: Option<Uuid>,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Nic> {
    let attachment = attachment(config, at, problems);
    let passed = match &attachment {
        Some(NicAttachment::PassedTap(tap)) => Some(tap.queues().len()),
        _ => None,
    };
    let mac = optional(problems, &at.key("mac"), config.mac.as_deref(), str::parse);
    let mtu = optional(problems, &at.key("mtu"), config.mtu, Mtu::try_from);
    let queue_pairs = optional(
        problems,
        &at.key("queue_pairs"),
        config.queue_pairs,
        |pairs| in_range("the number of queue pairs", pairs, 1..=MAX_QUEUE_PAIRS),
    );
    let queue_pairs = match passed {
        Some(count) => passed_pairs(config, count, queue_pairs, at, problems),
        None => queue_pairs.map(|pairs| pairs.unwrap_or(1)),
    };
    let queue_size = optional(
        problems,
        &at.key("queue_size"),
        config.queue_size,
        QueueSize::try_from,
    );
    let id = id?;
    Some(Nic {
        mac: mac?.or_else(|| uuid.map(|uuid| derived_mac(uuid, &id))),
        id,
        attachment: attachment?,
        mtu: mtu?,
        queue_pairs: queue_pairs?,
        queue_size: queue_size?.unwrap_or_default(),
    })
}

/// The queue pairs of a tap that was passed: one for each descriptor.
#[expect(
    clippy::option_option,
    reason = "as `optional` gives it: none, or wrong"
)]
fn passed_pairs(
    config: &NicConfig,
    count: usize,
    asked: Option<Option<u16>>,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<u16> {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    let what = "the number of a tap's descriptors";
    let count = problems.check(
        &at.key("tap"),
        in_range::<u16>(what, count, 1..=MAX_QUEUE_PAIRS),
    )?;
    match asked? {
        Some(pairs) if pairs != count => {
            let asked = config.queue_pairs.unwrap_or_default();
            let detail = format!(
                "{asked} queue pairs are asked for and tap has {count} descriptors: there is one for each pair; leave queue_pairs out"
            );
            problems.add(at.key("queue_pairs"), ProblemCode::Conflict, detail);
            None
        }
        _ => Some(count),
    }
}

fn attachment(
    config: &NicConfig,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<NicAttachment> {
    let tap = optional(problems, &at.key("tap"), config.tap.as_deref(), tap);
    let bridge = optional(
        problems,
        &at.key("bridge"),
        config.bridge.as_deref(),
        str::parse,
    );
    let vlan = optional(problems, &at.key("vlan"), config.vlan, VlanId::try_from);
    match (&config.tap, &config.bridge) {
        (None, None) => {
            let detail =
                "tap or bridge is missing: name an existing tap, or the bridge to make one on";
            problems.missing(at, &["tap", "bridge"], detail);
            None
        }
        (Some(_), Some(_)) => {
            let detail =
                "a NIC has a tap or a bridge, not both; with a bridge, Paddock makes the tap";
            problems.add(at.clone(), ProblemCode::Conflict, detail);
            None
        }
        (Some(_), None) => {
            if config.vlan.is_some() {
                let detail = "a VLAN is set only where Paddock makes the tap, on a bridge; set an existing tap's VLAN on the host";
                problems.add(at.key("vlan"), ProblemCode::Conflict, detail);
                return None;
            }
            Some(tap??)
        }
        (None, Some(_)) => Some(NicAttachment::Bridge {
            bridge: bridge??,
            vlan: vlan?,
        }),
    }
}

/// A tap by its name, or by its descriptors.
fn tap(text: &str) -> Result<NicAttachment, ValueError> {
    match PassedTap::in_text(text) {
        Some(passed) => passed.map(NicAttachment::PassedTap),
        None => text.parse().map(NicAttachment::Tap),
    }
}

/// A MAC address that stays the same for the same VM and NIC: the 64-bit FNV-1a hash of both, made local.
fn derived_mac(uuid: Uuid, id: &DeviceId) -> MacAddr {
    let bytes = uuid.as_bytes().iter().chain(id.as_str().as_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    // The address takes 46 bits: fold the rest in.
    MacAddr::locally_administered(hash ^ (hash >> 48))
}

fn shared_taps_and_macs(nics: &[NicConfig], at: &JsonPointer, problems: &mut Problems) {
    let mac = |nic: &NicConfig| {
        nic.mac
            .as_deref()
            .and_then(|mac| mac.parse::<MacAddr>().ok())
    };
    for (index, nic) in nics.iter().enumerate() {
        let before = &nics[..index];
        let at = at.index(index);
        let passed = nic.tap.as_deref().and_then(PassedTap::in_text).is_some();
        if let Some(first) = before
            .iter()
            .position(|other| !passed && nic.tap.is_some() && other.tap == nic.tap)
        {
            let detail = format!(
                "NIC {first} has the same tap; use queue_pairs for a tap with several queues"
            );
            problems.add(at.key("tap"), ProblemCode::Duplicate, detail);
        }
        if let Some(first) = before
            .iter()
            .position(|other| mac(nic).is_some() && mac(other) == mac(nic))
        {
            let detail = format!("NIC {first} has the same MAC address");
            problems.add(at.key("mac"), ProblemCode::Duplicate, detail);
        }
    }
}
