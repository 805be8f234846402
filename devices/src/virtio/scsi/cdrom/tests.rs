//! The drive's answers, byte by byte where drivers look at them.

use proptest::prelude::*;

use super::*;

/// 1000 blocks, the last one cut.
const MEDIUM: u64 = 1000 * BLOCK - 1;

fn cdb(bytes: &[u8]) -> Cdb {
    let mut cdb = [0; CDB_LENGTH];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

/// A drive that has nothing to tell before it obeys.
fn settled(medium: Option<u64>) -> Drive {
    let mut drive = Drive::new("cd-1");
    if let Some(bytes) = medium {
        drive.insert(bytes);
    }
    while drive.take_attention().is_some() {}
    drive.news = None;
    drive
}

fn data(drive: &mut Drive, bytes: &[u8]) -> Vec<u8> {
    match drive.execute(&cdb(bytes)) {
        Answer::Data(data) => data,
        other => panic!("{bytes:x?}: {other:x?}"),
    }
}

/// The key, code and qualifier that a command ends with.
fn sense(drive: &mut Drive, bytes: &[u8]) -> [u8; 3] {
    match drive.execute(&cdb(bytes)) {
        Answer::Check(sense) => {
            let sense = sense.bytes();
            [sense[2], sense[12], sense[13]]
        }
        other => panic!("{bytes:x?}: {other:x?}"),
    }
}

fn good(drive: &mut Drive, bytes: &[u8]) {
    assert_eq!(drive.execute(&cdb(bytes)), Answer::Good, "{bytes:x?}");
}

const TEST_UNIT_READY: [u8; 1] = [opcode::TEST_UNIT_READY];
const EVENTS: [u8; 9] = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8];
const EJECT: [u8; 5] = [opcode::START_STOP_UNIT, 0, 0, 0, 2];
const LOAD: [u8; 5] = [opcode::START_STOP_UNIT, 0, 0, 0, 3];

fn lock(drive: &mut Drive, on: bool) {
    let command = opcode::PREVENT_ALLOW_MEDIUM_REMOVAL;
    good(drive, &[command, 0, 0, 0, on.into()]);
}

const NO_MEDIUM: [u8; 3] = [2, 0x3a, 1];
const TRAY_OPEN: [u8; 3] = [2, 0x3a, 2];
const INVALID_FIELD: [u8; 3] = [5, 0x24, 0];
const OUT_OF_RANGE: [u8; 3] = [5, 0x21, 0];
const RESET: [u8; 3] = [6, 0x29, 0];
const INSERTED: [u8; 3] = [6, 0x28, 0];
const REMOVED: [u8; 3] = [6, 0x3a, 0];

