//! All families of a VM with one of each device.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use paddock_api::metrics::{FamilyKind, Snapshot};
use paddock_api::spec::{DiskLimits, OnError, VmSpec};
use paddock_devices::virtio::scsi::CdromHandle;
use paddock_devices::virtio::{blk, net, rng};
use paddock_storage::testing::{Fault, MemoryDisk};
use paddock_storage::{IoError, Operation, Request};

use super::*;
use crate::balloon::Balloon;
use crate::disks::Disks;
use crate::growth::Growth;
use crate::metrics::Share;
use crate::processors::Processors;

/// All families that a VM with one of each device has.
fn everything() -> Snapshot {
    let spec = r#"{"boot": {"kernel": "/k"}, "cpus": {"count": 2, "max": 4}, "balloon": {"size": "8MiB"}, "memory": {"max": "1GiB"}}"#;
    let spec = VmSpec::from_json(spec).unwrap();
    let meters = Arc::new(Meters::new(&spec));
    let disk = || DeviceMeter::Disk(Arc::new(blk::Counters::new(2)));
    meters.attach(
        DeviceKey::Disk("root".to_owned()),
        Arc::default(),
        Some(disk()),
    );
    meters.attach(
        DeviceKey::Disk("data".to_owned()),
        Arc::default(),
        Some(disk()),
    );
    let drive = DeviceMeter::Cdrom(CdromHandle::new("cd", || ()));
    let key = DeviceKey::Cdrom("cd".to_owned());
    meters.attach(key, Arc::default(), Some(drive));
    let nic = DeviceMeter::Nic(Arc::new(net::Counters::new(2)));
    meters.attach(DeviceKey::Nic("nic0".to_owned()), Arc::default(), Some(nic));
    let port = |name: &str| (name.to_owned(), Arc::default());
    let ports = ["", "serial", "org.qemu.guest_agent.0"].map(port);
    let console = DeviceMeter::Console(ports.into());
    meters.attach(DeviceKey::Console, Arc::default(), Some(console));
    let entropy = DeviceMeter::Rng(Arc::<rng::Counters>::default());
    meters.attach(DeviceKey::Rng, Arc::default(), Some(entropy));
    meters.attach(DeviceKey::Balloon, Arc::new(AtomicU64::new(7)), None);
    meters.times.machine_built.set();
    let mut to = Exposition::default();
    let sample = Sample {
        cpu: Some((Duration::from_millis(1230), Duration::from_millis(10))),
        resident: Some(1),
        threads: Some(2),
        open_fds: Some(3),
        max_fds: None,
        share: Some(Share {
            guest: 4,
            overhead: 5,
        }),
    };
    describe_process(&mut to, Some(&sample));
    describe_timeline(&mut to, &meters.times.timeline());
    describe_vcpus(&mut to, &meters);
    describe_devices(&mut to, &meters);
    disks::describe_open(&mut to, &open_disks());
    describe_cpus(&mut to, &Processors::new(&spec).status());
    describe_memory(&mut to, &Growth::new(&spec).status());
    describe_balloon(&mut to, &Balloon::new(&spec).unwrap().status());
    let variables = VarsStatus {
        unsaved: true,
        error: None,
        writes: 3,
        failures: 2,
    };
    describe_variables(&mut to, &variables);
    Snapshot::parse(&to.into_text()).unwrap()
}

/// One that holds what fails, and one that does not.
fn open_disks() -> Disks {
    let disks = Disks::nowhere();
    for (id, on_error) in [("held", OnError::Stop), ("plain", OnError::Report)] {
        let memory = MemoryDisk::new(4096);
        memory.script([Fault::Error(IoError::Os(5))]);
        let disk = disks.opened(id, Arc::new(memory), None, on_error, DiskLimits::default());
        let mut queue = disk.backend().open_queue(1).unwrap();
        let operation = Operation::Flush;
        queue.submit(Request { tag: 0, operation });
        queue.kick();
        queue.reap(&mut Vec::new());
        disks.attach(&disk);
        // What it holds goes with the queue, its failure stays.
    }
    disks
}

