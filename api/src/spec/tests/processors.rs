//! Processors, memory and the balloon.

use super::*;

#[test]
fn cpus() {
    let made = |cpus: Value| {
        let cpus = valid(&with("cpus", cpus)).cpus;
        let Topology {
            sockets,
            cores,
            threads,
        } = cpus.topology;
        (cpus.count, sockets, cores, threads)
    };
    assert_eq!(made(json!({})), (1, 1, 1, 1));
    assert_eq!(made(json!({"count": 254})), (254, 1, 254, 1));
    assert_eq!(
        made(json!({"count": 8, "topology": {"sockets": 2, "threads": 2}})),
        (8, 2, 2, 2)
    );
    assert_eq!(
        made(json!({"topology": {"sockets": 2, "cores": 3}})),
        (6, 2, 3, 1)
    );
    for count in [0, 255, 256, u64::MAX] {
        refuses(
            &with("cpus", json!({"count": count})),
            &[("/cpus/count", OutOfRange)],
        );
    }
    let at = "/cpus/topology";
    for (cpus, code) in [
        (json!({"count": 4, "topology": {"sockets": 3}}), Conflict),
        (json!({"count": 4, "topology": {"cores": 2}}), Conflict),
        (
            json!({"count": 4, "topology": {"sockets": 200, "threads": 200}}),
            Conflict,
        ),
        (
            json!({"topology": {"sockets": 254, "cores": 254, "threads": 254}}),
            OutOfRange,
        ),
        (json!({"topology": {"sockets": 5, "cores": 51}}), OutOfRange),
    ] {
        refuses(&with("cpus", cpus), &[(at, code)]);
    }
}

#[test]
fn cpus_that_may_come() {
    let made = |cpus: Value| {
        let cpus = valid(&with("cpus", cpus)).cpus;
        (cpus.count, cpus.max, cpus.topology.cores)
    };
    assert_eq!(made(json!({"count": 2})), (2, 2, 2));
    assert_eq!(made(json!({"count": 2, "max": 2})), (2, 2, 2));
    assert_eq!(made(json!({"count": 2, "max": 254})), (2, 254, 254));
    assert_eq!(made(json!({"max": 4})), (1, 4, 4));
    assert_eq!(
        made(json!({"count": 3, "max": 8, "topology": {"threads": 2}})),
        (3, 8, 4)
    );
    for (cpus, pointer, code) in [
        (json!({"max": 0}), "/cpus/max", OutOfRange),
        (json!({"max": 255}), "/cpus/max", OutOfRange),
        (json!({"count": 4, "max": 3}), "/cpus/max", OutOfRange),
        (
            json!({"count": 2, "max": 4, "topology": {"cores": 2}}),
            "/cpus/topology",
            Conflict,
        ),
    ] {
        refuses(&with("cpus", cpus), &[(pointer, code)]);
    }
}

#[test]
fn memory() {
    let size = |size: Value| with("memory", json!({"size": size}));
    for good in [
        json!("64M"),
        json!("16TiB"),
        json!("66MiB"),
        json!(1_u64 << 26),
    ] {
        valid(&size(good));
    }
    for bad in [
        json!("62M"),
        json!("65M"),
        json!(0),
        json!("17TiB"),
        json!((1_u64 << 26) + 1),
    ] {
        refuses(&size(bad), &[("/memory/size", OutOfRange)]);
    }
    let spec = valid(&with(
        "memory",
        json!({"size": "2GiB", "hugepages": "1GiB"}),
    ));
    assert_eq!(spec.memory.hugepages, Some(HugePageSize::OneGib));
    refuses(
        &with("memory", json!({"size": "1536MiB", "hugepages": "1GiB"})),
        &[("/memory/size", OutOfRange)],
    );
    refuses(
        &with("memory", json!({"hugepages": "1GiB"})),
        &[("/memory/hugepages", Conflict)],
    );
    refuses(
        &with("memory", json!({"hugepages": "4KiB"})),
        &[("/memory/hugepages", OutOfRange)],
    );
}

#[test]
fn memory_may_grow() {
    let vm = |memory: Value| json!({"boot": {"kernel": "k"}, "memory": memory});
    let spec = valid(&vm(json!({"max": "2GiB"})));
    assert_eq!(spec.memory.size, ByteSize::from_mib(512));
    assert_eq!(spec.memory.max, ByteSize::from_mib(2048));
    let again = VmSpec::from_json(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(again, spec);
    valid(&vm(json!({"max": "512MiB"})));
    valid(&vm(
        json!({"size": "1GiB", "max": "16TiB", "hugepages": "1GiB"}),
    ));
    for memory in [
        json!({"max": "510MiB"}),
        json!({"max": 0}),
        json!({"max": "16386GiB"}),
        json!({"max": "513MiB"}),
        json!({"size": "1GiB", "max": "1536MiB", "hugepages": "1GiB"}),
    ] {
        refuses(&vm(memory), &[("/memory/max", OutOfRange)]);
    }
    refuses(
        &vm(json!({"size": "1MiB", "max": "1GiB"})),
        &[("/memory/size", OutOfRange)],
    );
}

#[test]
fn balloons() {
    let vm = |memory: Value, balloon: Value| json!({"boot": {"kernel": "k"}, "memory": memory, "balloon": balloon});
    let spec = valid(&vm(json!({}), json!({})));
    let balloon = spec.balloon.clone().unwrap();
    assert_eq!(balloon.size, ByteSize::default());
    assert!(!balloon.deflate_on_oom && balloon.free_page_reporting);
    let again = VmSpec::from_json(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(again, spec);
    // What went back to the pool may be gone when the guest wants it again: not without being asked for.
    let huge = json!({"hugepages": "2MiB"});
    for (asked, reports) in [
        (json!({}), false),
        (json!({"free_page_reporting": true}), true),
    ] {
        let balloon = valid(&vm(huge.clone(), asked)).balloon.unwrap();
        assert_eq!(balloon.free_page_reporting, reports);
    }
    let memory = json!({"size": "128MiB"});
    valid(&vm(memory.clone(), json!({"size": (128 << 20) - 4096})));
    for size in [json!("128MiB"), json!("1TiB"), json!(4095), json!(5000)] {
        refuses(
            &vm(memory.clone(), json!({"size": size})),
            &[("/balloon/size", OutOfRange)],
        );
    }
    refuses(
        &vm(
            json!({"size": "1MiB"}),
            json!({"size": 1, "deflate_on_oom": "yes", "stats": 1}),
        ),
        &[
            ("/balloon/deflate_on_oom", WrongType),
            ("/balloon/size", OutOfRange),
            ("/balloon/stats", UnknownField),
            ("/memory/size", OutOfRange),
        ],
    );
}
