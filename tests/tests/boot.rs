//! A stock Debian kernel boots, with the CPUs, the memory and the names it was given, and ends as it was asked to.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::time::Duration;

use paddock_probe::protocol::{Clock, Cpus, Crash, CrashKind, Random};
use paddock_tests::vm::BOOT_DEADLINE;
use paddock_tests::{Kernel, Vm, amount, files};

const MIB: u64 = 1 << 20;

/// What the machine calls itself, and the files in which the guest's kernel shows it.
const NAMES: [(&str, &str, &str); 3] = [
    (
        "--uuid",
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "product_uuid",
    ),
    (
        "--system-serial",
        "ds=nocloud;s=http://10.0.0.1/",
        "product_serial",
    ),
    ("--asset-tag", "rack 3", "chassis_asset_tag"),
];
/// For software in the guest.
const OEM_STRING: &str = "io.systemd.credential:probe.test=1";

/// Boots, checks CPUs, memory and names from inside, and powers off.
fn boots(kernel: Kernel, cpus: u32, mib: u64) {
    let vm = Vm::builder()
        .kernel(kernel)
        .cpus(&cpus)
        .memory(&format!("{mib}M"))
        .args(NAMES.iter().flat_map(|(flag, text, _)| [flag, text]))
        .args(["--oem-string", OEM_STRING])
        .boot();
    for (_, text, file) in NAMES {
        let told = vm.shell(&format!("cat /sys/class/dmi/id/{file}"));
        assert_eq!(told.trim_end(), text, "{file}");
    }
    let strings = "/sys/firmware/dmi/tables/DMI";
    let found = vm.shell(&format!("grep -c '{OEM_STRING}' {strings}"));
    assert_eq!(found.trim(), "1", "{OEM_STRING} in {strings}");
    let info = vm.info();
    assert_eq!(info.cpus, (0..cpus).collect::<Vec<_>>(), "CPUs online");
    let ran = vm.call(Cpus {});
    assert_eq!(ran.ran, info.cpus, "every CPU runs code");
    assert_eq!(info.clocksource, "kvm-clock");
    let ram: u64 = info
        .memory_map
        .iter()
        .filter(|range| range.kind == "System RAM")
        .map(|range| range.end + 1 - range.start)
        .sum();
    let given = mib * MIB;
    assert!(
        ram <= given && ram >= given - MIB,
        "the memory map has {ram} bytes of RAM, of {given}"
    );
    for range in info.memory_map.iter().filter(|r| r.kind == "System RAM") {
        let hole = 2 << 30..4_u64 << 30;
        assert!(
            !hole.contains(&range.start) && !hole.contains(&range.end),
            "RAM in the hole: {range:?}"
        );
    }
    assert!(
        info.memory_kib * 1024 > given * 3 / 4 - 48 * MIB,
        "{} KiB usable of {mib} MiB",
        info.memory_kib
    );
    // It looks for functions on no other bus, which costs thousands of exits.
    let ecam = vm.shell("grep MMCONFIG /proc/iomem");
    assert!(ecam.contains("[bus 00-00]"), "{ecam}");
    vm.power_off();
}

#[test]
fn bzimage_with_1_vcpu() {
    boots(Kernel::BzImage, 1, 256);
}

#[test]
fn bzimage_with_4_vcpus() {
    boots(Kernel::BzImage, 4, 512);
}

#[test]
fn elf_with_1_vcpu_and_128_mib() {
    boots(Kernel::Elf, 1, 128);
}

#[test]
fn bzimage_with_5_gib_which_reach_beyond_the_hole() {
    boots(Kernel::BzImage, 2, 5 << 10);
}

#[test]
fn shared_memory_and_a_topology() {
    let vm = Vm::builder()
        .cpus("count=4,sockets=2,cores=2,threads=1")
        .memory("size=256M,shared=on")
        .boot();
    let topology = |file: &str| {
        vm.shell(&format!(
            "cat /sys/devices/system/cpu/cpu*/topology/{file} | tr '\\n' ' '"
        ))
    };
    assert_eq!(topology("physical_package_id"), "0 0 1 1 ");
    assert_eq!(topology("core_id"), "0 1 0 1 ");
    assert_eq!(topology("thread_siblings_list"), "0 1 2 3 ");
    let maps = paddock_tests::host::run(&format!("cat /proc/{}/maps", vm.pid()));
    assert!(maps.contains("memfd:"), "RAM is a memfd:\n{maps}");
    vm.power_off();
}

#[test]
fn a_guest_has_time_and_randomness() {
    let vm = Vm::builder().boot();
    let host = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let clock = vm.call(Clock {});
    let guest = Duration::from_nanos(clock.realtime_ns);
    let apart = host.abs_diff(guest);
    assert!(apart < Duration::from_secs(10), "{apart:?} apart");
    let rtc = Duration::from_secs(clock.rtc.expect("a real-time clock"));
    assert!(rtc.abs_diff(host) < Duration::from_secs(10), "RTC {rtc:?}");
    let random = vm.call(Random { bytes: 4096 });
    let bytes = &random.data.0;
    assert_eq!(bytes.len(), 4096);
    let mut seen = [false; 256];
    bytes.iter().for_each(|b| seen[usize::from(*b)] = true);
    let different = seen.iter().filter(|seen| **seen).count();
    assert!(different > 200, "{different} different bytes in 4096");
    vm.power_off();
}

