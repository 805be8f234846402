//! Volumes that are opened again after all replicas have failed, and what queues of before are worth then.

use super::*;

use Mode::ReadWrite;

fn write(queue: &mut dyn DiskQueue, value: u8) -> Result<(), IoError> {
    let buffer = Buffer::from(vec![value; 4096]);
    run(queue, Operation::Write { offset: 0, buffer })
}

#[test]
fn a_queue_of_before_does_not_write_to_a_new_replica_alone() {
    let mut set = Set::holding(1, 2);
    let volume = set.open();
    let mut old = volume.open_queue(4).expect("a queue");
    assert_eq!(write(&mut *old, 3), Ok(()));
    let member = &volume.control.shared.members()[0];
    volume.control.shared.fail(member, "it died");
    set.replicas[0].restart();
    volume.reopen().expect("opened again");
    let new = set.add();
    // These replicas transfer no more than names.
    new.change(|state| state.bytes.fill(3));
    volume.add_replica(new.address.clone()).expect("rebuilt");
    assert_eq!(modes(&volume), [ReadWrite; 2]);
    assert_eq!(write(&mut *old, 9), Err(IoError::Os(libc::EIO)));
    assert_eq!(read(&volume), [3]);
    let mut queue = volume.open_queue(4).expect("a queue");
    assert_eq!(write(&mut *queue, 4), Ok(()));
    for replica in &set.replicas {
        assert_eq!(replica.state().bytes[0], 4);
    }
}
