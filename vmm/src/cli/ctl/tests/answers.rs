//! Answers as the API gives them.

use serde_json::{Value, json};

pub fn vm(state: &str) -> Value {
    json!({
        "spec": {
            "name": "web",
            "boot": {"kernel": "/boot/vmlinuz", "command_line": "console=ttyS0"},
            "cpus": {"count": 4, "topology": {"sockets": 1, "cores": 2, "threads": 2}},
            "memory": {"size": "1GiB", "shared": false},
            "disks": [{"id": "disk0", "path": "/srv/a.img", "read_only": true, "queues": 4}],
            "nics": [{"id": "nic0", "bridge": "br0", "vlan": 7, "mac": "02:00:5e:00:00:07"}],
            "console": {"serial": {"file": "/var/log/web"}},
        },
        "state": state,
        "variables": {"unsaved": true, "error": "vm.fd: cannot be written"},
        "disk_failures": [failure("disk0")],
        "timeline": {"process_started_ms": 1_700_000_000_000_u64, "machine_built_us": 12_345, "init_up_us": 2_500_000},
        "last_event": 2,
    })
}

pub fn ended(reason: &str, detail: &str, pointer: &str) -> Value {
    let mut vm = vm("ended");
    vm["end"] = json!({"reason": reason});
    if !detail.is_empty() {
        vm["end"]["detail"] = json!(detail);
    }
    if !pointer.is_empty() {
        vm["end"]["pointer"] = json!(pointer);
    }
    vm
}

pub fn failure(disk: &str) -> Value {
    json!({"disk": disk, "errno": 28, "error": "No space left on device", "since_ms": 1_700_000_000_123_u64,
           "handling": "stopped", "requests": 2, "attempts": 1})
}

pub fn disk() -> Value {
    json!({"id": "data", "state": "removing", "job": 3, "size": 1 << 30, "failure": failure("data"),
           "limits": {"iops": 100, "bandwidth": 10 << 20},
           "spec": {"id": "data", "path": "/srv/data.img", "read_only": false, "direct": "auto", "engine": "io_uring", "queues": 1,
                    "serial": "S1", "on_error": "stop"}})
}

pub fn replicas() -> Value {
    json!([
        {"address": "10.0.0.1:10000", "mode": "rw"},
        {"address": "10.0.0.2:10000", "mode": "wo", "rebuild": {"done": 1_u64 << 30, "total": 4_u64 << 30}},
        {"address": "10.0.0.3:10000", "mode": "failed",
         "failure": {"reason": "it has not answered for 8 s", "since_ms": 1_700_000_000_123_u64}},
    ])
}

pub fn snapshots() -> Value {
    json!([
        {"name": "before", "created": "2026-11-22T19:00:00Z", "user_created": true, "removed": false, "size": 4096,
         "labels": {"by": "me"}},
        {"name": "auto", "created": "2026-11-22T19:01:00Z", "user_created": false, "removed": true, "size": 0,
         "parent": "before"},
    ])
}

pub fn nic() -> Value {
    json!({"id": "lan", "state": "present", "spec": {"id": "lan", "tap": "tap0", "mac": "02:00:5e:00:00:07", "mtu": 9000}})
}

pub fn cpus() -> Value {
    json!({"count": 2, "max": 8, "wanted": 4, "present": 5, "job": 3})
}

pub fn memory() -> Value {
    json!({"size": 512 << 20, "max": 4_u64 << 30, "requested": 1 << 30, "plugged": 768 << 20, "driver": true})
}

pub fn cdrom() -> Value {
    json!({"id": "cdrom0", "medium": "/srv/a.iso", "size": 4 << 20, "open": false, "locked": true, "driver": true,
           "spec": {"id": "cdrom0"}})
}

pub fn balloon() -> Value {
    json!({"target": 256 << 20, "actual": 64 << 20, "driver": true, "inflated_bytes": 4096, "reported_bytes": 0})
}

pub fn job(state: &str) -> Value {
    let mut job = json!({"id": 3, "kind": "remove-device", "device": "data", "state": state, "phase": "waiting-for-guest",
                         "started_ms": 1_700_000_000_000_u64, "deadline_ms": 1_700_000_030_000_u64});
    if state != "running" {
        job["ended_ms"] = json!(1_700_000_001_500_u64);
    }
    if state == "failed" {
        job["failure"] = json!("the guest did not let go of it in time");
    }
    job
}
