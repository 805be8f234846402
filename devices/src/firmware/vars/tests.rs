//! The store on real files: made, locked, refused, written, and never seen half-written.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::*;
use crate::bus::BusDevice;
use crate::firmware::flash::{FlashSlot, SECTOR, VarsFlash};
use crate::firmware::volume::double::volume;
use crate::firmware::volume::{NotVariables, VolumeKind};

const SIZE: usize = 0x20000;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct NoSlot;

impl FlashSlot for NoSlot {
    fn set_present(&self, _present: bool) -> std::io::Result<()> {
        Ok(())
    }
}

fn template() -> Vec<u8> {
    volume(VolumeKind::Variables, SIZE)
}

fn open(path: &Path, template: Option<&[u8]>) -> Result<VarsStore, VarsError> {
    VarsStore::open(&VarsOptions {
        path,
        size: SIZE,
        template,
    })
}

fn refusal(path: &Path) -> VarsError {
    open(path, Some(&template())).unwrap_err()
}

fn flash(store: &VarsStore) -> VarsFlash {
    VarsFlash::new(
        Arc::clone(store.memory()),
        Arc::new(NoSlot),
        store.changed(),
    )
}

fn program(flash: &VarsFlash, at: usize, value: u8) {
    flash.write(at as u64, &[0x10]);
    flash.write(at as u64, &[value]);
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_store_is_made_from_the_template_and_keeps_what_is_set() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.fd");
    assert_eq!(open(&path, None).unwrap_err().kind, VarsErrorKind::Missing);
    let store = open(&path, Some(&template())).unwrap();
    assert_eq!(fs::read(&path).unwrap(), template());
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let flash = flash(&store);
    program(&flash, 0x1000, 0x12);
    assert!(store.watch().status().unsaved);
    store.flush(PATIENCE).unwrap();
    assert!(!store.watch().status().unsaved);
    assert_eq!(fs::read(&path).unwrap()[0x1000], 0x12);
    // What was not asked for comes soon, or at the latest when the store goes.
    program(&flash, 0x1001, 0x34);
    let start = Instant::now();
    while fs::read(&path).unwrap()[0x1001] != 0x34 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    program(&flash, 0x1002, 0x56);
    drop(store);
    let mut expected = template();
    expected[0x1000..0x1003].copy_from_slice(&[0x12, 0x34, 0x56]);
    assert!(fs::read(&path).unwrap() == expected);
    let store = open(&path, None).unwrap();
    assert!(store.memory().snapshot() == expected);
    assert_eq!(names(directory.path()), ["vm.fd"]);
}

#[test]
fn one_vm_has_it_also_after_it_was_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.fd");
    let store = open(&path, Some(&template())).unwrap();
    assert_eq!(refusal(&path).kind, VarsErrorKind::InUse);
    let flash = flash(&store);
    for round in 0..3 {
        program(&flash, 0x1000 + round, 0);
        store.flush(PATIENCE).unwrap();
        assert_eq!(refusal(&path).kind, VarsErrorKind::InUse, "round {round}");
    }
    drop(store);
    open(&path, None).unwrap();
}

#[test]
fn of_many_that_make_it_one_wins() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.fd");
    let template = template();
    let stores = std::thread::scope(|scope| {
        let attempts: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| open(&path, Some(&template))))
            .collect();
        let results = attempts.into_iter().map(|attempt| attempt.join().unwrap());
        results.collect::<Vec<_>>()
    });
    let (won, lost): (Vec<_>, Vec<_>) = stores.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for error in lost {
        assert_eq!(error.unwrap_err().kind, VarsErrorKind::InUse);
    }
    assert_eq!(names(directory.path()), ["vm.fd"]);
}

