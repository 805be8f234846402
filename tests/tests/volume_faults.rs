//! A guest on real KVM on a replicated volume whose replicas do wrong, hang, lose their network, and die while they are rebuilt, all under its writes.
//!
//! One guest sees it all: replicas that failed are rebuilt in its sight. After each fault it reads back what it wrote, and then all replicas that are
//! read have to hold the same.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use paddock_probe::protocol::Area;
use paddock_tests::api::Events;
use paddock_tests::longhorn::guest::{self, modes_by_address};
use paddock_tests::longhorn::{
    GuestVolume, Host, Network, ReplicaOptions, Request, Spoiled, assert_alike,
};
use paddock_tests::{Vm, blocks};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;

/// What the guest writes once, before everything, and what it writes all the time: all of it, so that what is given to replicas that are rebuilt comes in
/// large pieces.
const ONCE: Range<u64> = 0..4 * MIB;
const AGAIN: Range<u64> = 4 * MIB..4 * MIB + MIB / 2;

/// How much the guest may ask for in a second, so that rebuilds get their share of the lab's slow processors.
const LIMIT: &str = "iops=150";

/// How long one that is silent is waited for, in seconds: the least that may be set.
const PATIENCE: u64 = 8;

/// How long anything else may take that is waited for.
const SOON: Duration = Duration::from_secs(120);

/// Replicas of which each spoils an answer. The first of them comes back.
const SPOILERS: [usize; 5] = [0, 1, 2, 3, 4];

/// A replica on another host, and one on this.
const REMOTE: usize = 5;
const LOCAL: usize = 6;

/// An answer that may not be, and words of what is told of it.
type Fault = (Spoiled, &'static str);

const ERROR: Fault = (Spoiled::Error("the disk has gone"), "the disk has gone");
const FULL: Fault = (
    Spoiled::Error("no space left on device"),
    "it has no space left, and others have",
);
const SHORT: Fault = (Spoiled::Short, "it closed the connection");
const OTHER_SEQUENCE: Fault = (Spoiled::OtherSequence, "it did not have");
const OTHER_MAGIC: Fault = (Spoiled::OtherMagic, "a frame begins with");

/// What makes faults, while the guest writes.
struct Saboteur<'a> {
    vm: &'a Vm,
    volume: GuestVolume,
    network: Arc<Network>,
    events: Events,
    /// The replicas that are read, and those that failed and were not rebuilt since.
    good: BTreeSet<usize>,
    lost: BTreeSet<usize>,
}

impl<'a> Saboteur<'a> {
    fn new(vm: &'a Vm, volume: GuestVolume, network: Arc<Network>) -> Self {
        Self {
            vm,
            events: vm.api().events(0),
            good: (0..volume.replicas.len()).collect(),
            lost: BTreeSet::new(),
            volume,
            network,
        }
    }

    fn address(&self, number: usize) -> String {
        self.volume.replicas[number].control().to_string()
    }

    /// The next thing that is told of any replica.
    #[track_caller]
    fn next_event(&mut self) -> Value {
        let end = Instant::now() + SOON;
        loop {
            let event = self.events.next().expect("the stream goes on");
            if event["type"].as_str().unwrap().starts_with("replica-") {
                return event;
            }
            assert!(Instant::now() < end, "nothing is told of a replica");
        }
    }

    /// The replica that is at an address.
    #[track_caller]
    fn number(&self, address: &Value) -> usize {
        let mut numbers = 0..self.volume.replicas.len();
        let number = numbers.find(|&number| *address == self.address(number));
        number.expect("a replica of ours")
    }

    /// A replica was good for something until now.
    #[track_caller]
    fn lose(&mut self, number: usize) {
        assert!(self.good.remove(&number), "{number} was no good");
        self.lost.insert(number);
    }

    /// This, and nothing else, is told of replicas next.
    #[track_caller]
    fn expect(&mut self, kind: &str, number: usize) -> Value {
        let event = self.next_event();
        let told = (&event["type"], &event["replica"]);
        assert_eq!(
            told,
            (&json!(kind), &json!(self.address(number))),
            "{event}"
        );
        event
    }

