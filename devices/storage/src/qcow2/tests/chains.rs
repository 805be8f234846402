//! Overlays and what they are overlays of: only what the user named is opened.

use super::*;

fn overlay(path: &Path, backing: &str, format: &str) {
    let arguments = [
        "create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", backing,
    ];
    let arguments = arguments.map(OsStr::new).into_iter();
    qemu_img(arguments.chain([path.as_os_str(), OsStr::new("2M")]));
}

fn on(path: &Path, backing: &Path, format: BackingFormat) -> Qcow2Options {
    Qcow2Options {
        backing: Some(Backing {
            path: backing.to_owned(),
            format,
        }),
        ..Qcow2Options::new(path)
    }
}

/// A raw image, an overlay of it, and one of that.
fn chain(directory: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let names = ["base.raw", "middle.qcow2", "top.qcow2"];
    let [base, middle, top] = names.map(|name| directory.join(name));
    // Shorter than the disk: the rest is zeros.
    fs::write(&base, pattern(1, 1 << 20)).unwrap();
    overlay(&middle, "base.raw", "raw");
    overlay(&top, "middle.qcow2", "qcow2");
    (base, middle, top)
}

#[test]
fn a_chain_is_read_through_and_only_its_top_is_written() {
    let directory = TempDir::new().unwrap();
    let (base, middle, top) = chain(directory.path());
    let mut now = pattern(1, 1 << 20);
    now.resize(2 << 20, 0);
    let mut put = |options: &Qcow2Options, at: usize, seed: u8| {
        let disk = open(options);
        assert!(contents(&disk) == now);
        let bytes = pattern(seed, 1536);
        write(&mut *disk.open_queue(4).unwrap(), at as u64, &bytes).unwrap();
        now[at..at + 1536].copy_from_slice(&bytes);
        assert!(contents(&disk) == now);
    };
    put(&on(&middle, &base, BackingFormat::Raw), 70_144, 7);
    let lower = Backing {
        path: base.clone(),
        format: BackingFormat::Raw,
    };
    let whole = on(&top, &middle, BackingFormat::Qcow2(Some(Box::new(lower))));
    let [base_before, middle_before] = [&base, &middle].map(|path| fs::read(path).unwrap());
    // Across the end of the base, and over what the middle has.
    put(&whole, (1 << 20) - 512, 8);
    put(&whole, 70_656, 9);
    let disk = open(&whole);
    let mut queue = disk.open_queue(4).unwrap();
    for (offset, may_unmap) in [(131_072, true), (262_144, false)] {
        let length = 65_536;
        let zero = Operation::WriteZeroes {
            offset,
            length,
            may_unmap,
        };
        run(&mut *queue, zero).unwrap();
        now[offset as usize..(offset + length) as usize].fill(0);
    }
    drop(queue);
    drop(disk);
    assert_sound(&top);
    assert!(seen_by_qemu(&top) == now);
    let unchanged = [&base, &middle].map(|path| fs::read(path).unwrap());
    assert!(unchanged == [base_before, middle_before]);
}

#[test]
fn a_backing_file_that_is_not_named_is_not_opened() {
    let directory = TempDir::new().unwrap();
    let (base, middle, top) = chain(directory.path());
    let error = problem(&Qcow2Options::new(&middle));
    let (path, format) = (base.clone(), Some("raw".to_owned()));
    assert_eq!(error, Qcow2Problem::BackingNotNamed { path, format });
    let text = refused(&Qcow2Options::new(&middle)).to_string();
    let way = format!("\"backing\": {{\"path\": {base:?}, \"format\": \"raw\"}}");
    assert!(text.contains(&way), "{text}");
    // The lower one of a chain is not, either.
    let upper = on(&top, &middle, BackingFormat::Qcow2(None));
    let error = refused(&upper);
    assert_eq!(error.path, middle);
    let not_named = OpenErrorKind::Qcow2(problem(&Qcow2Options::new(&middle)));
    assert_eq!(error.kind, not_named);
    // What an image that somebody else made says may be anything.
    for name in [
        "/etc/passwd",
        "json:{\"driver\":\"nbd\"}",
        "nbd://x",
        "a\"b\n",
    ] {
        overlay(&middle, name, "raw");
        let error = problem(&Qcow2Options::new(&middle));
        assert!(matches!(error, Qcow2Problem::BackingNotNamed { .. }));
    }
}

