//! The names, units and meanings of all metrics of a process and its VM.
//!
//! On the control plane's thread; nothing here waits. Ids and names are the user's.

use std::sync::Arc;
use std::time::Duration;

use paddock_api::metrics::Exposition;
use paddock_api::resource::VmState;
use paddock_api::timeline::Timeline;
use paddock_devices::firmware::vars::VarsStatus;
use paddock_devices::virtio::blk::{self, DURATION_BOUNDS, KindValues};
use paddock_devices::virtio::console::PortCounters;
use paddock_devices::virtio::net::{self, CounterValues};

use super::process::Sample;
use super::{DeviceMeter, Meters, cdroms, timeline};
use crate::balloon::BalloonStatus;
use crate::driver::VmHandle;
use crate::growth::MemoryStatus;
use crate::machine::devices::DeviceKey;
use crate::processors::ProcessorsStatus;
use crate::vcpu::exits::ExitKind;

/// A family of counters: its name, its meaning, and where its number is.
type Counter<T> = (&'static str, &'static str, fn(&T) -> u64);

/// What is told of each queue of a disk, for each kind of requests.
const OF_QUEUES: [Counter<KindValues>; 3] = [
    (
        "paddock_disk_requests_total",
        "Requests that the disk answered.",
        |values| values.requests,
    ),
    (
        "paddock_disk_bytes_total",
        "Bytes of the requests that went well.",
        |values| values.bytes,
    ),
    (
        "paddock_disk_errors_total",
        "Requests that were answered with an error.",
        |values| values.errors,
    ),
];

/// What is told of each queue pair of a NIC.
const OF_PAIRS: [Counter<CounterValues>; 8] = [
    (
        "paddock_nic_receive_packets_total",
        "Frames that the guest received.",
        |values| values.rx_frames,
    ),
    (
        "paddock_nic_receive_bytes_total",
        "Bytes of the frames that the guest received.",
        |values| values.rx_bytes,
    ),
    (
        "paddock_nic_receive_dropped_total",
        "Frames for which the guest had no room in time.",
        |values| values.rx_dropped,
    ),
    (
        "paddock_nic_receive_errors_total",
        "Frames that could not be read from the host, or made no sense.",
        |values| values.rx_errors,
    ),
    (
        "paddock_nic_transmit_packets_total",
        "Frames that the guest sent.",
        |values| values.tx_frames,
    ),
    (
        "paddock_nic_transmit_bytes_total",
        "Bytes of the frames that the guest sent.",
        |values| values.tx_bytes,
    ),
    (
        "paddock_nic_transmit_dropped_total",
        "Frames that the host did not take.",
        |values| values.tx_dropped,
    ),
    (
        "paddock_nic_transmit_errors_total",
        "Frames that the guest made wrong.",
        |values| values.tx_malformed,
    ),
];

/// What the process is and costs.
pub fn describe_process(to: &mut Exposition, sample: Option<&Sample>) {
    to.gauge("paddock_build_info", "The version of Paddock.")
        .sample(&[("version", &env!("CARGO_PKG_VERSION"))], 1_u64);
    to.gauge(
        "paddock_process_start_time_seconds",
        "When the process started, since 1970.",
    )
    .sample(&[], timeline::start_date());
    let Some(sample) = sample else {
        return;
    };
    if let Some((user, system)) = sample.cpu {
        to.counter(
            "paddock_process_cpu_seconds_total",
            "CPU time of the process, vCPUs included.",
        )
        .sample(&[("mode", &"user")], user)
        .sample(&[("mode", &"system")], system);
    }
    let mut gauge = |name, help, value: Option<u64>| {
        if let Some(value) = value {
            to.gauge(name, help).sample(&[], value);
        }
    };
    gauge(
        "paddock_process_resident_memory_bytes",
        "Memory of the process that is there, guest memory included.",
        sample.resident,
    );
    gauge(
        "paddock_process_overhead_memory_bytes",
        "The process's share of memory (PSS) without guest memory. At most every 10 seconds anew.",
        sample.share.map(|share| share.overhead),
    );
    gauge(
        "paddock_guest_resident_memory_bytes",
        "Guest memory that is there. At most every 10 seconds anew.",
        sample.share.map(|share| share.guest),
    );
    gauge("paddock_process_threads", "Threads.", sample.threads);
    gauge(
        "paddock_process_open_fds",
        "Open descriptors.",
        sample.open_fds,
    );
    gauge(
        "paddock_process_max_fds",
        "Descriptors that the process may have open.",
        sample.max_fds,
    );
}

