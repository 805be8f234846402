//! Images that grow while they are in use.

use super::*;
use crate::ResizeError;

const SIZE: u64 = 1 << 20;

fn is_outside(queue: &mut dyn DiskQueue, offset: u64) -> bool {
    let buffer = Buffer::zeroed(512);
    run(queue, Operation::Read { offset, buffer }) == Err(IoError::OutOfRange)
}

#[test]
fn a_file_grows_on_request_and_queues_that_are_open_see_it() {
    for directory in directories() {
        for engine in ENGINES {
            let path = image(directory.path(), SIZE);
            let disk = open_image(&path, engine, Direct::Auto);
            let mut queue = open_queue(&disk, 8, false);
            let buffer = Buffer::from(vec![5; 512]);
            let offset = SIZE - 512;
            run(&mut *queue, Operation::Write { offset, buffer }).unwrap();
            assert!(is_outside(&mut *queue, SIZE));
            assert_eq!(disk.resize(Some(2 * SIZE)).unwrap(), 2 * SIZE);
            assert_eq!(
                (disk.size(), disk.capabilities().size),
                (2 * SIZE, 2 * SIZE)
            );
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * SIZE);
            let bytes = read(&mut *queue, SIZE - 512, &[1024], 0);
            assert_eq!(
                (&bytes[..512], &bytes[512..]),
                (&[5; 512][..], &[0; 512][..])
            );
            assert!(is_outside(&mut *queue, 2 * SIZE));
            let buffer = Buffer::from(vec![6; 512]);
            let offset = 2 * SIZE - 512;
            run(&mut *queue, Operation::Write { offset, buffer }).unwrap();
        }
    }
}

#[test]
fn a_file_that_was_grown_on_the_host_is_as_large_as_it_is_told_to_look() {
    let directory = &directories()[0];
    let path = image(directory.path(), SIZE);
    let disk = open_image(&path, Engine::Auto, Direct::Auto);
    let mut queue = open_queue(&disk, 8, false);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    // Not a whole block at the end.
    file.set_len(2 * SIZE + 100).unwrap();
    assert!(is_outside(&mut *queue, SIZE), "it was not told yet");
    assert_eq!(disk.resize(None).unwrap(), 2 * SIZE);
    assert!(!is_outside(&mut *queue, SIZE));
    assert_eq!(disk.resize(None).unwrap(), 2 * SIZE, "there is nothing new");
}

#[test]
fn a_disk_never_shrinks() {
    let directory = &directories()[0];
    let path = image(directory.path(), SIZE);
    let disk = open_image(&path, Engine::Auto, Direct::Auto);
    let error = disk.resize(Some(SIZE / 2)).unwrap_err();
    assert!(
        error.to_string().contains("cannot shrink to 524288"),
        "{error}"
    );
    let error = disk.resize(Some(SIZE + 100)).unwrap_err();
    assert!(
        matches!(error, ResizeError::Block { block: 512 }),
        "{error}"
    );
    let error = disk.resize(Some(u64::MAX - 511)).unwrap_err();
    assert!(matches!(error, ResizeError::Io(_)), "{error}");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(SIZE / 2).unwrap();
    assert!(matches!(
        disk.resize(None),
        Err(ResizeError::Smaller { .. })
    ));
    assert_eq!(disk.size(), SIZE);
    // And it does not throw away what somebody else has added.
    file.set_len(4 * SIZE).unwrap();
    assert_eq!(disk.resize(Some(2 * SIZE)).unwrap(), 2 * SIZE);
    assert_eq!(file.metadata().unwrap().len(), 4 * SIZE);
}

#[test]
fn a_read_only_image_is_grown_by_others_and_a_padded_one_not_at_all() {
    let directory = &directories()[0];
    let path = image(directory.path(), SIZE + 1);
    let options = RawOptions {
        read_only: true,
        pad: true,
        ..RawOptions::new(&path)
    };
    let padded = RawDisk::open(&options).unwrap();
    assert!(matches!(padded.resize(None), Err(ResizeError::Unsupported)));
    drop(padded);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(SIZE).unwrap();
    let disk = RawDisk::open(&options).unwrap();
    let error = disk.resize(Some(2 * SIZE)).unwrap_err();
    assert!(matches!(error, ResizeError::ReadOnly), "{error}");
    file.set_len(2 * SIZE).unwrap();
    assert_eq!(disk.resize(Some(2 * SIZE)).unwrap(), 2 * SIZE);
}