#[test]
fn a_reset_boots_again_in_the_same_process() {
    let directory = tempfile::tempdir().unwrap();
    let disk = files::empty_disk(directory.path(), "disk.img", MIB);
    let mut vm = Vm::builder()
        .kernel(Kernel::Elf)
        .cpus(&2)
        .args(["--disk", disk.to_str().unwrap()])
        .boot();
    let pid = vm.pid();
    let count = |what: &str| {
        std::fs::read_dir(format!("/proc/{pid}/{what}"))
            .unwrap()
            .count()
    };
    let mut boots = vec![vm.shell("cat /proc/sys/kernel/random/boot_id")];
    let (descriptors, threads) = (count("fd"), count("task"));
    let rounds = usize::try_from(amount(2, 15)).unwrap();
    for round in 2..=rounds {
        vm.start_reboot();
        vm.wait_for_console("paddock-probe: up, 2 cpus", round, BOOT_DEADLINE);
        vm.connect();
        boots.push(vm.shell("cat /proc/sys/kernel/random/boot_id"));
        assert_eq!(vm.pid(), pid);
        // Blocking threads of the control plane come and go; a machine that stays behind has many more.
        assert!(
            count("fd") <= descriptors + 2,
            "{} of {descriptors} descriptors",
            count("fd")
        );
        assert!(
            count("task") <= threads + 2,
            "{} of {threads} threads",
            count("task")
        );
    }
    boots.sort();
    boots.dedup();
    assert_eq!(boots.len(), rounds, "each is another boot");
    vm.power_off();
}

#[test]
fn a_reset_ends_the_process_where_the_spec_says_so() {
    let mut vm = Vm::builder().args(["--on-reset", "exit"]).boot();
    vm.start_reboot();
    vm.expect_exit(4);
}

#[test]
fn the_power_button_reaches_the_guest() {
    let vm = Vm::builder().boot();
    vm.signal("TERM");
    vm.wait_for_power_button();
    vm.power_off();
}

#[test]
fn a_second_signal_stops_a_guest_that_does_not_listen() {
    let mut vm = Vm::builder().boot();
    vm.signal("TERM");
    std::thread::sleep(Duration::from_secs(1));
    vm.signal("TERM");
    vm.expect_exit(5);
}

#[test]
fn a_triple_fault_is_reported_with_registers() {
    let mut vm = Vm::builder().boot();
    let _ = vm.probe().call(
        Crash {
            kind: CrashKind::TripleFault,
        },
        Duration::from_secs(10),
    );
    vm.expect_exit(3);
    std::thread::sleep(Duration::from_millis(200));
    let log = vm.log();
    for part in ["triple fault", "RIP", "CR3", "last device access"] {
        assert!(log.contains(part), "{part:?} is missing in:\n{log}");
    }
}

#[test]
fn a_panicking_guest_resets() {
    let mut vm = Vm::builder().args(["--on-reset", "exit"]).boot();
    let _ = vm.probe().call(
        Crash {
            kind: CrashKind::Panic,
        },
        Duration::from_secs(10),
    );
    vm.expect_exit(4);
    assert!(vm.console().contains("Kernel panic"), "{}", vm.console());
}

#[test]
fn a_spec_in_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let disk = files::empty_disk(directory.path(), "disk.img", MIB);
    let spec = directory.path().join("vm.toml");
    let text = format!(
        "name = \"from-a-file\"\nrng = false\n\n[cpus]\ncount = 2\n\n[[disks]]\npath = \"{}\"\nserial = \"IN-THE-FILE\"\n",
        disk.display()
    );
    std::fs::write(&spec, text).unwrap();
    // Flags, here those of the builder, replace what the file says.
    let vm = Vm::builder()
        .cpus(&1)
        .args(["--spec", spec.to_str().unwrap()])
        .boot();
    let info = vm.info();
    assert_eq!(info.cpus, [0]);
    assert_eq!(info.disks[0].serial, "IN-THE-FILE");
    let rng = info.pci.iter().filter(|function| function.device == 0x1044);
    assert_eq!(rng.count(), 0);
    vm.power_off();
}

/// Of what CI does once, the rest.
mod soak {
    use super::*;

    #[test]
    fn bzimage_with_2_vcpus_and_128_mib() {
        boots(Kernel::BzImage, 2, 128);
    }

    #[test]
    fn elf_with_2_vcpus() {
        boots(Kernel::Elf, 2, 256);
    }

    #[test]
    fn elf_with_4_vcpus() {
        boots(Kernel::Elf, 4, 256);
    }

    #[test]
    fn elf_with_5_gib_which_reach_beyond_the_hole() {
        boots(Kernel::Elf, 1, 5 << 10);
    }
}
