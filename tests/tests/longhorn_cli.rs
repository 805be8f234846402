//! `paddock volume` as an operator or a script runs it, on replicas of Paddock's.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use paddock_probe::blocks;
use paddock_storage::longhorn::{Nobody, ReplicaAddress, Volume, VolumeOptions};
use paddock_tests::longhorn::{
    BLOCK, Replica, ReplicaOptions, User, directory, own_replica, stamp, volume_name,
};
use paddock_tests::{files, within};
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A block of the images, behind a hole.
const FAR: u64 = 9 * MIB;

/// Three replicas, at first without files.
struct Replicas {
    volume: String,
    list: Vec<Replica>,
    /// Last: the replicas end before it goes.
    directory: TempDir,
}

/// How a command ended.
#[derive(Debug)]
struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Replicas {
    fn start(name: &str) -> Self {
        let mut this = Self {
            volume: volume_name(name),
            list: Vec::new(),
            directory: directory(),
        };
        this.list = (0..3).map(|number| this.empty(number)).collect();
        this
    }

    fn path(&self, number: usize) -> PathBuf {
        self.directory.path().join(format!("r{number}"))
    }

    /// A replica in the directory of this number, which has no files.
    fn empty(&self, number: usize) -> Replica {
        let options = ReplicaOptions {
            revision_counter: true,
            ..ReplicaOptions::by(own_replica(), &self.volume)
        };
        Replica::start(&self.path(number), 0, options)
    }

    fn addresses(&self) -> Vec<String> {
        let addresses = self.list.iter().map(|replica| replica.control());
        addresses.map(|address| address.to_string()).collect()
    }

    /// Runs a command with words before and after the volume's name.
    fn run(&self, before: &str, after: &[&str]) -> Done {
        let done = Command::new(files::paddock())
            .arg("volume")
            .args(before.split_whitespace())
            .arg(&self.volume)
            .args(after)
            .args(["--replica", &self.addresses().join(",")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Done {
            code: done.status.code().unwrap(),
            stdout: text(done.stdout),
            stderr: text(done.stderr),
        }
    }

    /// The same, and it has to go well.
    #[track_caller]
    fn well(&self, before: &str, after: &[&str]) -> String {
        let done = self.run(before, after);
        assert_eq!(done.code, 0, "{before}: {done:?}");
        done.stdout
    }

    /// The same, and it has to fail with status 1 and say all of this.
    #[track_caller]
    fn fails(&self, before: &str, after: &[&str], texts: &[&str]) {
        let done = self.run(before, after);
        assert_eq!(done.code, 1, "{before}: {done:?}");
        for text in texts {
            assert!(done.stderr.contains(text), "{text}: {done:?}");
        }
    }

    /// The standing of each replica.
    fn standings(&self) -> Vec<String> {
        let told: Value = serde_json::from_str(&self.well("inspect --json", &[])).unwrap();
        let replicas = told["replicas"].as_array().unwrap();
        let standing = |replica: &Value| replica["standing"].as_str().unwrap().to_owned();
        replicas.iter().map(standing).collect()
    }

    /// The snapshots that the head of each replica is based on, from the newest on.
    fn chains(&self) -> Vec<Vec<String>> {
        let told: Value = serde_json::from_str(&self.well("inspect --json", &[])).unwrap();
        let replicas = told["replicas"].as_array().unwrap();
        let chain = |replica: &Value| serde_json::from_value(replica["chain"].clone()).unwrap();
        replicas.iter().map(chain).collect()
    }

    /// Opens the volume as a VM does.
    fn open(&self) -> Volume {
        let addresses = self.addresses();
        let addresses = addresses.iter().map(|address| address.parse().unwrap());
        let options = VolumeOptions::new(&self.volume, addresses.collect());
        Volume::open(options, Arc::new(Nobody)).unwrap()
    }

    /// Writes blocks of a generation, as a VM does.
    fn write(&self, to: u64, generation: u64) {
        let volume = self.open();
        let mut user = User::new(&volume);
        user.write(0, to, generation).unwrap();
        drop(user);
        volume.close().unwrap();
    }

    #[track_caller]
    fn read(&self, from: u64, to: u64, generation: u64) {
        let volume = self.open();
        let mut user = User::new(&volume);
        user.check(from, to, generation);
        drop(user);
        volume.close().unwrap();
    }

    /// A byte, as each of the replicas has it.
    #[track_caller]
    fn byte(&self, offset: u64) -> u8 {
        let volume = self.open();
        let bytes = self.list.iter().map(|replica| {
            let mut sector = [0; 512];
            let start = offset - offset % 512;
            replica.connect().read(start, &mut sector).unwrap();
            sector[usize::try_from(offset - start).unwrap()]
        });
        let bytes: Vec<u8> = bytes.collect();
        volume.close().unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:?}");
        bytes[0]
    }

    /// The second one ends while the volume is used, misses a write, and comes back when it was closed.
    fn lose_one(&mut self) -> String {
        let volume = self.open();
        let mut user = User::new(&volume);
        user.write(0, MIB, 1).unwrap();
        self.list[1].kill();
        user.write(0, MIB, 2).unwrap();
        drop(user);
        volume.close().unwrap();
        self.list[1].restart();
        self.list[1].control().to_string()
    }

    /// An image with blocks of generation 1 at its beginning, and far behind.
    fn image(&self) -> String {
        let path = self.directory.path().join("image.raw");
        let file = File::create(&path).unwrap();
        file.set_len(16 * MIB + 512).unwrap();
        let block = BLOCK as u64;
        let near = (0..MIB).step_by(BLOCK);
        for offset in near.chain((FAR..FAR + 4 * block).step_by(BLOCK)) {
            let mut bytes = vec![0; BLOCK];
            blocks::fill(&mut bytes, offset, stamp(1));
            file.write_all_at(&bytes, offset).unwrap();
        }
        file.write_all_at(&[7], 16 * MIB + 511).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[test]
fn a_volume_is_made_of_an_image_and_goes_back_to_a_snapshot() {
    let replicas = Replicas::start("life");
    assert_eq!(replicas.standings(), ["empty"; 3]);
    let image = replicas.image();
    let told = replicas.well("create --json", &["--from", &image]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["size"], 16 * MIB + 4096);
    assert_eq!(replicas.standings(), ["complete"; 3]);
    let block = BLOCK as u64;
    replicas.read(0, MIB, 1);
    replicas.read(FAR, FAR + 4 * block, 1);
    assert_eq!(replicas.byte(16 * MIB + 511), 7);
    let far = fs::metadata(replicas.path(0).join("volume-head-000.img")).unwrap();
    let used = std::os::unix::fs::MetadataExt::blocks(&far) * 512;
    assert!(used < 3 * MIB, "holes became {used} bytes");
    replicas.well("check", &[]);

    replicas.well("snapshot create", &["first", "--label", "a=b"]);
    replicas.fails(
        "snapshot create",
        &["first"],
        &["has a snapshot first already"],
    );
    replicas.write(2 * MIB, 2);
    let list = replicas.well("snapshot list", &[]);
    assert!(list.contains("first") && list.contains("a=b"), "{list}");
    let told = replicas.well("check", &[]);
    assert!(told.starts_with("3 replicas hold the same"), "{told}");
    replicas.fails("snapshot revert", &["second"], &["has no snapshot second"]);
    replicas.well("snapshot revert", &["first"]);
    replicas.read(0, MIB, 1);
    replicas.well("check", &[]);
}

#[test]
fn nothing_is_made_where_something_is() {
    let mut replicas = Replicas::start("refusals");
    replicas.list[2].kill();
    let gone = replicas.list[2].control().to_string();
    replicas.fails("create", &["--size", "8M"], &[&gone, "cannot be reached"]);
    assert_eq!(replicas.standings(), ["empty", "empty", "unreachable"]);
    replicas.list[2].restart();
    let wrong = replicas.run("create", &["--size", "1000"]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
    assert!(wrong.stderr.contains("multiple of 4096"), "{wrong:?}");
    replicas.well("create", &["--size", "8M"]);
    // As good as new.
    replicas.well("create", &["--size", "8M"]);
    replicas.fails(
        "create",
        &["--size", "16M"],
        &["has a volume of 8388608 bytes"],
    );
    replicas.write(MIB, 1);
    replicas.fails("create", &["--size", "8M"], &["with data already"]);
    replicas.read(0, MIB, 1);
}

#[test]
fn replicas_that_miss_something_are_rebuilt() {
    let mut replicas = Replicas::start("rebuilds");
    replicas.well("create", &["--size", "16M"]);
    replicas.write(4 * MIB, 1);
    replicas.list[1].kill();
    replicas.write(2 * MIB, 2);
    let lost = replicas.list[1].control().to_string();
    replicas.fails("check", &[], &[&lost, "cannot be reached"]);
    replicas.fails("rebuild", &[], &[&lost, "cannot be reached"]);

    replicas.list[1].restart();
    assert_eq!(replicas.standings(), ["complete", "stale", "complete"]);
    replicas.fails("check", &[], &[&lost, "writes", "paddock volume rebuild"]);
    let told = replicas.well("rebuild", &[]);
    assert!(
        told.starts_with(&format!("replica {lost} is rebuilt")),
        "{told}"
    );
    replicas.well("check", &[]);
    let told = replicas.well("rebuild", &[]);
    assert_eq!(told, "nothing was rebuilt\n");

    replicas.list[0].kill();
    fs::remove_dir_all(replicas.path(0)).unwrap();
    replicas.list[0].restart();
    assert_eq!(replicas.standings(), ["empty", "complete", "complete"]);
    replicas.well("rebuild", &[]);
    replicas.well("check", &[]);
    replicas.read(0, 2 * MIB, 2);
    replicas.read(2 * MIB, 4 * MIB, 1);
}

#[test]
fn a_replica_that_missed_a_snapshot_is_rebuilt() {
    let mut replicas = Replicas::start("missed");
    replicas.well("create", &["--size", "8M"]);
    replicas.list[0].kill();
    let lost = replicas.list[0].control().to_string();
    // It is taken on the others.
    replicas.fails("snapshot create", &["first"], &[&lost, "rebuild these"]);
    replicas.list[0].restart();
    assert_eq!(replicas.standings(), ["stale", "complete", "complete"]);
    replicas.fails("check", &[], &[&lost, "has other snapshots"]);
    replicas.well("rebuild", &[]);
    replicas.well("check", &[]);
}

/// Blocks of generation 1, 2 above a snapshot `a`, and 3 above `b`.
fn with_two_snapshots(replicas: &Replicas) {
    replicas.well("create", &["--size", "16M"]);
    replicas.write(4 * MIB, 1);
    replicas.well("snapshot create", &["a"]);
    replicas.write(2 * MIB, 2);
    replicas.well("snapshot create", &["b"]);
    replicas.write(MIB, 3);
}

#[test]
fn a_snapshot_is_removed_from_all_replicas() {
    let replicas = Replicas::start("removal");
    with_two_snapshots(&replicas);
    let holds = |generation: u64| {
        replicas.well("check", &[]);
        replicas.read(0, MIB, generation);
        replicas.read(MIB, 2 * MIB, 2);
        replicas.read(2 * MIB, 4 * MIB, 1);
    };
    let no = "has no snapshot c; it has a, b";
    replicas.fails("snapshot remove", &["c"], &[no]);
    replicas.fails("snapshot remove", &["volume-snap-a.img"], &["it has a, b"]);
    let told = replicas.well("snapshot remove", &["a"]);
    assert_eq!(told, "snapshot a is removed\n");
    assert_eq!(replicas.chains(), [["b"]; 3]);
    for number in 0..3 {
        let files = fs::read_dir(replicas.path(number)).unwrap();
        let mut files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        assert!(files.all(|file| !file.contains("volume-snap-a")));
    }
    holds(3);
    replicas.fails("snapshot remove", &["a"], &["has no snapshot a; it has b"]);

    // Nothing is merged into the file that is written: it stays until there is another above it.
    let told = replicas.well("snapshot remove --json", &["b"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&told["snapshot"], &told["stays"]),
        (&"b".into(), &"newest".into())
    );
    // The replicas' chain is without what is to go.
    assert!(replicas.chains().iter().all(Vec::is_empty));
    let list = replicas.well("snapshot list", &[]);
    assert!(list.contains("to go"), "{list}");
    holds(3);
    replicas.fails("snapshot revert", &["b"], &["has no snapshot b"]);
    replicas.well("snapshot create", &["c"]);
    replicas.write(MIB, 4);
    let told = replicas.well("snapshot remove --json", &["b"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["stays"], Value::Null);
    assert_eq!(replicas.chains(), [["c"]; 3]);
    holds(4);
    replicas.well("snapshot revert", &["c"]);
    holds(3);
}

/// What others are based on has what each of them would have to have.
#[test]
fn a_snapshot_that_several_are_based_on_stays() {
    let replicas = Replicas::start("branches");
    with_two_snapshots(&replicas);
    replicas.well("snapshot revert", &["a"]);
    replicas.write(MIB, 4);
    let told = replicas.well("snapshot remove", &["a"]);
    assert!(told.contains("several are based on it"), "{told}");
    replicas.read(0, MIB, 4);
    replicas.read(MIB, 4 * MIB, 1);
    replicas.well("snapshot remove", &["b"]);
    replicas.well("check", &[]);
    replicas.read(0, MIB, 4);
    replicas.read(MIB, 4 * MIB, 1);
}

#[test]
fn no_snapshot_is_removed_where_replicas_miss_something() {
    let mut replicas = Replicas::start("unremoved");
    with_two_snapshots(&replicas);
    replicas.list[1].kill();
    let lost = replicas.list[1].control().to_string();
    let nothing = "nothing is removed";
    let gone = [&lost, "cannot be reached", nothing];
    replicas.fails("snapshot remove", &["a"], &gone);
    replicas.write(MIB, 4);
    replicas.list[1].restart();
    let stale = [&lost, "paddock volume rebuild", nothing];
    replicas.fails("snapshot remove", &["a"], &stale);
    let list = replicas.well("snapshot list", &[]);
    assert!(!list.contains("to go"), "{list}");
    replicas.well("rebuild", &[]);
    replicas.well("snapshot remove", &["a"]);
    replicas.read(0, MIB, 4);

    // As if a VM used it.
    drop(replicas.open());
    replicas.fails("snapshot remove", &["b"], &["restart its process"]);
    for replica in &mut replicas.list {
        replica.restart();
    }
    replicas.fails("snapshot remove", &["b"], &["check --repair", nothing]);
    replicas.well("check --repair", &[]);
    replicas.well("snapshot create", &["c"]);
    replicas.well("snapshot remove", &["b"]);
    replicas.well("check", &[]);
    replicas.read(0, MIB, 4);
}

#[test]
fn a_replica_that_did_not_go_back_is_rebuilt() {
    let mut replicas = Replicas::start("back");
    replicas.well("create", &["--size", "8M"]);
    replicas.write(MIB, 1);
    replicas.well("snapshot create", &["first"]);
    replicas.write(MIB, 2);
    replicas.list[1].kill();
    let lost = replicas.list[1].control().to_string();
    replicas.fails("snapshot revert", &["first"], &[&lost, "rebuild these"]);
    replicas.list[1].restart();
    assert_eq!(replicas.standings(), ["complete", "stale", "complete"]);
    replicas.read(0, MIB, 1);
    replicas.well("rebuild", &[]);
    replicas.well("check", &[]);
    replicas.read(0, MIB, 1);
}

#[test]
fn what_differs_is_found_and_mended() {
    let mut replicas = Replicas::start("differences");
    replicas.well("create", &["--size", "8M"]);
    replicas.write(4 * MIB, 1);
    replicas.list[2].kill();
    let head = replicas.path(2).join("volume-head-000.img");
    let head = File::options().write(true).open(head).unwrap();
    head.write_all_at(&[1; 700], 3 * MIB + 1000).unwrap();
    drop(head);
    replicas.list[2].restart();
    let odd = replicas.list[2].control().to_string();
    let range = format!("differ in 1536 bytes from {} on", 3 * MIB + 512);
    replicas.fails("check", &[], &[&odd, &range]);
    let wrong = replicas.run("rebuild", &["--anew", "localhost:1"]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
    replicas.well("rebuild", &["--anew", &odd]);
    replicas.well("check", &[]);
    replicas.read(0, 4 * MIB, 1);
}

#[test]
fn replicas_that_were_not_closed_are_made_the_same() {
    let mut replicas = Replicas::start("unclean");
    replicas.well("create", &["--size", "8M"]);
    let volume = replicas.open();
    let mut user = User::new(&volume);
    user.write(0, MIB, 1).unwrap();
    drop(user);
    // As if it had crashed.
    drop(volume);
    assert_eq!(replicas.standings(), ["in-use"; 3]);
    for command in ["check", "rebuild", "snapshot create"] {
        replicas.fails(command, &[], &["restart its process"]);
    }
    for replica in &mut replicas.list {
        replica.restart();
    }
    assert_eq!(replicas.standings(), ["unclean"; 3]);
    replicas.fails("check", &[], &["not closed", "check --repair"]);
    assert_eq!(replicas.standings(), ["unclean"; 3]);
    replicas.well("check --repair", &[]);
    assert_eq!(replicas.standings(), ["complete"; 3]);
    replicas.read(0, MIB, 1);
}

#[test]
fn one_that_ended_while_the_volume_was_used_is_rebuilt() {
    for opened in ["", "check --repair", "snapshot create"] {
        let mut replicas = Replicas::start("mixed");
        replicas.well("create", &["--size", "8M"]);
        let lost = replicas.lose_one();
        assert_eq!(replicas.standings(), ["complete", "unclean", "complete"]);
        let told = replicas.well("inspect", &[]);
        assert!(told.contains("not closed"), "{told}");
        replicas.fails("check", &[], &[&lost, "paddock volume rebuild"]);
        assert_eq!(replicas.standings(), ["complete", "unclean", "complete"]);
        if !opened.is_empty() {
            // What opened it does not leave it open.
            replicas.fails(opened, &[], &[&lost, "paddock volume rebuild"]);
            assert_eq!(replicas.standings(), ["complete", "incomplete", "complete"]);
        }
        let told = replicas.well("rebuild", &[]);
        assert!(told.contains(&format!("{lost} is rebuilt")), "{told}");
        replicas.well("check", &[]);
        replicas.read(0, MIB, 2);
    }
}

#[test]
fn the_only_good_one_is_not_overwritten_with_one_that_was_not_closed() {
    let mut replicas = Replicas::start("sources");
    replicas.well("create", &["--size", "8M"]);
    let lost = replicas.lose_one();
    let good = [0, 2].map(|number: usize| replicas.list[number].control().to_string());
    let refused = format!("{} would be overwritten", good.join(","));
    let anew = ["--anew", &good.join(",")];
    replicas.fails("rebuild", &anew, &[&lost, &refused]);
    assert_eq!(replicas.standings(), ["complete", "unclean", "complete"]);
    replicas.well("rebuild", &["--anew", &lost]);
    replicas.well("check", &[]);
    replicas.read(0, MIB, 2);
}

#[test]
fn one_of_another_volume_is_not_taken_for_a_better_one() {
    let mut replicas = Replicas::start("strangers");
    replicas.well("create", &["--size", "8M"]);
    replicas.write(MIB, 1);
    let options = ReplicaOptions {
        // It was not told whose it is.
        volume: String::new(),
        revision_counter: true,
        ..ReplicaOptions::by(own_replica(), "")
    };
    let path = replicas.directory.path().join("stranger");
    let stranger = Replica::start(&path, 8 * MIB, options);
    let address: ReplicaAddress = stranger.address().parse().unwrap();
    let open = || {
        let options = VolumeOptions::new("stranger", vec![address.clone()]);
        Volume::open(options, Arc::new(Nobody)).unwrap()
    };
    let volume = open();
    let mut user = User::new(&volume);
    user.write(0, 4 * MIB, 3).unwrap();
    drop(user);
    volume.close().unwrap();
    replicas.list.push(stranger);
    let overwritten = replicas.addresses()[..3].join(",");
    let ask = format!("--anew {overwritten}");
    replicas.fails("rebuild", &[], &["has seen", &ask]);
    let complete = ["stale", "stale", "stale", "complete"];
    assert_eq!(replicas.standings(), complete);
    // Not closed, it is not known to have seen more before it is opened.
    let volume = open();
    let mut user = User::new(&volume);
    user.write(0, MIB, 4).unwrap();
    drop(user);
    drop(volume);
    replicas.list[3].restart();
    let unclean = ["complete", "complete", "complete", "unclean"];
    assert_eq!(replicas.standings(), unclean);
    replicas.fails(
        "rebuild",
        &[],
        &["would be overwritten", "nothing was rebuilt"],
    );
    replicas.list[3].restart();
    assert_eq!(replicas.standings(), unclean);
    replicas.list.pop();
    replicas.well("check", &[]);
    replicas.read(0, MIB, 1);
}

#[test]
fn a_rebuild_tells_of_a_source_that_ends_meanwhile() {
    let mut replicas = Replicas::start("sources-end");
    replicas.well("create", &["--size", "64M"]);
    replicas.write(32 * MIB, 1);
    replicas.list[0].kill();
    fs::remove_dir_all(replicas.path(0)).unwrap();
    replicas.list[0].restart();
    let addresses = replicas.addresses().join(",");
    let rebuild = Command::new(files::paddock())
        .args(["volume", "rebuild", &replicas.volume, "--replica"])
        .arg(addresses)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let rebuild = rebuild.unwrap();
    let meta = replicas.path(0).join("volume.meta");
    let begun = || fs::read_to_string(&meta).is_ok_and(|m| m.contains("\"Rebuilding\":true"));
    assert!(within(Duration::from_secs(30), begun));
    replicas.list[2].kill();
    let done = rebuild.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    let lost = replicas.list[2].control().to_string();
    let told = String::from_utf8(done.stderr).unwrap();
    assert!(told.contains(&lost), "{told}");
}
