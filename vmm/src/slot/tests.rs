//! The place for a VM, with VMs that cannot be built.

use std::path::Path;

use paddock_api::journal::Delivery;
use paddock_api::metrics::Snapshot;
use paddock_api::resource::{EndReason, VmState};
use serde_json::json;

use super::*;

/// A VM that cannot be built, with or without KVM.
fn spec(serial: &Path) -> VmSpec {
    let spec = json!({"name": "web", "boot": {"kernel": "/absent"}, "console": {"serial": {"file": serial}}});
    VmSpec::from_json(&spec.to_string()).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let result = runtime.block_on(future);
    runtime.shutdown_background();
    result
}

#[test]
fn one_vm_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    block_on(async {
        let slot = VmSlot::default();
        assert_eq!(slot.read(), None);
        assert_eq!(slot.act(Action::Reset), Err(Refusal::NoVm));
        assert_eq!(slot.delete().await, Err(Refusal::NoVm));

        let vm = slot.create(spec(&log)).unwrap();
        assert_eq!((vm.state, vm.last_event), (VmState::Starting, 1));
        assert_eq!(vm.spec.name.as_deref(), Some("web"));
        assert_eq!(slot.create(spec(&log)), Err(Refusal::Exists));
        let refused = Refusal::WrongState {
            action: Action::Nmi,
            state: VmState::Starting,
        };
        assert_eq!(slot.act(Action::Nmi), Err(refused));

        slot.vm().unwrap().ended().await;
        let vm = slot.read().unwrap();
        assert_eq!((vm.state, vm.last_event), (VmState::Ended, 2));
        assert_eq!(vm.end.unwrap().reason, EndReason::Failed);
        assert!(log.exists(), "consoles are opened first");
        assert_eq!(slot.create(spec(&log)), Err(Refusal::Exists));

        assert_eq!(slot.delete().await, Ok(()));
        assert_eq!(slot.read(), None);
        slot.create(spec(&log)).unwrap();
        slot.close();
        assert_eq!(slot.create(spec(&log)), Err(Refusal::Exists));
        assert_eq!(slot.delete().await, Ok(()));
        assert_eq!(slot.create(spec(&log)), Err(Refusal::Ending));
    });
}

#[test]
fn a_console_that_cannot_be_had_is_the_vms_end_with_its_place() {
    block_on(async {
        let slot = VmSlot::default();
        let mut follower = slot.journal().follow(Some(0));
        slot.create(spec(Path::new("/absent/log"))).unwrap();
        slot.vm().unwrap().ended().await;
        let end = slot.read().unwrap().end.unwrap();
        assert_eq!(end.pointer.as_deref(), Some("/console/serial"));
        let detail = end.detail.clone().unwrap();
        assert!(
            detail.starts_with("console output to /absent/log: No such file"),
            "{detail}"
        );
        slot.delete().await.unwrap();
        let name = Some("web".to_owned());
        for expected in [
            EventKind::Created { name },
            EventKind::Ended { end },
            EventKind::Deleted,
        ] {
            let event = follower.next().await.unwrap();
            assert!(
                matches!(&event, Delivery::Event(event) if event.kind == expected),
                "{event:?}, not {expected:?}"
            );
        }
    });
}

#[test]
fn a_delete_goes_on_if_nobody_waits_and_two_are_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    block_on(async {
        let slot = VmSlot::default();
        slot.create(spec(&log)).unwrap();
        drop(slot.delete());
        let (one, other) = tokio::join!(slot.delete(), slot.delete());
        assert_eq!((one, other), (Ok(()), Ok(())));
        assert_eq!(slot.read(), None);
        // Created, ended, deleted: once each.
        assert_eq!(slot.journal().last(), 3);
    });
}

#[test]
fn metrics_are_there_in_every_state() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    block_on(async {
        let slot = VmSlot::default();
        let read = || async {
            let text = slot.metrics().await.into_text();
            Snapshot::parse(&text).unwrap()
        };
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let none = read().await;
        assert_eq!(none.value("paddock_build_info", &version), Some(1.0));
        assert!(none.value("paddock_process_resident_memory_bytes", &[]) > Some(1e6));
        assert_eq!(none.value("paddock_vm_resets_total", &[]), None);

        slot.create(spec(&log)).unwrap();
        let starting = read().await;
        assert_eq!(
            starting.value("paddock_vm_info", &[("name", "web")]),
            Some(1.0)
        );
        assert_eq!(starting.value("paddock_vm_resets_total", &[]), Some(0.0));
        let created = [("step", "vm_created")];
        assert!(starting.value("paddock_boot_timeline_seconds", &created) > Some(0.0));
        slot.vm().unwrap().ended().await;
        let ended = read().await;
        let state = |state| ended.value("paddock_vm_state", &[("state", state)]);
        assert_eq!((state("ended"), state("running")), (Some(1.0), Some(0.0)));
        let exits = [("vcpu", "0"), ("kind", "mmio-read")];
        assert_eq!(ended.value("paddock_vcpu_exits_total", &exits), Some(0.0));

        slot.delete().await.unwrap();
        assert_eq!(read().await.value("paddock_vm_resets_total", &[]), None);
    });
}

#[test]
fn the_timeline_begins_with_the_vm() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    block_on(async {
        let slot = VmSlot::default();
        let first = slot.create(spec(&log)).unwrap().timeline;
        assert!(first.vm_created_us.is_some() && first.machine_built_us.is_none());
        slot.delete().await.unwrap();
        let second = slot.create(spec(&log)).unwrap().timeline;
        assert!(second.vm_created_us > first.vm_created_us);
        assert_eq!(second.process_started_ms, first.process_started_ms);
        slot.delete().await.unwrap();
    });
}

#[test]
fn a_place_that_is_held_takes_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    block_on(async {
        let (slot, vm, driver) = VmSlot::holding(spec(&log), Box::new(open_consoles));
        assert_eq!(slot.create(spec(&log)), Err(Refusal::Exists));
        let deleted = slot.delete();
        let (outcome, deleted) = tokio::join!(driver.run(), deleted);
        assert!(matches!(outcome, Ok(Outcome::Stopped) | Err(_)));
        assert_eq!((deleted, vm.state()), (Ok(()), VmState::Ended));
        assert_eq!(slot.create(spec(&log)), Err(Refusal::Ending));
    });
}
