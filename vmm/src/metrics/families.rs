//! The names, units and meanings of the metrics of a process and its VM. Devices of which there can be many have rooms of their own.
//!
//! On the control plane's thread; nothing here waits. Ids and names are the user's.

use std::time::Duration;

use paddock_api::metrics::Exposition;
use paddock_api::resource::VmState;
use paddock_api::timeline::Timeline;
use paddock_devices::firmware::vars::VarsStatus;

use super::process::Sample;
use super::{DeviceMeter, Meters, cdroms, consoles, disks, nics, timeline, volumes};
use crate::balloon::BalloonStatus;
use crate::driver::VmHandle;
use crate::growth::MemoryStatus;
use crate::machine::devices::DeviceKey;
use crate::processors::ProcessorsStatus;
use crate::vcpu::exits::ExitKind;

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
    disks::describe_open(to, vm.disks());
    volumes::describe(to, vm.disks());
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
    disks::describe(to, &disks);
    cdroms::describe(to, &cdroms);
    nics::describe(to, &nics);
    consoles::describe(to, meters, &ports);
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
mod tests;
