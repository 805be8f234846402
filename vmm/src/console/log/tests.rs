//! The log in temporary directories, with the smallest files that a spec allows.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use paddock_api::spec::VmSpec;
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::*;

const SIZE: usize = 4096;

struct Fixture {
    directory: TempDir,
    spec: ConsoleLog,
}

impl Fixture {
    fn new(files: u8) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let spec = json!({
            "boot": {"kernel": "k"},
            "console": {"serial_log": {"path": path, "size": SIZE, "files": files}},
        });
        let spec = VmSpec::from_json(&spec.to_string()).unwrap();
        let spec = spec.console.serial_log.unwrap();
        Self { directory, spec }
    }

    fn open(&self) -> RotatingLog {
        RotatingLog::open(&self.spec).unwrap()
    }

    /// The files' contents, the present one's last.
    fn contents(&self) -> Vec<Vec<u8>> {
        let count = fs::read_dir(self.directory.path()).unwrap().count();
        (0..u8::try_from(count).unwrap())
            .rev()
            .map(|number| fs::read(self.spec.file(number)).unwrap())
            .collect()
    }

    fn text(&self) -> String {
        String::from_utf8(self.contents().concat()).unwrap()
    }
}

/// Forgets the pause after an error.
fn retry(log: &mut RotatingLog) {
    assert!(log.retry_at.take().is_some(), "nothing went wrong");
}