#[test]
fn it_says_who_it_is() {
    let mut drive = settled(None);
    let inquiry = data(&mut drive, &[0x12, 0, 0, 0, 255]);
    assert_eq!(inquiry.len(), 36);
    assert_eq!(inquiry[..5], [5, 0x80, 5, 2, 31]);
    assert_eq!(&inquiry[8..32], b"PADDOCK CD-ROM          ");
    assert_eq!(data(&mut drive, &[0x12, 0, 0, 0, 5]), inquiry[..5]);
    let pages = data(&mut drive, &[0x12, 1, 0, 0, 255]);
    assert_eq!(pages, [5, 0, 0, 3, 0, 0x80, 0x83]);
    let serial = data(&mut drive, &[0x12, 1, 0x80, 0, 255]);
    assert_eq!(serial, *b"\x05\x80\x00\x04cd-1");
    let designator = data(&mut drive, &[0x12, 1, 0x83, 0, 255]);
    assert_eq!(designator, *b"\x05\x83\x00\x10\x02\x01\x00\x0cPADDOCK cd-1");
    for wrong in [[0x12, 0, 0x80, 0, 255], [0x12, 1, 0xb0, 0, 255]] {
        assert_eq!(sense(&mut drive, &wrong), INVALID_FIELD);
    }
    let luns = [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16];
    assert_eq!(
        data(&mut drive, &luns),
        [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(sense(&mut drive, &luns[..9]), INVALID_FIELD);
}

#[test]
fn a_unit_that_is_not_there_says_so() {
    let inquiry = execute_without_unit(&cdb(&[0x12, 0, 0, 0, 36]));
    assert!(matches!(inquiry, Answer::Data(data) if data.len() == 36 && data[0] == 0x7f));
    let absent = execute_without_unit(&cdb(&TEST_UNIT_READY));
    assert_eq!(absent, Answer::Check(Sense::NO_UNIT));
}

#[test]
fn what_happened_is_told_once_and_in_order() {
    let mut drive = Drive::new("");
    drive.insert(MEDIUM);
    // These tell it nothing and take nothing away.
    data(&mut drive, &[0x12, 0, 0, 0, 36]);
    data(&mut drive, &EVENTS);
    data(&mut drive, &[0x46, 0, 0, 0, 0, 0, 0, 0, 8]);
    assert_eq!(sense(&mut drive, &TEST_UNIT_READY), RESET);
    assert_eq!(sense(&mut drive, &TEST_UNIT_READY), INSERTED);
    good(&mut drive, &TEST_UNIT_READY);
    drive.insert(MEDIUM);
    let request_sense = [opcode::REQUEST_SENSE, 0, 0, 0, 18];
    assert_eq!(data(&mut drive, &request_sense)[2..13], {
        let mut removed = [0; 11];
        (removed[0], removed[5], removed[10]) = (6, 10, 0x3a);
        removed
    });
    assert_eq!(sense(&mut drive, &TEST_UNIT_READY), INSERTED);
    assert_eq!(data(&mut drive, &request_sense)[2], 0);
    drive.remove();
    assert_eq!(sense(&mut drive, &TEST_UNIT_READY), REMOVED);
    assert_eq!(sense(&mut drive, &TEST_UNIT_READY), NO_MEDIUM);
    drive.reset();
    assert_eq!(sense(&mut drive, &TEST_UNIT_READY), RESET);
    assert_eq!(sense(&mut drive, &TEST_UNIT_READY), NO_MEDIUM);
}

#[test]
fn media_events_are_told_to_those_who_ask() {
    let mut drive = settled(Some(MEDIUM));
    let event = |drive: &mut Drive| data(drive, &EVENTS)[4..6].to_vec();
    assert_eq!(data(&mut drive, &EVENTS), [0, 6, 4, 0x10, 0, 2, 0, 0]);
    drive.request_eject();
    let short = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 4];
    assert_eq!(data(&mut drive, &short).len(), 4);
    assert_eq!(event(&mut drive), [1, 2], "not lost on who had no room");
    assert_eq!(event(&mut drive), [0, 2]);
    drive.remove();
    assert_eq!(event(&mut drive), [3, 0]);
    drive.insert(MEDIUM);
    assert_eq!(event(&mut drive), [2, 2]);
    let others = [0x4a, 1, 0, 0, 0x4e, 0, 0, 0, 8];
    assert_eq!(data(&mut drive, &others), [0, 2, 0x80, 0x10]);
    let asynchronous = [0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8];
    assert_eq!(sense(&mut drive, &asynchronous), INVALID_FIELD);
}

#[test]
fn the_guest_ejects_and_loads_unless_it_has_locked_the_tray() {
    let mut drive = settled(Some(MEDIUM));
    lock(&mut drive, true);
    assert_eq!(sense(&mut drive, &EJECT), [5, 0x53, 2]);
    good(&mut drive, &TEST_UNIT_READY);
    lock(&mut drive, false);
    good(&mut drive, &EJECT);
    assert_eq!(sense(&mut drive, &TEST_UNIT_READY), TRAY_OPEN);
    assert_eq!(data(&mut drive, &EVENTS)[4..6], [3, 1]);
    // It stays open over a reset, and the medium in it.
    drive.reset();
    assert_eq!(sense(&mut drive, &TEST_UNIT_READY), RESET);
    assert_eq!(sense(&mut drive, &TEST_UNIT_READY), TRAY_OPEN);
    good(&mut drive, &LOAD);
    good(&mut drive, &TEST_UNIT_READY);
    assert_eq!(data(&mut drive, &EVENTS)[4..6], [2, 2]);
    // A motor that stops ejects nothing.
    good(&mut drive, &[opcode::START_STOP_UNIT, 0, 0, 0, 0x30]);
    good(&mut drive, &[opcode::START_STOP_UNIT]);
    good(&mut drive, &TEST_UNIT_READY);
    // The owner's medium closes an open tray.
    good(&mut drive, &EJECT);
    drive.insert(2 * MEDIUM);
    assert_eq!(sense(&mut drive, &TEST_UNIT_READY), INSERTED);
    good(&mut drive, &TEST_UNIT_READY);
}

#[test]
fn a_reset_and_a_forced_removal_unlock_the_tray() {
    let mut drive = settled(Some(MEDIUM));
    lock(&mut drive, true);
    drive.reset();
    assert!(!drive.looks().locked);
    lock(&mut settled(None), true);
    let mut drive = settled(Some(MEDIUM));
    lock(&mut drive, true);
    drive.remove();
    assert!(!drive.looks().locked);
}

#[test]
fn reads_stay_on_the_medium() {
    let mut drive = settled(Some(MEDIUM));
    let read = |first, blocks| Answer::Read { first, blocks };
    for (command, answer) in [
        (&[0x08, 0, 0, 7, 1][..], read(7, 1)),
        (&[0x08, 0xe0, 0, 0, 0], read(0, 256)),
        (&[0x28, 0, 0, 0, 3, 0xe7, 0, 0, 1], read(999, 1)),
        (&[0x28, 0, 0, 0, 0, 0, 0, 3, 0xe8], read(0, 1000)),
        (&[0x28, 0, 0, 0, 3, 0xe8, 0, 0, 0], Answer::Good),
        (&[0xa8, 0, 0, 0, 0, 1, 0, 0, 3, 0xe7], read(1, 999)),
    ] {
        assert_eq!(drive.execute(&cdb(command)), answer, "{command:x?}");
    }
    for command in [
        &[0x08, 0x1f, 0xff, 0xff, 1][..],
        &[0x28, 0, 0, 0, 3, 0xe8, 0, 0, 1],
        &[0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff],
        &[
            0xa8, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0,
        ],
        &[0xa8, 0, 0, 0, 0, 1, 0, 0, 3, 0xe8],
    ] {
        assert_eq!(sense(&mut drive, command), OUT_OF_RANGE, "{command:x?}");
    }
    let capacity = data(&mut drive, &[0x25]);
    assert_eq!(capacity, [0, 0, 3, 0xe7, 0, 0, 8, 0]);
    // Larger than its number of blocks has bits.
    let mut drive = settled(Some(u64::MAX));
    assert_eq!(data(&mut drive, &[0x25])[..4], [0xff; 4]);
}

#[test]
fn the_table_of_contents_has_one_data_track() {
    let mut drive = settled(Some(MEDIUM));
    let toc = [0x43, 0, 0, 0, 0, 0, 0, 0, 255];
    let one = [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0];
    let end = [0, 0x14, 0xaa, 0, 0, 0, 3, 0xe8];
    assert_eq!(data(&mut drive, &toc), [&one[..], &end].concat());
    let msf = data(&mut drive, &[0x43, 2, 0, 0, 0, 0, 0, 0, 255]);
    // 150 frames are two seconds; 1150 are 15 and 25 frames.
    assert_eq!(msf[8..12], [0, 0, 2, 0]);
    assert_eq!(msf[16..], [0, 0, 15, 25]);
    let lead_out = data(&mut drive, &[0x43, 0, 0, 0, 0, 0, 0xaa, 0, 255]);
    assert_eq!(lead_out, [&[0, 10, 1, 1][..], &end].concat());
    let sessions = [0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0];
    // By the field of today's drivers, and by that of old ones.
    for command in [
        &[0x43, 0, 1, 0, 0, 0, 0, 0, 255][..],
        &[0x43, 0, 0, 0, 0, 0, 0, 0, 255, 0x40],
    ] {
        assert_eq!(data(&mut drive, command), sessions);
    }
    let raw = data(&mut drive, &[0x43, 2, 2, 0, 0, 0, 1, 0, 255]);
    assert_eq!(raw.len(), 4 + 4 * 11);
    assert_eq!(raw[..4], [0, 46, 1, 1]);
    assert_eq!(raw[26..37], [1, 0x14, 0, 0xa2, 0, 0, 0, 0, 0, 15, 25]);
    for wrong in [
        [0x43, 0, 0, 0, 0, 0, 2, 0, 255],
        [0x43, 0, 5, 0, 0, 0, 0, 0, 255],
    ] {
        assert_eq!(sense(&mut drive, &wrong), INVALID_FIELD);
    }
    // A place that cannot be written in minutes.
    let mut drive = settled(Some(8 << 30));
    let msf = data(&mut drive, &[0x43, 2, 0, 0, 0, 0, 0, 0, 255]);
    assert_eq!(msf[16..], [0, 255, 59, 74]);
}

#[test]
fn disc_and_track_are_whole() {
    let mut drive = settled(Some(MEDIUM));
    let disc = data(&mut drive, &[0x51, 0, 0, 0, 0, 0, 0, 0, 255]);
    assert_eq!(
        (disc.len(), &disc[..8]),
        (34, &[0, 32, 0x0e, 1, 1, 1, 1, 0x20][..])
    );
    for (kind, number) in [(0, 999_u16), (1, 1), (2, 1)] {
        let [high, low] = number.to_be_bytes();
        let track = data(&mut drive, &[0x52, kind, 0, 0, high, low, 0, 0, 255]);
        assert_eq!((track.len(), track[1], track[5]), (36, 34, 4));
        assert_eq!(track[24..32], [0, 0, 3, 0xe8, 0, 0, 3, 0xe7]);
    }
    for (kind, number) in [(0, 1000_u16), (1, 2), (2, 0), (3, 1)] {
        let [high, low] = number.to_be_bytes();
        let command = [0x52, kind, 0, 0, high, low, 0, 0, 255];
        assert_eq!(sense(&mut drive, &command), INVALID_FIELD);
    }
}

#[test]
fn features_follow_the_medium() {
    let get = |drive: &mut Drive, kind, from| data(drive, &[0x46, kind, 0, from, 0, 0, 0, 1, 0]);
    let codes = |data: &[u8]| {
        let (mut codes, mut at) = (Vec::new(), 8);
        while at < data.len() {
            codes.push((data[at + 1], data[at + 2] & 1));
            at += 4 + usize::from(data[at + 3]);
        }
        assert_eq!(at, data.len());
        assert_eq!(usize::from(data[3]), data.len() - 4);
        codes
    };
    for (medium, profile, random, cd, dvd) in [
        (None, 0, 0, 0, 0),
        (Some(MEDIUM), 8, 1, 1, 0),
        (Some(4 << 30), 0x10, 1, 0, 1),
    ] {
        let mut drive = settled(medium);
        let all = get(&mut drive, 0, 0);
        assert_eq!(all[7], profile);
        let known = [
            (0, 1),
            (1, 1),
            (2, 1),
            (3, 1),
            (0x10, random),
            (0x1e, cd),
            (0x1f, dvd),
        ];
        assert_eq!(codes(&all), known);
        let current = codes(&get(&mut drive, 1, 2));
        let expected = known
            .into_iter()
            .filter(|(code, on)| *code >= 2 && *on == 1);
        assert!(current.into_iter().eq(expected));
        assert_eq!(codes(&get(&mut drive, 2, 3)), [(3, 1)]);
        assert_eq!(codes(&get(&mut drive, 2, 0x99)), []);
        let command = [0x46, 3, 0, 0, 0, 0, 0, 1, 0];
        assert_eq!(sense(&mut drive, &command), INVALID_FIELD);
    }
}

#[test]
fn mode_pages_say_what_it_can() {
    let mut drive = settled(None);
    let six = data(&mut drive, &[0x1a, 0, 0x2a, 0, 255]);
    assert_eq!((six.len(), &six[..6]), (26, &[25, 0, 0, 0, 0x2a, 20][..]));
    // No writing, no audio; a tray that ejects.
    assert_eq!(six[6..12], [0x1b, 0, 0x40, 0, 0x29, 0]);
    lock(&mut drive, true);
    let ten = data(&mut drive, &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 255]);
    assert_eq!((ten.len(), ten[1], ten[14]), (30, 28, 0x2b));
    let all = data(&mut drive, &[0x5a, 0, 0x3f, 0xff, 0, 0, 0, 0, 255]);
    assert_eq!(all.len(), 8 + 12 + 16 + 12 + 22);
    let changeable = data(&mut drive, &[0x1a, 0, 0x6a, 0, 255]);
    assert!(changeable[6..].iter().all(|byte| *byte == 0));
    assert_eq!(sense(&mut drive, &[0x1a, 0, 0xea, 0, 255]), [5, 0x39, 0]);
    assert_eq!(sense(&mut drive, &[0x1a, 0, 0x08, 0, 255]), INVALID_FIELD);
    assert_eq!(sense(&mut drive, &[0x1a, 0, 0x2a, 1, 255]), INVALID_FIELD);
}