#[test]
fn other_files_are_refused_and_left_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let cases = [
        ("text", b"BOOT=1\n".repeat(9), "no header"),
        ("empty", Vec::new(), "no header"),
        ("long-text", vec![b'x'; SIZE], "no header"),
        (
            "code",
            volume(VolumeKind::Files, SIZE),
            "none with variables",
        ),
        (
            "larger",
            volume(VolumeKind::Variables, 0x84000),
            "has 540672 bytes, this firmware needs 131072",
        ),
        (
            "truncated",
            template()[..SIZE / 2].to_vec(),
            "has 65536 bytes, this firmware needs 131072",
        ),
        (
            "padded",
            [
                &volume(VolumeKind::Variables, SIZE / 2)[..],
                &vec![0xff; SIZE / 2][..],
            ]
            .concat(),
            "while the variable store in it has 65536",
        ),
    ];
    for (name, bytes, message) in cases {
        fs::write(at(name), &bytes).unwrap();
        let error = refusal(&at(name)).to_string();
        assert!(error.contains(message) && error.contains(name), "{error}");
        assert!(fs::read(at(name)).unwrap() == bytes);
    }
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    for (path, kind) in [
        (directory.path().to_path_buf(), VarsErrorKind::NotAFile),
        (at("pipe"), VarsErrorKind::NotAFile),
        (at("dangling"), VarsErrorKind::NoDirectory),
        (at("missing/vm.fd"), VarsErrorKind::NoDirectory),
        (at("text/vm.fd"), VarsErrorKind::NoDirectory),
        ("/".into(), VarsErrorKind::NotAFile),
        ("".into(), VarsErrorKind::NotAFile),
    ] {
        assert_eq!(refusal(&path).kind, kind, "{}", path.display());
    }
    for (bytes, reason) in [
        (b"text".to_vec(), None),
        (
            volume(VolumeKind::Variables, 0x84000),
            Some(NotVariables::Length {
                size: 0x84000,
                length: SIZE as u64,
            }),
        ),
    ] {
        let error = open(&at("new"), Some(&bytes)).unwrap_err();
        match (error.kind, reason) {
            (VarsErrorKind::Template(found), Some(reason)) => assert_eq!(found, reason),
            (VarsErrorKind::Template(_), None) => {}
            other => panic!("{other:?}"),
        }
        assert!(!at("new").exists());
    }
}

#[test]
fn a_link_stays_and_what_it_stands_for_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (real, link) = (directory.path().join("real"), directory.path().join("link"));
    fs::create_dir(&real).unwrap();
    fs::write(real.join("vm.fd"), template()).unwrap();
    fs::set_permissions(real.join("vm.fd"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("real/vm.fd", &link).unwrap();
    let store = open(&link, None).unwrap();
    program(&flash(&store), 0x1000, 0);
    // Its directory may move meanwhile.
    let moved = directory.path().join("moved");
    fs::rename(&real, &moved).unwrap();
    store.flush(PATIENCE).unwrap();
    assert!(link.is_symlink());
    let file = moved.join("vm.fd");
    assert_eq!(fs::read(&file).unwrap()[0x1000], 0);
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640, "as before");
}

#[test]
fn what_a_killed_process_left_is_used_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.fd");
    fs::write(&path, template()).unwrap();
    fs::write(directory.path().join(".vm.fd.new"), [1; 2 * SIZE]).unwrap();
    let store = open(&path, None).unwrap();
    assert_eq!(names(directory.path()), ["vm.fd"]);
    fs::write(directory.path().join(".vm.fd.new"), [1; 2 * SIZE]).unwrap();
    program(&flash(&store), 0x1000, 0);
    store.flush(PATIENCE).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE as u64);
    assert_eq!(names(directory.path()), ["vm.fd"]);
}

/// What a store told of its file.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

impl VarsEvents for Told {
    fn write_failed(&self, error: &VarsError) {
        self.0.lock().push(error.to_string());
    }

    fn written_again(&self) {
        self.0.lock().push("again".to_owned());
    }
}

#[test]
fn a_failed_write_is_told_and_made_up_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.fd");
    let store = open(&path, Some(&template())).unwrap();
    let (watch, told) = (store.watch(), Arc::<Told>::default());
    store.set_events(Arc::clone(&told) as _);
    let flash = flash(&store);
    program(&flash, 0x1001, 0);
    store.flush(PATIENCE).unwrap();
    assert_eq!(told.0.lock().len(), 0, "what goes well is not told");
    let written = fs::read(&path).unwrap();
    // In the way, for root as well.
    let obstacle = directory.path().join(".vm.fd.new");
    fs::create_dir(&obstacle).unwrap();
    program(&flash, 0x1000, 0);
    for _ in 0..2 {
        let error = store.flush(PATIENCE).unwrap_err();
        assert_eq!(error.kind, VarsErrorKind::Write);
        assert!(error.to_string().contains("vm.fd"), "{error}");
    }
    let status = watch.status();
    assert!(status.unsaved && status.error.is_some());
    assert_eq!((status.writes, status.failures), (1, 2));
    assert!(fs::read(&path).unwrap() == written, "the old one");
    fs::remove_dir(&obstacle).unwrap();
    store.flush(PATIENCE).unwrap();
    let status = watch.status();
    assert!(!status.unsaved && status.error.is_none());
    assert_eq!((status.writes, status.failures), (2, 2));
    assert_eq!(fs::read(&path).unwrap()[0x1000], 0);
    let told = std::mem::take(&mut *told.0.lock());
    assert!(told[0].contains("cannot be written"), "{told:?}");
    assert_eq!(told[1..], ["again"], "once, however often it failed");
}