#[test]
fn disks_that_are_open_tell_their_size_and_how_they_fail() {
    let all = everything();
    let value = |name, disk| all.value(name, &[("disk", disk)]);
    for disk in ["held", "plain"] {
        assert_eq!(value("paddock_disk_size_bytes", disk), Some(4096.0));
    }
    assert_eq!(value("paddock_disk_held_requests", "held"), Some(0.0));
    assert!(value("paddock_disk_failing_since_seconds", "held") > Some(1.6e9));
    assert_eq!(value("paddock_disk_host_errors_total", "held"), Some(1.0));
    assert_eq!(value("paddock_disk_held_requests", "plain"), None);
}

#[test]
fn each_device_has_its_series() {
    let all = everything();
    for (name, labels, value) in [
        (
            "paddock_process_cpu_seconds_total",
            vec![("mode", "user")],
            1.23,
        ),
        ("paddock_process_overhead_memory_bytes", vec![], 5.0),
        ("paddock_guest_resident_memory_bytes", vec![], 4.0),
        (
            "paddock_vcpu_exits_total",
            vec![("vcpu", "1"), ("kind", "port-write")],
            0.0,
        ),
        (
            "paddock_disk_requests_total",
            vec![("disk", "data"), ("queue", "1"), ("kind", "write-zeroes")],
            0.0,
        ),
        (
            "paddock_disk_request_duration_seconds_count",
            vec![("disk", "root"), ("kind", "read")],
            0.0,
        ),
        (
            "paddock_nic_transmit_bytes_total",
            vec![("nic", "nic0"), ("queue", "1")],
            0.0,
        ),
        (
            "paddock_console_input_bytes_total",
            vec![("console", "hvc0")],
            0.0,
        ),
        (
            "paddock_port_output_bytes_total",
            vec![("port", "serial")],
            0.0,
        ),
        ("paddock_cdrom_read_bytes_total", vec![("cdrom", "cd")], 0.0),
        ("paddock_cdrom_loaded", vec![("cdrom", "cd")], 0.0),
        ("paddock_rng_bytes_total", vec![], 0.0),
        (
            "paddock_device_needs_reset_total",
            vec![("kind", "disk"), ("device", "data")],
            0.0,
        ),
        (
            "paddock_device_needs_reset_total",
            vec![("kind", "balloon"), ("device", "balloon")],
            7.0,
        ),
        ("paddock_balloon_target_bytes", vec![], 8_388_608.0),
        ("paddock_vm_cpus", vec![], 2.0),
        ("paddock_vm_cpus_wanted", vec![], 2.0),
        ("paddock_vm_cpus_max", vec![], 4.0),
        ("paddock_vm_memory_bytes", vec![], 536_870_912.0),
        ("paddock_vm_memory_max_bytes", vec![], 1_073_741_824.0),
        ("paddock_vm_memory_errors_total", vec![], 0.0),
        ("paddock_variables_unsaved", vec![], 1.0),
        ("paddock_variables_writes_total", vec![], 3.0),
        ("paddock_variables_write_errors_total", vec![], 2.0),
    ] {
        assert_eq!(all.value(name, &labels), Some(value), "{name} {labels:?}");
    }
    assert_eq!(all.value("paddock_process_max_fds", &[]), None);
    let step = |step| all.value("paddock_boot_timeline_seconds", &[("step", step)]);
    assert!(step("machine_built") > Some(0.0) && step("init_up").is_none());
}

#[test]
fn names_say_their_units() {
    for family in everything().families() {
        let name = family.name.strip_suffix("_total").unwrap_or(&family.name);
        assert!(name.starts_with("paddock_"), "{name}");
        let is_counter = family.kind == FamilyKind::Counter;
        assert_eq!(is_counter, family.name.ends_with("_total"), "{name}");
        assert!(
            family.help.ends_with('.') && family.help.len() > 5,
            "{name}"
        );
        for unit in ["_bytes", "_seconds"] {
            let middle = name.contains(&format!("{unit}_"));
            assert!(!middle, "{name}: the unit comes last");
        }
    }
}