    /// One replica fails, once, for a reason that is told in these words.
    #[track_caller]
    fn fails(&mut self, number: usize, reason: &str) {
        let event = self.expect("replica-failed", number);
        let told = event["reason"].as_str().unwrap();
        assert!(told.contains(reason), "{event}");
        assert_eq!(event["rebuilding"], false, "{event}");
        self.lose(number);
        self.check_modes();
    }

    /// So many replicas fail, and no earlier than one that is silent may.
    #[track_caller]
    fn fall_silent(&mut self, numbers: &[usize], since: Instant) {
        for _ in numbers {
            let event = self.next_event();
            let number = self.number(&event["replica"]);
            let reason = event["reason"].as_str().unwrap();
            assert!(event["type"] == "replica-failed" && reason.contains("not answered"));
            assert!(numbers.contains(&number), "{event}");
            self.lose(number);
        }
        // It was asked for something a little earlier, perhaps.
        assert!(since.elapsed() > Duration::from_secs(PATIENCE - 1));
        self.check_modes();
    }

    /// The VM reads and writes all replicas but those that are lost.
    #[track_caller]
    fn check_modes(&self) {
        let modes = modes_by_address(self.vm).into_iter();
        let modes: BTreeSet<_> = modes
            .map(|(address, mode)| (self.number(&json!(address)), mode))
            .collect();
        let all = |numbers: &BTreeSet<usize>, mode: &str| -> BTreeSet<_> {
            let numbers = numbers.iter();
            numbers.map(|&number| (number, mode.to_owned())).collect()
        };
        let expected = &all(&self.good, "rw") | &all(&self.lost, "failed");
        assert_eq!(modes, expected);
    }

    /// Has the VM let go of a replica that is lost.
    #[track_caller]
    fn remove(&mut self, number: usize) {
        guest::remove_replica(self.vm, self.volume.replicas[number].control());
        self.expect("replica-removed", number);
        self.lost.remove(&number);
    }

    /// Has the VM begin to rebuild a replica. Gives the job.
    #[track_caller]
    fn add(&mut self, number: usize) -> Value {
        let job = guest::add_replica(self.vm, self.volume.replicas[number].control());
        self.expect("replica-added", number);
        job
    }

    /// Has the VM rebuild a replica, which was removed.
    #[track_caller]
    fn rebuild(&mut self, number: usize) {
        let job = self.add(number);
        let job = self.vm.end_of_job(&job);
        assert_eq!(job["state"], "succeeded", "{job}");
        self.expect("replica-rebuilt", number);
        self.good.insert(number);
    }

    /// Rebuilds all replicas that are lost. Their processes have run all the time.
    #[track_caller]
    fn bring_back(&mut self) {
        for number in self.lost.clone() {
            self.remove(number);
            self.rebuild(number);
        }
        self.check_modes();
    }

    /// A replica's answer to such a request is one that may not be.
    #[track_caller]
    fn spoil(&self, number: usize, request: Request, (how, _): Fault) {
        self.volume.replicas[number].spoil(request, how);
    }

    /// Replicas hang, all at once.
    fn freeze(&mut self, numbers: &[usize]) {
        let since = Instant::now();
        for &number in numbers {
            self.volume.replicas[number].freeze();
        }
        self.fall_silent(numbers, since);
        // What they do now is too late.
        for &number in numbers {
            self.volume.replicas[number].thaw();
        }
    }

    /// Nothing comes from a replica any more, and perhaps nothing gets there, until its network is mended.
    fn cut_off(&mut self, cut: impl FnOnce(&Network), mend: impl FnOnce(&Network)) {
        let since = Instant::now();
        cut(&self.network);
        self.fall_silent(&[REMOTE], since);
        mend(&self.network);
    }

    /// The host of a replica that is lost has lost all that it had, too. The rebuild ends when a part of that is there again; the next one comes to an end.
    fn interrupt_a_rebuild(&mut self, number: usize) {
        self.volume.replicas[number].kill();
        fs::remove_dir_all(self.volume.replicas[number].directory()).unwrap();
        self.volume.replicas[number].restart();
        self.remove(number);
        let job = self.add(number);
        let end = Instant::now() + SOON;
        // The one that it takes itself, and one that it is given. The others have some more.
        while snapshots(self.volume.replicas[number].directory()) < 2 {
            assert!(Instant::now() < end, "it is given nothing");
            sleep(Duration::from_millis(5));
        }
        self.volume.replicas[number].kill();
        let failed = self.expect("replica-failed", number);
        assert_eq!(failed["rebuilding"], true, "{failed}");
        let job = self.vm.end_of_job(&job);
        assert_eq!(job["state"], "failed", "{job}");
        self.expect("replica-removed", number);
        self.check_modes();
        self.volume.replicas[number].restart();
        self.rebuild(number);
    }
}