/// What the VM is and does.
pub fn describe_vm(to: &mut Exposition, vm: &VmHandle) {
    let (spec, meters) = (vm.changes().spec(), vm.meters());
    if let Some(name) = &spec.name {
        to.gauge("paddock_vm_info", "The VM's name.")
            .sample(&[("name", &name.to_string())], 1_u64);
    }
    let present = vm.state();
    let mut states = to.gauge("paddock_vm_state", "1 for the state that the VM is in.");
    for state in VmState::ALL {
        states.sample(&[("state", &state)], state == present);
    }
    to.counter("paddock_vm_resets_total", "Resets of the VM.")
        .sample(&[], meters.resets());
    describe_cpus(to, &vm.cpus().processors().status());
    describe_memory(to, &vm.memory().status());
    describe_timeline(to, &meters.times.timeline());
    describe_vcpus(to, meters);
    describe_devices(to, meters);
    if let Some(balloon) = vm.balloon() {
        describe_balloon(to, &balloon.status());
    }
    if let Some(status) = vm.variables().status() {
        describe_variables(to, &status);
    }
}

fn describe_cpus(to: &mut Exposition, status: &ProcessorsStatus) {
    for (name, help, value) in [
        (
            "paddock_vm_cpus",
            "CPUs that are plugged in.",
            status.present as u64,
        ),
        (
            "paddock_vm_cpus_wanted",
            "CPUs that are to be plugged in.",
            status.wanted.into(),
        ),
        (
            "paddock_vm_cpus_max",
            "CPUs that there may be.",
            status.max.into(),
        ),
    ] {
        to.gauge(name, help).sample(&[], value);
    }
}

fn describe_memory(to: &mut Exposition, status: &MemoryStatus) {
    for (name, help, value) in [
        (
            "paddock_vm_memory_bytes",
            "Memory that the guest has.",
            status.plugged,
        ),
        (
            "paddock_vm_memory_requested_bytes",
            "Memory that the guest is asked to have.",
            status.requested,
        ),
        (
            "paddock_vm_memory_max_bytes",
            "Memory that the guest may be asked to have.",
            status.max,
        ),
    ] {
        to.gauge(name, help).sample(&[], value);
    }
    let Some(counters) = status.counters else {
        return;
    };
    for (name, help, value) in [
        (
            "paddock_vm_memory_refused_requests_total",
            "Requests of the guest to plug memory in or out that break the rules.",
            counters.refused_requests,
        ),
        (
            "paddock_vm_memory_errors_total",
            "Times that the host did not give memory or take it back.",
            counters.errors,
        ),
    ] {
        to.counter(name, help).sample(&[], value);
    }
}

fn describe_timeline(to: &mut Exposition, timeline: &Timeline) {
    let mut family = to.gauge(
        "paddock_boot_timeline_seconds",
        "When each step was first reached, since the process started. The guest's start over with a reset.",
    );
    for (step, time) in timeline.steps() {
        if let Some(time) = time {
            family.sample(&[("step", &step)], Duration::from_micros(time));
        }
    }
}

fn describe_vcpus(to: &mut Exposition, meters: &Meters) {
    let mut exits = to.counter(
        "paddock_vcpu_exits_total",
        "Times that a vCPU left the guest for the process.",
    );
    for (vcpu, counters) in meters.exits_so_far().iter().enumerate() {
        for kind in ExitKind::ALL {
            let labels = [("vcpu", &vcpu as _), ("kind", &kind.name() as _)];
            exits.sample(&labels, counters.get(kind));
        }
    }
}