#[test]
fn full_files_are_numbered_and_the_oldest_goes() {
    let fixture = Fixture::new(3);
    let mut log = fixture.open();
    let line = |n: u32| format!("line {n:>58}\n");
    for n in 0..400 {
        log.write_all(line(n).as_bytes()).unwrap();
    }
    // 64 lines of 64 bytes fill a file; 400 lines fill 6, and 16 are over.
    let contents = fixture.contents();
    let lengths: Vec<_> = contents.iter().map(Vec::len).collect();
    assert_eq!(lengths, [SIZE, SIZE, 16 * 64]);
    let expected: String = (256..400).map(line).collect();
    assert_eq!(fixture.text(), expected);
    let mode = fs::metadata(&fixture.spec.path).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[test]
fn an_old_log_is_continued_and_counts() {
    let fixture = Fixture::new(2);
    fs::write(&fixture.spec.path, vec![b'a'; SIZE - 2]).unwrap();
    let mut log = fixture.open();
    log.write_all(b"b\nc\n").unwrap();
    let mut first = vec![b'a'; SIZE - 2];
    first.extend(b"b\n");
    assert_eq!(fixture.contents(), [first, b"c\n".to_vec()]);
}

#[test]
fn a_single_file_starts_over() {
    let fixture = Fixture::new(1);
    let mut log = fixture.open();
    log.write_all(&[b'x'; SIZE]).unwrap();
    log.write_all(b"after").unwrap();
    assert_eq!(fixture.contents(), [b"after"]);
}

#[test]
fn lines_are_not_torn_for_a_new_file() {
    let fixture = Fixture::new(2);
    let mut log = fixture.open();
    let long = format!("{}\n", "y".repeat(SIZE - 10));
    for line in ["first line\n", &long, "last\n"] {
        log.write_all(line.as_bytes()).unwrap();
    }
    let last = format!("{long}last\n");
    assert_eq!(
        fixture.contents(),
        [b"first line\n".to_vec(), last.into_bytes()]
    );
}

#[test]
fn what_is_moved_or_removed_behind_our_back_is_made_anew() {
    let fixture = Fixture::new(3);
    let mut log = fixture.open();
    log.write_all(b"one\n").unwrap();
    let moved = fixture.directory.path().join("moved");
    fs::rename(&fixture.spec.path, &moved).unwrap();
    log.write_all(b"two\n").unwrap();
    assert_eq!(fs::read(&moved).unwrap(), b"one\n");
    assert_eq!(fs::read(&fixture.spec.path).unwrap(), b"two\n");
    fs::remove_file(&fixture.spec.path).unwrap();
    log.write_all(b"three\n").unwrap();
    assert_eq!(fs::read(&fixture.spec.path).unwrap(), b"three\n");
}

#[test]
fn after_an_error_it_goes_on_and_tells_what_is_missing() {
    let fixture = Fixture::new(3);
    let mut log = fixture.open();
    log.write_all(b"before\n").unwrap();
    fs::remove_file(&fixture.spec.path).unwrap();
    fs::create_dir(&fixture.spec.path).unwrap();
    log.write_all(b"12345").unwrap();
    log.write_all(b"678").unwrap();
    assert_eq!(log.lost, 8);
    retry(&mut log);
    log.write_all(b"9").unwrap();
    assert_eq!(log.lost, 9);
    fs::remove_dir(&fixture.spec.path).unwrap();
    log.write_all(b"too soon").unwrap();
    assert!(!fixture.spec.path.exists());
    retry(&mut log);
    log.write_all(b"after\n").unwrap();
    let expected = "\r\n[paddock: 17 bytes of output were lost here]\r\nafter\n";
    assert_eq!(fixture.text(), expected);
}

#[test]
fn a_rotation_that_fails_keeps_the_bound() {
    let fixture = Fixture::new(2);
    let mut log = fixture.open();
    // A directory that is not empty cannot be replaced by a file.
    fs::create_dir_all(fixture.spec.file(1).join("x")).unwrap();
    log.write_all(&[b'a'; SIZE]).unwrap();
    log.write_all(&[b'b'; 100]).unwrap();
    assert_eq!(log.lost, 100);
    retry(&mut log);
    log.write_all(b"c").unwrap();
    assert_eq!(fs::metadata(&fixture.spec.path).unwrap().len(), 4096);
    fs::remove_dir_all(fixture.spec.file(1)).unwrap();
    retry(&mut log);
    log.write_all(b"d").unwrap();
    let contents = fixture.contents();
    assert_eq!(contents[0], vec![b'a'; SIZE]);
    assert!(contents[1].ends_with(b"[paddock: 101 bytes of output were lost here]\r\nd"));
}

/// /dev/full is not a regular file, so the log's file is exchanged for it inside.
#[test]
fn a_full_disk_loses_output_and_nothing_else() {
    let fixture = Fixture::new(2);
    let mut log = fixture.open();
    let full = File::options().write(true).open("/dev/full").unwrap();
    log.file.as_mut().unwrap().file = full;
    log.write_all(b"no room").unwrap();
    assert_eq!(log.lost, 7);
    assert_eq!(log.reported, Some(io::ErrorKind::StorageFull));
    retry(&mut log);
    log.write_all(b"room").unwrap();
    assert_eq!((log.lost, log.reported), (0, None));
    assert!(
        fixture
            .text()
            .ends_with("7 bytes of output were lost here]\r\nroom")
    );
}

#[test]
fn what_cannot_be_a_log() {
    let refused = |path: PathBuf| {
        let mut fixture = Fixture::new(2);
        fixture.spec.path = path;
        RotatingLog::open(&fixture.spec).unwrap_err().to_string()
    };
    let directory = tempfile::tempdir().unwrap();
    assert!(refused("/dev/null".into()).contains("not a regular file"));
    let link = directory.path().join("link");
    symlink("elsewhere", &link).unwrap();
    assert!(refused(link).contains("symbolic link"));
    assert!(refused(directory.path().into()).contains("directory"));
    assert!(refused("/nonexistent/log".into()).contains("No such file"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_writes_end_in_a_bounded_suffix(
        writes in prop::collection::vec((0usize..6000, any::<bool>(), any::<u8>()), 1..12),
        files in 1u8..5,
    ) {
        let fixture = Fixture::new(files);
        let mut log = fixture.open();
        let mut all = Vec::new();
        for (length, lines, byte) in writes {
            let mut bytes = vec![byte; length];
            if lines {
                bytes.iter_mut().step_by(usize::from(byte) + 1).for_each(|byte| *byte = b'\n');
            }
            log.write_all(&bytes).unwrap();
            all.extend(bytes);
        }
        let contents = fixture.contents();
        prop_assert!(contents.len() <= usize::from(files));
        prop_assert!(contents.iter().all(|file| file.len() <= SIZE));
        let kept = contents.concat();
        prop_assert!(all.ends_with(&kept));
        if contents.len() < usize::from(files) {
            prop_assert_eq!(kept, all);
        }
    }
}