/// How many snapshots a replica has in its directory.
fn snapshots(directory: &Path) -> usize {
    let files = fs::read_dir(directory).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let is_snapshot = |name: &String| name.starts_with("volume-snap-") && name.ends_with(".img");
    names.filter(is_snapshot).count()
}

/// The guest, and the blocks that it writes again and again.
struct Writer<'a> {
    vm: &'a Vm,
    area: Area,
}

impl Writer<'_> {
    /// Has faults made while the guest writes. It reads back what it wrote, and then the replicas have to hold the same.
    #[track_caller]
    fn write_during<'a>(
        &mut self,
        by: &mut Saboteur<'a>,
        sabotage: impl FnOnce(&mut Saboteur<'a>),
    ) {
        self.area.generation += 1;
        self.area = blocks::write_during(self.vm, &self.area, || sabotage(by));
        blocks::verify(self.vm, &self.area);
        by.check_modes();
        let good = by.good.iter().map(|&number| &by.volume.replicas[number]);
        let good: Vec<_> = good.collect();
        assert_alike(&good, SIZE);
    }
}

/// Starts all replicas.
fn start(network: &Arc<Network>) -> GuestVolume {
    let way = |host, relayed| ReplicaOptions {
        host,
        relayed,
        ..GuestVolume::options()
    };
    let near = way(Host::Near(Arc::clone(network)), true);
    let mut ways = vec![near; SPOILERS.len() + 2];
    ways[REMOTE] = way(Host::Far(Arc::clone(network)), false);
    GuestVolume::of(ways, SIZE, 32 * SIZE)
}

#[test]
fn replicas_that_do_wrong_or_fall_silent_or_die_again_cost_a_guest_nothing() {
    let network = Arc::new(Network::new());
    let volume = start(&network);
    let vm = volume.boot(&format!(",timeout={PATIENCE},{LIMIT}"));
    let area = |range: Range<u64>, seed| Area {
        offset: range.start,
        ..Area::new("/dev/vda", range.end - range.start, seed)
    };
    let once = Area {
        block_size: 32 << 10,
        ..area(ONCE, 41)
    };
    blocks::write(&vm, &once);
    let area = area(AGAIN, 42);
    let mut writer = Writer { vm: &vm, area };
    let mut saboteur = Saboteur::new(&vm, volume, Arc::clone(&network));

    let [first, others @ ..] = SPOILERS;
    saboteur.spoil(first, Request::Read, SHORT);
    blocks::verify(&vm, &once);
    saboteur.fails(first, SHORT.1);
    writer.write_during(&mut saboteur, |saboteur| {
        let faults = [ERROR, FULL, OTHER_SEQUENCE, OTHER_MAGIC];
        for (number, fault) in others.into_iter().zip(faults) {
            saboteur.spoil(number, Request::Write, fault);
            saboteur.fails(number, fault.1);
            saboteur.remove(number);
        }
        saboteur.bring_back();
    });
    writer.write_during(&mut saboteur, |saboteur| saboteur.freeze(&[first, LOCAL]));
    writer.write_during(&mut saboteur, |saboteur| {
        saboteur.bring_back();
        saboteur.cut_off(Network::unplug, Network::plug);
    });
    writer.write_during(&mut saboteur, |saboteur| {
        saboteur.bring_back();
        saboteur.cut_off(Network::cut, Network::mend);
        saboteur.interrupt_a_rebuild(REMOTE);
    });
    // What nobody touched has gone from replica to replica.
    blocks::verify(&vm, &once);
    let Saboteur { volume, .. } = saboteur;
    vm.power_off();
    volume.assert_alike(&[first, REMOTE, LOCAL]);
}
