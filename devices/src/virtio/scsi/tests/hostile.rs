//! What no driver does.

use proptest::prelude::*;

use super::*;

#[test]
fn sizes_that_the_driver_chose_are_used() {
    let mut machine = Machine::with(&disk(10 * BLOCK));
    // CDBs of 16 bytes, and no sense data at all.
    machine.device.write_config(20, &0_u32.to_le_bytes());
    machine.device.write_config(24, &16_u32.to_le_bytes());
    let mut command = [0; 19 + 16];
    command[..8].copy_from_slice(&DRIVE);
    command[19..29].copy_from_slice(&read(3, 1));
    machine.requests.add_bytes(&[&command], &[12 + BLOCK]);
    machine.requests.kick();
    let used = machine.requests.wait_used().written;
    assert_eq!((used.len(), used[12]), (12 + BLOCK, fill(3)));
    command[19] = 0xff;
    machine.requests.add_bytes(&[&command], &[12]);
    machine.requests.kick();
    let used = machine.requests.wait_used().written;
    assert_eq!((used[10], &used[..4]), (2, &[0; 4][..]));
}

#[test]
fn commands_for_nobody_are_refused() {
    let mut machine = Machine::with(&disk(10 * BLOCK));
    for (address, response, check) in [
        ([1, 0, 0x40, 0, 0, 0, 0, 0], 0, None),
        ([1, 0, 0x40, 1, 0, 0, 0, 0], 0, Some([5, 0x25, 0])),
        ([1, 0, 0xc1, 1, 0, 0, 0, 0], 0, Some([5, 0x25, 0])),
        ([1, 0, 0, 0, 0, 0, 0, 1], 0, Some([5, 0x25, 0])),
        ([1, 1, 0, 0, 0, 0, 0, 0], 3, None),
        ([0, 0, 0, 0, 0, 0, 0, 0], 3, None),
        ([0xff; 8], 3, None),
    ] {
        let mut header = [0; 51];
        header[..8].copy_from_slice(&address);
        machine.requests.add_bytes(&[&header], &[RESPONSE]);
        machine.requests.kick();
        let reply = Reply::of(machine.requests.wait_used());
        assert_eq!(
            (reply.response, reply.check),
            (response, check),
            "{address:x?}"
        );
    }
    // Not all of a command.
    for length in [1, 18, 50] {
        machine.requests.add(&[length], &[RESPONSE]);
        machine.requests.kick();
        assert_eq!(Reply::of(machine.requests.wait_used()).response, 9);
    }
    machine.requests.add(&[], &[RESPONSE]);
    machine.requests.kick();
    assert_eq!(Reply::of(machine.requests.wait_used()).response, 9);
}

#[test]
fn data_that_does_not_fit_is_an_overrun() {
    let mut machine = Machine::with(&disk(10 * BLOCK));
    let short = machine.run(&read(0, 2), 2 * BLOCK - 1);
    assert_eq!((short.response, short.data.len()), (1, 0));
    assert_eq!(u64::from(short.residual), 2 * BLOCK as u64 - 1);
    let short = machine.run(&[0x12, 0, 0, 0, 36], 5);
    assert_eq!((short.response, short.data), (1, vec![5, 0x80, 5, 2, 31]));
    assert_eq!(machine.run(&read(0, 1), 0).response, 1);
}

#[test]
fn a_chain_without_room_for_the_answer_breaks_the_device() {
    for (queue, readable, writable) in [(2, 51, RESPONSE - 1), (2, 51, 0), (0, 24, 0), (0, 0, 0)] {
        let mut machine = Machine::with(&disk(10 * BLOCK));
        let driver = match queue {
            0 => &mut machine.control,
            _ => &mut machine.requests,
        };
        // One byte more to be read, lest there is no descriptor at all.
        let writable: &[usize] = if writable == 0 { &[] } else { &[writable] };
        driver.add(&[readable + 1], writable);
        driver.kick();
        machine.guest.wait_broken();
        machine.stop();
    }
    let mut machine = Machine::with(&disk(10 * BLOCK));
    machine.notifications(2, 16);
    machine.events.add(&[], &[15]);
    machine.handle.eject(false).unwrap();
    machine.guest.wait_broken();
}

#[test]
fn a_head_that_is_on_its_way_cannot_be_used_again() {
    let disk = disk(10 * BLOCK);
    let mut machine = Machine::with(&disk);
    disk.script([Fault::Stuck]);
    machine.send(&read(0, 1), BLOCK);
    wait_for("the read", || (machine.manage(7, 0) == 10).then_some(()));
    // The same entry of the ring once more.
    machine.requests.publish_again();
    machine.requests.kick();
    machine.guest.wait_broken();
    machine.stop();
}

#[test]
fn control_requests_of_any_kind_are_answered() {
    let mut machine = Machine::with(&disk(10 * BLOCK));
    // Unknown, cut short, empty.
    assert_eq!(machine.control(&[9, 0, 0, 0], 1), [11]);
    assert_eq!(machine.control(&[0; 23], 1), [11]);
    assert_eq!(machine.control(&[1, 0, 0, 0, 1, 0, 0, 0], 5), [11]);
    assert_eq!(machine.control(&[0], 1), [11]);
    // For another unit, and another target.
    let mut function = [0; 24];
    (function[4], function[8], function[11]) = (5, 1, 1);
    assert_eq!(machine.control(&function, 1), [12]);
    function[9] = 1;
    assert_eq!(machine.control(&function, 1), [3]);
    assert!(machine.read(0, 1).is_blocks(0, 1));
}

#[test]
fn rings_of_garbage_break_the_device_and_nothing_else() {
    let mut machine = Machine::with(&disk(10 * BLOCK));
    machine.requests.scribble(&[0x5a; 4096]);
    machine.requests.kick();
    machine.guest.wait_broken();
    machine.stop();
    machine.device.reset();
    let again = machine.guest.queue(2, 16);
    machine.device.start_queue(2, again.resources(0)).unwrap();
    machine.requests = again;
    assert_eq!(machine.run(&[0], 0).check, Some([6, 0x29, 0]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_request_is_answered_once(
        requests in proptest::collection::vec(
            (any::<[u8; 16]>(), any::<bool>(), 0_usize..5000, 0_usize..60),
            1..30,
        ),
    ) {
        const USUAL: [u8; 8] = [0x00, 0x12, 0x28, 0x43, 0x46, 0x1b, 0xa8, 0x08];
        let mut machine = Machine::with(&disk(64 * BLOCK));
        for (mut cdb, usual, room, length) in requests {
            if usual {
                cdb[0] = USUAL[usize::from(cdb[0]) % USUAL.len()];
            }
            let mut header = [0; 60];
            header[..8].copy_from_slice(&DRIVE);
            header[19..35].copy_from_slice(&cdb);
            let readable = [&header[..length]];
            let readable = if length == 0 { &[][..] } else { &readable };
            machine.requests.add_bytes(readable, &[RESPONSE + room]);
            machine.requests.kick();
            let reply = Reply::of(machine.requests.wait_used());
            prop_assert!(reply.data.len() <= room);
            prop_assert_eq!(reply.response == 9, length < 51);
        }
        prop_assert_eq!(machine.guest.broken(), None);
        prop_assert!(machine.requests.try_used().is_none());
    }
}