fn describe_devices(to: &mut Exposition, meters: &Meters) {
    let (mut disks, mut cdroms, mut nics) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ports, mut rng) = (Vec::new(), None);
    for (key, meter) in meters.devices() {
        match (key, meter) {
            (DeviceKey::Disk(id), DeviceMeter::Disk(counters)) => disks.push((id, counters)),
            (DeviceKey::Cdrom(id), DeviceMeter::Cdrom(handle)) => cdroms.push((id, handle)),
            (DeviceKey::Nic(id), DeviceMeter::Nic(counters)) => nics.push((id, counters)),
            (_, DeviceMeter::Console(counters)) => ports = counters,
            (_, DeviceMeter::Rng(counters)) => rng = Some(counters),
            // A device counts what it is.
            (_, DeviceMeter::Disk(_) | DeviceMeter::Cdrom(_) | DeviceMeter::Nic(_)) => {}
        }
    }
    describe_broken(to, meters);
    describe_disks(to, &disks);
    cdroms::describe(to, &cdroms);
    describe_nics(to, &nics);
    describe_consoles(to, meters, &ports);
    if let Some(rng) = rng {
        to.counter("paddock_rng_requests_total", "Requests for entropy.")
            .sample(&[], rng.requests());
        to.counter("paddock_rng_bytes_total", "Entropy given to the guest.")
            .sample(&[], rng.bytes());
    }
}

fn describe_broken(to: &mut Exposition, meters: &Meters) {
    let mut family = to.counter(
        "paddock_device_needs_reset_total",
        "Times that the guest's driver broke a device's rules, so that the device needed a reset.",
    );
    for (key, count) in meters.broken() {
        let labels = [("kind", &key.kind() as _), ("device", &key.id() as _)];
        family.sample(&labels, count);
    }
}

/// As a label.
fn kind_name(kind: blk::Kind) -> &'static str {
    match kind {
        blk::Kind::Read => "read",
        blk::Kind::Write => "write",
        blk::Kind::Flush => "flush",
        blk::Kind::Discard => "discard",
        blk::Kind::WriteZeroes => "write-zeroes",
        blk::Kind::Other => "other",
    }
}

fn describe_disks(to: &mut Exposition, disks: &[(String, Arc<blk::Counters>)]) {
    for (name, help, of) in OF_QUEUES {
        let mut family = to.counter(name, help);
        for_each_queue(disks, |labels, values| {
            family.sample(labels, of(values));
        });
    }
    let mut family = to.counter(
        "paddock_disk_request_seconds_total",
        "Time from taking each request to its answer.",
    );
    for_each_queue(disks, |labels, values| {
        family.sample(labels, Duration::from_nanos(values.nanoseconds));
    });
    let mut family = to.histogram(
        "paddock_disk_request_duration_seconds",
        "Times from taking a request to its answer, over all queues.",
    );
    for (id, counters) in disks {
        for kind in blk::Kind::ALL {
            let values = counters.values(kind);
            let labels = [("disk", id as _), ("kind", &kind_name(kind) as _)];
            let sum = Duration::from_nanos(values.nanoseconds);
            family.durations(&labels, &DURATION_BOUNDS, &values.classes, sum);
        }
    }
}