#[test]
fn what_is_named_and_what_the_image_says_must_be_the_same() {
    let directory = TempDir::new().unwrap();
    let (base, middle, top) = chain(directory.path());
    let other = directory.path().join("other.raw");
    fs::copy(&base, &other).unwrap();
    let path = base.clone();
    assert_eq!(
        problem(&on(&middle, &other, BackingFormat::Raw)),
        Qcow2Problem::BackingIsOther { path }
    );
    let format = "raw".to_owned();
    assert_eq!(
        problem(&on(&middle, &base, BackingFormat::Qcow2(None))),
        Qcow2Problem::BackingFormat { format }
    );
    create(&top, "", 1 << 20);
    let error = problem(&on(&top, &base, BackingFormat::Raw));
    assert_eq!(error, Qcow2Problem::NoBacking);
    // The same file by another way, and one that the image names from the root on.
    let detour = directory.path().join("x/.././base.raw");
    fs::create_dir(directory.path().join("x")).unwrap();
    open(&on(&middle, &detour, BackingFormat::Raw));
    overlay(&middle, base.to_str().unwrap(), "raw");
    open(&on(&middle, &base, BackingFormat::Raw));
}

#[test]
fn a_backing_file_that_says_it_is_qcow2_is_raw_when_it_is_named_so() {
    let directory = TempDir::new().unwrap();
    let (base, middle, _) = chain(directory.path());
    create(&base, "", 1 << 20);
    let bytes = fs::read(&base).unwrap();
    let disk = open(&on(&middle, &base, BackingFormat::Raw));
    assert!(contents(&disk)[..bytes.len()] == bytes);
}

#[test]
fn images_of_a_chain_are_locked() {
    let directory = TempDir::new().unwrap();
    let (base, middle, top) = chain(directory.path());
    let lower = on(&middle, &base, BackingFormat::Raw);
    let in_use = |options: &Qcow2Options, of: &Path| {
        let error = refused(options);
        assert_eq!(error.path, of);
        assert!(matches!(error.kind, OpenErrorKind::InUse { .. }), "{error}");
    };
    let first = open(&lower);
    in_use(&lower, &middle);
    // Its base may be read by others, and not be written.
    let write = Qcow2Options::new(&base);
    in_use(&write, &base);
    overlay(&top, "base.raw", "raw");
    let second = open(&on(&top, &base, BackingFormat::Raw));
    // Nor can what is written be the base of anything, be it of itself.
    for name in ["middle.qcow2", "top.qcow2"] {
        let third = directory.path().join("third.qcow2");
        overlay(&third, name, "raw");
        let path = directory.path().join(name);
        in_use(&on(&third, &path, BackingFormat::Raw), &path);
    }
    drop((first, second));
    overlay(&top, "top.qcow2", "raw");
    in_use(&on(&top, &top, BackingFormat::Raw), &top);
}

#[test]
fn a_chain_has_an_end() {
    let directory = TempDir::new().unwrap();
    let name = |index: usize| directory.path().join(index.to_string());
    create(&name(0), "", 2 << 20);
    let mut backing = None;
    for index in 1..40 {
        overlay(&name(index), &(index - 1).to_string(), "qcow2");
        let lower = Backing {
            path: name(index - 1),
            format: BackingFormat::Qcow2(backing.map(Box::new)),
        };
        let options = Qcow2Options {
            backing: Some(lower.clone()),
            ..Qcow2Options::new(name(index))
        };
        if index < 32 {
            open(&options);
        } else {
            assert_eq!(problem(&options), Qcow2Problem::Chain);
        }
        backing = Some(lower);
    }
}
