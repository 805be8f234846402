//! Opening a volume of which something else uses a part, or of which a part does not answer.

use super::*;

use Mode::{Failed, ReadWrite};

/// As an engine left them that was killed, or as one that still runs has them.
fn use_some(set: &Set, which: &[usize]) {
    for index in which {
        set.replicas[*index].change(|state| {
            state.open = true;
            state.dirty = true;
            state.modified += 3600 * SECOND;
        });
    }
}

/// Why the volume is not opened, replica by replica.
fn refusals(set: &Set, taking: Taking) -> Vec<String> {
    match set.try_open(taking) {
        Err(VolumeError::NoReplica { problems, .. }) => problems,
        Err(other) => panic!("{other}"),
        Ok(volume) => panic!("it is opened: {:?}", volume.replicas()),
    }
}

#[test]
fn an_old_one_alone_is_no_volume_while_the_others_are_in_use() {
    // It failed, its process was started anew, and the others went on; then the engine died, or it has not.
    for (dirty, taking) in [
        (true, Taking::Open),
        (false, Taking::Open),
        (true, Taking::Salvage),
    ] {
        let set = Set::holding(3, 2);
        use_some(&set, &[0, 1]);
        set.replicas[2].change(|state| {
            state.bytes.fill(1);
            state.dirty = dirty;
        });
        let problems = refusals(&set, taking);
        assert!(problems[0].contains("must be closed"), "{problems:?}");
        let wanted = format!("may miss what {} has", set.replicas[0].address);
        assert!(problems[2].contains(&wanted), "{problems:?}");
        assert!(!set.replicas[2].state().rebuilding);
        if !dirty || taking == Taking::Salvage {
            continue;
        }
        // Once they are started anew the newer ones are the volume.
        for replica in &set.replicas {
            replica.restart();
        }
        assert_eq!(read(&set.open()), [2]);
    }
}

#[test]
fn two_engines_do_not_share_the_replicas_of_a_new_volume() {
    let set = Set::new(3);
    let one = VolumeOptions::new("fake", vec![set.replicas[0].address.clone()]);
    let first = Volume::open(one, Arc::new(Nobody)).expect("opened");
    let problems = refusals(&set, Taking::Open);
    assert!(problems[1].contains("in use"), "{problems:?}");
    assert!(!set.replicas[1].state().open && !set.replicas[2].state().open);
    first.close().expect("closed");
    assert_eq!(modes(&set.open()), [ReadWrite; 3]);
}

#[test]
fn one_that_an_engine_left_open_behind_it_is_no_hindrance() {
    // The others were closed after it was written last, a moment or long after.
    for seconds in [1, 3600] {
        let set = Set::holding(3, 2);
        set.replicas[0].change(|state| {
            state.bytes.fill(1);
            state.open = true;
            state.modified -= seconds * SECOND;
        });
        let volume = set.open();
        assert_eq!(modes(&volume), [Failed, ReadWrite, ReadWrite]);
        assert_eq!(read(&volume), [2]);
    }
    // They were not closed: clocks differ, and it has to be older by more.
    for (seconds, opens) in [(1, false), (3600, true)] {
        let set = Set::holding(3, 2);
        for replica in &set.replicas {
            replica.change(|state| state.dirty = true);
        }
        set.replicas[0].change(|state| {
            state.open = true;
            state.modified -= seconds * SECOND;
        });
        assert_eq!(set.try_open(Taking::Open).is_ok(), opens, "{seconds}");
    }
    // One that is new has nothing.
    let mut set = Set::holding(2, 2);
    set.add().change(|state| {
        state.open = true;
        state.modified = 2000 * SECOND;
    });
    assert_eq!(modes(&set.open()), [ReadWrite, ReadWrite, Failed]);
}

#[test]
fn counts_tell_whether_one_in_use_is_newer() {
    for (counter, opens) in [(4, true), (5, false), (6, false)] {
        let set = Set::holding(2, 2);
        set.replicas[0].change(|state| state.counter = Some(5));
        set.replicas[1].change(|state| {
            state.open = true;
            state.counter = Some(counter);
            // Dates say nothing then.
            state.modified += 3600 * SECOND;
        });
        assert_eq!(set.try_open(Taking::Open).is_ok(), opens, "{counter}");
    }
}

#[test]
fn half_of_them_or_fewer_are_not_enough() {
    for (count, absent, opens) in [(2, 1, false), (3, 1, true), (3, 2, false), (4, 2, false)] {
        let set = Set::holding(count, 2);
        let directory = tempfile::tempdir().expect("a directory");
        let mut options = set.options(Taking::Open);
        for number in 0..absent {
            // Nobody listens there.
            let nowhere = format!("127.0.0.1:{}", 1000 + 10 * number);
            options.replicas[number] = nowhere.parse().expect("an address");
        }
        let open = |options: &VolumeOptions| Volume::open(options.clone(), Arc::new(Nobody));
        match open(&options) {
            Ok(volume) => {
                assert!(opens, "{absent} of {count} are away");
                volume.close().expect("closed");
            }
            Err(error) => {
                assert!(!opens, "{error}");
                let words = format!("{absent} of {count}: wait for them, or name only");
                assert!(error.to_string().contains(&words), "{error}");
                // They are as they were.
                let last = set.replicas[count - 1].state();
                assert!(!last.open && !last.dirty, "{last:?}");
            }
        }
        // A record tells who has everything, once there is one, and so does whoever salvages.
        let path = directory.path().join("record");
        let recorded = VolumeOptions {
            record: Some(path.clone()),
            ..options.clone()
        };
        assert_eq!(open(&recorded).is_ok_and(|v| v.close().is_ok()), opens);
        let complete: Vec<String> = options.replicas.iter().map(ToString::to_string).collect();
        let text = serde_json::json!({"volume": "fake", "complete": complete});
        std::fs::write(&path, text.to_string()).expect("written");
        open(&recorded).expect("opened").close().expect("closed");
        let salvaging = VolumeOptions {
            taking: Taking::Salvage,
            ..options
        };
        open(&salvaging).expect("opened").close().expect("closed");
    }
}