#[test]
fn a_store_that_cannot_be_written_goes_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.fd");
    let store = open(&path, Some(&template())).unwrap();
    fs::create_dir(directory.path().join(".vm.fd.new")).unwrap();
    program(&flash(&store), 0x1000, 0);
    let (start, watch) = (Instant::now(), store.watch());
    drop(store);
    assert!(start.elapsed() < DROP_PATIENCE, "one try, no more");
    assert!(fs::read(&path).unwrap() == template());
    let status = watch.status();
    assert!(status.unsaved && status.error.is_some(), "as it ended");
}

#[test]
fn where_no_file_can_be_made_is_found_out_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.fd");
    fs::create_dir(directory.path().join(".vm.fd.new")).unwrap();
    assert_eq!(refusal(&path).kind, VarsErrorKind::CannotReplace);
    fs::write(&path, template()).unwrap();
    assert_eq!(refusal(&path).kind, VarsErrorKind::CannotReplace);
    assert!(fs::read(&path).unwrap() == template());
}

/// Bytes that are written one after the other, always in this order, as firmware does: a snapshot of any moment is a prefix.
fn is_one_moment(image: &[u8]) -> bool {
    let written = image[SECTOR..]
        .iter()
        .take_while(|byte| **byte == 0)
        .count();
    image[SECTOR + written..].iter().all(|byte| *byte == 0xff)
}

#[test]
fn the_file_is_always_the_flash_of_one_moment() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.fd");
    let store = open(&path, Some(&template())).unwrap();
    let flash = flash(&store);
    let mut seen = std::collections::BTreeSet::new();
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for at in SECTOR..SIZE {
                program(&flash, at, 0);
                if at % 500 == 0 {
                    store.flush(PATIENCE).unwrap();
                }
            }
        });
        while !writing.is_finished() {
            let image = fs::read(&path).unwrap();
            assert_eq!(image.len(), SIZE);
            assert!(is_one_moment(&image));
            seen.insert(image.iter().filter(|byte| **byte == 0).count());
        }
    });
    assert!(seen.len() > 3, "{}", seen.len());
}

/// Not a test by itself: the process that the next one kills.
#[test]
fn victim() {
    let Some(path) = std::env::var_os("PADDOCK_TEST_VARS_VICTIM") else {
        return;
    };
    let store = open(path.as_ref(), Some(&template())).unwrap();
    let flash = flash(&store);
    loop {
        for at in SECTOR..SIZE {
            program(&flash, at, 0);
            if at % 100 == 0 {
                store.flush(PATIENCE).unwrap();
                std::io::stderr().write_all(b"written\n").unwrap();
            }
        }
        for at in (SECTOR..SIZE).step_by(SECTOR).rev() {
            flash.write(at as u64, &[0x20]);
            flash.write(at as u64, &[0xd0]);
        }
    }
}

#[test]
fn a_killed_process_leaves_one_moment() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.fd");
    for round in 0..12u64 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["firmware::vars::tests::victim", "--exact", "--nocapture"])
            .env("PADDOCK_TEST_VARS_VICTIM", &path)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 8];
        let mut told = victim.stderr.take().unwrap();
        std::io::Read::read_exact(&mut told, &mut first).unwrap();
        // It writes all the time; where it is killed differs.
        std::thread::sleep(Duration::from_micros(round * 770));
        victim.kill().unwrap();
        victim.wait().unwrap();
        let store = open(&path, None).unwrap();
        let image = store.memory().snapshot();
        // While sectors are erased from the end, ones follow zeros just as well.
        assert!(is_one_moment(&image), "round {round}");
        drop(store);
        fs::write(&path, template()).unwrap();
    }
}