#[test]
fn without_a_medium_there_is_nothing_to_be_read() {
    let mut drive = settled(None);
    for code in [0x00, 0x08, 0x25, 0x28, 0x43, 0x51, 0x52, 0xa8] {
        assert_eq!(sense(&mut drive, &[code]), NO_MEDIUM, "{code:x}");
    }
    for code in [0x35, 0x1d] {
        good(&mut drive, &[code]);
    }
    let status = data(&mut drive, &[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8]);
    assert_eq!(status[1], 0);
    good(&mut drive, &EJECT);
    let status = data(&mut drive, &[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8]);
    assert_eq!(status[1], 0x10);
    // Writing, formatting, playing, reservations, what is not in any book.
    for code in [0x04, 0x0a, 0x16, 0x2a, 0x45, 0x55, 0x9e, 0xa1, 0xff] {
        assert_eq!(sense(&mut drive, &[code]), [5, 0x20, 0], "{code:x}");
    }
}

proptest! {
    #[test]
    fn answers_are_bounded_whatever_is_asked(
        medium in proptest::option::of(any::<u64>()),
        commands in proptest::collection::vec(any::<Cdb>(), 1..40),
    ) {
        let mut drive = settled(medium.map(|bytes| bytes.max(1)));
        for cdb in commands {
            match drive.execute(&cdb) {
                Answer::Data(data) => prop_assert!((1..=256).contains(&data.len())),
                Answer::Read { first, blocks } => {
                    prop_assert!(blocks > 0);
                    prop_assert!(first + blocks <= medium.unwrap_or(0).div_ceil(BLOCK));
                }
                Answer::Good | Answer::Check(_) => {}
            }
            execute_without_unit(&cdb);
        }
    }
}