/// Calls `each` with labels and values of each queue's requests of each kind.
fn for_each_queue(
    disks: &[(String, Arc<blk::Counters>)],
    mut each: impl FnMut(&paddock_api::metrics::Labels<'_>, &KindValues),
) {
    for (id, counters) in disks {
        for queue in 0..counters.queues() {
            for kind in blk::Kind::ALL {
                let name = kind_name(kind);
                let labels = [
                    ("disk", id as _),
                    ("queue", &queue as _),
                    ("kind", &name as _),
                ];
                each(&labels, &counters.queue(queue, kind));
            }
        }
    }
}

fn describe_nics(to: &mut Exposition, nics: &[(String, Arc<net::Counters>)]) {
    for (name, help, of) in OF_PAIRS {
        let mut family = to.counter(name, help);
        for (id, counters) in nics {
            for queue in 0..counters.queue_pairs() {
                let labels = [("nic", id as _), ("queue", &queue as _)];
                family.sample(&labels, of(&counters.pair(queue)));
            }
        }
    }
    let mut family = to.counter(
        "paddock_nic_control_errors_total",
        "Commands of the guest's that the NIC refused.",
    );
    for (id, counters) in nics {
        family.sample(&[("nic", id)], counters.values().control_errors);
    }
}

fn describe_consoles(to: &mut Exposition, meters: &Meters, ports: &[(String, Arc<PortCounters>)]) {
    let hvc0 = ports.iter().find(|(name, _)| name.is_empty());
    let named = || ports.iter().filter(|(name, _)| !name.is_empty());
    let (printed, typed) = meters.serial();
    let mut family = to.counter(
        "paddock_console_output_bytes_total",
        "Bytes that the guest printed.",
    );
    family.sample(&[("console", &"serial")], printed);
    if let Some((_, counters)) = hvc0 {
        family.sample(&[("console", &"hvc0")], counters.from_guest());
    }
    let mut family = to.counter(
        "paddock_console_input_bytes_total",
        "Bytes that were typed and that the guest's port took.",
    );
    family.sample(&[("console", &"serial")], typed);
    if let Some((_, counters)) = hvc0 {
        family.sample(&[("console", &"hvc0")], counters.to_guest());
    }
    let mut family = to.counter(
        "paddock_port_output_bytes_total",
        "Bytes that a client of the port took from the guest.",
    );
    for (name, counters) in named() {
        family.sample(&[("port", name)], counters.from_guest());
    }
    let mut family = to.counter(
        "paddock_port_input_bytes_total",
        "Bytes that the guest took from a client of the port.",
    );
    for (name, counters) in named() {
        family.sample(&[("port", name)], counters.to_guest());
    }
}

fn describe_balloon(to: &mut Exposition, status: &BalloonStatus) {
    to.gauge(
        "paddock_balloon_target_bytes",
        "Memory that the guest is asked to give.",
    )
    .sample(&[], status.target);
    to.gauge(
        "paddock_balloon_actual_bytes",
        "Memory that the guest says it has given.",
    )
    .sample(&[], status.actual);
    let counters = status.counters;
    for (name, help, value) in [
        (
            "paddock_balloon_inflated_bytes_total",
            "Memory that went back to the host because the guest put it into the balloon.",
            counters.inflated_bytes,
        ),
        (
            "paddock_balloon_reported_bytes_total",
            "Memory that went back to the host because the guest reported it free.",
            counters.reported_bytes,
        ),
        (
            "paddock_balloon_refused_pages_total",
            "Pages that the guest wanted to give and that are not its memory.",
            counters.refused_pages,
        ),
        (
            "paddock_balloon_errors_total",
            "Times that the host did not take memory back.",
            counters.errors,
        ),
    ] {
        to.counter(name, help).sample(&[], value);
    }
}

fn describe_variables(to: &mut Exposition, status: &VarsStatus) {
    to.gauge(
        "paddock_variables_unsaved",
        "1 while the guest has set variables of its firmware that their file does not have yet.",
    )
    .sample(&[], status.unsaved);
    to.counter(
        "paddock_variables_writes_total",
        "Times that the file of the firmware's variables was written.",
    )
    .sample(&[], status.writes);
    to.counter(
        "paddock_variables_write_errors_total",
        "Times that the file of the firmware's variables could not be written.",
    )
    .sample(&[], status.failures);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use paddock_api::metrics::{FamilyKind, Snapshot};
    use paddock_api::spec::VmSpec;
    use paddock_devices::virtio::rng;
    use paddock_devices::virtio::scsi::CdromHandle;

    use super::*;
    use crate::balloon::Balloon;
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
}
