"""The stages of `tests/run`, in their order. To add one: write a function that takes `Steps`, and name it in STAGES."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import cargo
from stages.pool import Job, run_jobs
from stages.results import Counter, Counts
from stages.steps import REPOSITORY, Steps

MINUTE = 60.0

EXTRA_PACKAGES = ["acpica-tools", "dmsetup", "dnsmasq-base", "fio", "g++", "libqcow-dev", "nbdkit", "python3-venv", "qemu-utils", "shellcheck", "systemd", "xorriso", "zlib1g-dev"]
"""Debian packages that the stages below need, beside what the lab needs. g++ compiles libFuzzer, dmsetup makes disks with bad blocks;
dnsmasq serves what boots from the network, nbdkit and qemu-nbd serve disks, qemu-img and xorriso make images as users have them; systemd
reads the units, and runs them in namespaces of its own; Longhorn's program has libqcow and zlib in it; fio is what raw disks are measured beside."""

NODE_PACKAGES = ["nodejs", "npm"]
"""Likewise, where the machine has no npm yet: one that came otherwise would not go together with Debian's."""

SHELLCHECK = ["shellcheck", "--external-sources", "--exclude=SC1091,SC2016"]
"""SC1091: a sourced file is checked where it is in the tree. SC2016: a dollar sign in single quotes is meant for another program."""

VM_MEMORY = 9
"""GiB of memory of the lab's host for the end-to-end tests: a guest of 5 GiB, and scratch files on a tmpfs."""

VM_OVERHEAD = 0.75
"""GiB that such a host takes beside its memory: half a GiB of translated code, and the emulator itself."""

VM_HOSTS = 2
"""So many hosts at once run the end-to-end tests, at most: more of them only make each other's tests miss their deadlines."""

VM_LONGEST = ("volume", "volume_faults", "firmware_cdrom", "firmware", "pause", "balloon", "disk", "hotplug", "cpus", "boot")
"""The test binaries that take longest begin first: what begins last should not take long, for nothing runs beside it."""

VM_BINARY_DEADLINE = 15 * MINUTE
CONFORMANCE_DEADLINE = 12 * MINUTE
LONGHORN_DEADLINE = 10 * MINUTE
FUZZ_SECONDS = 60
FUZZ_SECONDS_SOAK = 400
"""For all fuzz targets at once."""


@dataclass(frozen=True)
class Stage:
    """One stage, which waits for those it `needs` and those it comes `after`; all of them are before it in the table. Where one that it needs has
    failed, it counts as failed without being run. A stage that runs `behind` does so beside those in front, as soon as it can."""

    name: str
    title: str
    run: Callable[[Steps], None]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    behind: bool = False


def setup(steps: Steps) -> None:
    """Installs and prepares; idempotent."""
    packages = EXTRA_PACKAGES + ([] if shutil.which("npm") else NODE_PACKAGES)
    if steps.must("tests/lab/setup", ["tests/lab/setup", "--go", *packages], deadline=20 * MINUTE):
        steps.must("tests/conformance/setup", ["tests/conformance/setup"], deadline=20 * MINUTE)


def style(steps: Steps) -> None:
    """Formatting, lints, documentation, shell files, one version of each rust-vmm crate."""
    steps.check("formatted", ["cargo", "fmt", "--all", "--check"], deadline=MINUTE)
    clippy = ["cargo", "clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]
    steps.check("clippy", clippy, deadline=20 * MINUTE)
    document = ["cargo", "doc", "--locked", "--workspace", "--no-deps"]
    steps.check("documentation", document, deadline=10 * MINUTE, environment={"RUSTDOCFLAGS": "-D warnings"})
    steps.check("shell files", [*SHELLCHECK, *_shell_files()], deadline=2 * MINUTE)
    doubled = cargo.doubled_rust_vmm_crates()
    for name, versions in doubled.items():
        steps.failed(f"{name} is in the tree in versions {', '.join(versions)}")
    if not doubled:
        steps.passed("one version of each rust-vmm crate")


IASL_SCRIPT = """
set -e
for table; do
    iasl -d "$table"
    iasl -we "${table%.dat}.dsl"
done
"""
"""-we: a warning is an error."""


def _shell_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    found = []
    for name in listed.split("\0"):
        path = REPOSITORY / name
        if name and path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                first = file.readline(80)
            if re.match(rb"#!.*\b(sh|bash|dash)\b", first):
                found.append(name)
    return found


def unit(steps: Steps) -> None:
    """Everything that runs without KVM."""
    dump = cargo.target_directory() / "acpi"
    shutil.rmtree(dump, ignore_errors=True)
    dump.mkdir(parents=True)
    steps.tests("unit tests", ["cargo", "test", "--locked", "--workspace", "--exclude", "paddock-tests", "--no-fail-fast"], deadline=25 * MINUTE, environment={"PADDOCK_ACPI_DUMP": str(dump)})
    # The tables as ACPICA's compiler sees them: it knows more rules than our tests.
    tables = sorted(str(path) for path in dump.glob("*.dat"))
    if tables:
        steps.check("iasl disassembles and compiles the ACPI tables", ["bash", "-c", IASL_SCRIPT, "iasl", *tables], deadline=2 * MINUTE)
    else:
        steps.failed("the ACPI tests dumped no tables")
    # May well have no tests, hence not counted as `tests`.
    counter = Counter()
    code = steps.program(["cargo", "test", "--locked", "-p", "paddock-tests", "--lib"], deadline=10 * MINUTE, on_line=counter.line)
    steps.counts += counter.counts
    if code and not counter.counts.failed:
        steps.failed(f"unit tests of paddock-tests (exit code {code})")
    steps.tests("unit tests of this runner", ["/usr/bin/python3", "-B", "-m", "unittest", "discover", "-s", "tests", "-p", "test_stages.py"], deadline=MINUTE)


def build(steps: Steps) -> None:
    """The release binaries, and the end-to-end tests."""
    # Each by itself, or cargo would build one with the features that the other wants of their common dependencies.
    packages = ["paddock-vmm", "paddock-replica"]
    if all([steps.must(package, ["cargo", "build", "--locked", "--release", "-p", package], deadline=20 * MINUTE) for package in packages]):
        for command in cargo.TEST_BUILDS:
            steps.must("tests for the lab", command, deadline=20 * MINUTE)
    load = ["cargo", "build", "--locked", "--release", "-p", "paddock-tests", "--bin", "disk-load"]
    steps.must("disk-load for the benchmarks", load, deadline=20 * MINUTE)


def guests(steps: Steps) -> None:
    """Kernels, initramfs and disk images."""
    steps.must("guests/build", ["guests/build"], deadline=20 * MINUTE)


def lab(steps: Steps) -> None:
    """The lab's own tests."""
    steps.tests("tests of the lab", ["/usr/bin/python3", "-B", "tests/lab/test_lab.py", "-v"], deadline=20 * MINUTE)


# Runs a test binary in the lab's host.
VM_SCRIPT = 'modprobe --all bridge dm-mod loop tun veth && exec "$@"'


def libtest(path: Path, *, soak: bool) -> list[str]:
    """How a binary with end-to-end tests is run: one test after the other, and what is in its modules `soak` only under the soak."""
    return [str(path), "--test-threads=1", *([] if soak else ["--skip", "soak::"])]

LAB_DEADLINE, LAB_FAILED = 124, 125
"""Exit codes of tests/lab/run."""


def _paddock() -> dict[str, str]:
    """Where the tests find the binary."""
    return {"PADDOCK_BIN": str(cargo.target_directory() / "release" / "paddock")}


def _run_in_lab(steps: Steps, script: str, arguments: list[str], deadline: float) -> tuple[int, Counts]:
    """Runs a bash script in a host of its own; returns the exit code and what the tests in it said."""
    deadline *= 2 if steps.soak else 1
    counter = Counter()
    code = steps.program(
        ["tests/lab/run", "--memory", f"{VM_MEMORY}G", "--deadline", f"{deadline:.0f}", "--", "bash", "-c", script, "lab", *arguments],
        deadline=deadline + 3 * MINUTE,
        environment=_paddock(),
        on_line=counter.line,
    )
    return code, counter.counts


def _tests_in_lab(steps: Steps, what: str, script: str, arguments: list[str], deadline: float) -> None:
    """Counts the tests of a script in the lab. A test that fails has failed; but where the emulated host itself died or hung, once more."""
    code, counts = _run_in_lab(steps, script, arguments, deadline)
    if code in (LAB_DEADLINE, LAB_FAILED):
        steps.say(f"UNSTEADY: the lab's host died or hung under {what}; once more")
        code, counts = _run_in_lab(steps, script, arguments, deadline)
    steps.counts += counts
    if code and not counts.failed:
        steps.failed(f"{what} (exit code {code})")
    elif counts == Counts():
        steps.failed(f"{what} has no tests")


def hosts_at_once(place: str, cores: int, available: float) -> int:
    """How many hosts may run tests at once, with so many GiB of memory available. Tests right on this machine would share its bridges, modules
    and huge pages, hence they run alone: they are fast there."""
    if place != "emulated":
        return 1
    return max(1, min(VM_HOSTS, cores, int(available / (VM_MEMORY + VM_OVERHEAD))))


def _hosts_here() -> int:
    place = subprocess.run(["tests/lab/run", "--where"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    available = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    return hosts_at_once(place, len(os.sched_getaffinity(0)), int(available[1]) / (1 << 20) if available else 0)


def is_native(name: str) -> bool:
    """Whether a test binary runs right on this machine, in the stage `longhorn`: those of Longhorn need no VM, but a file system with FIEMAP and
    O_DIRECT, which the lab's host has not."""
    return name.startswith("longhorn")


def vm(steps: Steps) -> None:
    """The end-to-end tests, each binary in a host of its own: one that hangs takes only its own deadline."""
    binaries = {name: path for name, path in cargo.test_binaries().items() if not is_native(name)}
    names = sorted(binaries, key=lambda name: VM_LONGEST.index(name) if name in VM_LONGEST else len(VM_LONGEST))
    if not names:
        steps.failed("paddock-tests has no end-to-end tests")
        return

    def job(name: str) -> Job:
        return Job(name, lambda own: _tests_in_lab(own, name, VM_SCRIPT, libtest(binaries[name], soak=own.soak), VM_BINARY_DEADLINE))

    run_jobs(steps, [job(name) for name in names], at_once=_hosts_here())


# Runs the conformance tests that need a VM. The process in them is nobody's, and udev, which lets everyone open it, is not in the lab.
CONFORMANCE_SCRIPT = """
modprobe --all loop tun && chmod 0666 /dev/net/tun || exit
export PYTHONDONTWRITEBYTECODE=1
code=0
/usr/bin/python3 "$1/client.py" || code=$?
/usr/bin/python3 "$1/schema.py" vm || code=$?
exit $code
"""


NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--", "sh", "-c", '"$@"; exit $?', "sh"]
"""What runs a program as PID 1's child in a namespace of its own: with PID 1, all that it has started ends."""


def native(command: list[str], *, deadline: float) -> list[str]:
    """What runs a program as root, with all that it starts ended at the deadline. A user's runner may not end what is root's, hence `timeout`."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "--preserve-env=CI,PADDOCK_BIN,PADDOCK_SEED,PADDOCK_SOAK"]
    return [*as_root, "timeout", "--signal=KILL", f"{deadline:.0f}", *NAMESPACE, *command]


def longhorn(steps: Steps) -> None:
    """The real Longhorn, which is built here: its sockets are root's. Most of the time these tests wait for what hangs to be given up."""
    if not steps.must("building Longhorn", ["tests/conformance/longhorn/build"], deadline=15 * MINUTE):
        return
    deadline = LONGHORN_DEADLINE * (3 if steps.soak else 1)
    paths = [(name, path) for name, path in cargo.test_binaries().items() if is_native(name)]
    if not paths:
        steps.failed("there are no tests of Longhorn")
    for name, path in paths:
        command = native(libtest(path, soak=steps.soak), deadline=deadline)
        steps.tests(name, command, deadline=deadline + MINUTE, environment=_paddock())


def conformance(steps: Steps) -> None:
    """The HTTP API as others see it, tools that know nothing but api/openapi.json."""
    here = REPOSITORY / "tests" / "conformance"
    steps.check("a client generated from api/openapi.json compiles", [str(here / "client" / "build")], deadline=5 * MINUTE)
    breadth = ["/usr/bin/python3", "-B", str(here / "schema.py"), "breadth"]
    steps.tests("schemathesis without a VM", breadth, deadline=(20 if steps.soak else 6) * MINUTE, environment=_paddock())
    _tests_in_lab(steps, "the API of a VM", CONFORMANCE_SCRIPT, [str(here)], CONFORMANCE_DEADLINE)


BENCH_HELD = ["api", "overhead", "overhead-anonymous", "size", "storage-freeze"]
"""Figures that hardly depend on what else the machine does, or are far from their limits: their goals are held. The others are ratios of times,
which only tests/bench on an idle machine can judge: here they have to come about."""

BENCH_QUICK = [*BENCH_HELD, "storage-engine-latency-randwrite"]
"""Those and one of Longhorn's; all of them take too long for CI, and run under the soak."""

BENCH_DEADLINE = 25 * MINUTE
BENCH_DEADLINE_SOAK = 90 * MINUTE


def bench(steps: Steps) -> None:
    """The benchmarks: a round of one of each kind; under the soak all of them, and as many rounds as they take."""
    code, reports = _bench(steps)
    if code in (LAB_DEADLINE, LAB_FAILED):
        steps.say("UNSTEADY: the lab's host died or hung under tests/bench; once more")
        code, reports = _bench(steps)
    if code or not reports:
        steps.failed(f"tests/bench (exit code {code})")
    for report in reports:
        name, goal, ratio = report["figure"], report["goal"], report["ratio"]
        if report["met"] or (name not in BENCH_HELD and ratio and ratio["median"]):
            steps.passed(f"{name}: measured; {goal}: {'met' if report['met'] else 'NOT met'}")
        else:
            steps.failed(f"{name}: {goal}: not met")


def _bench(steps: Steps) -> tuple[int, list[dict[str, Any]]]:
    """Runs tests/bench; returns its exit code and its reports."""
    arguments, deadline = ([], BENCH_DEADLINE_SOAK) if steps.soak else ([*BENCH_QUICK, "--rounds", "1"], BENCH_DEADLINE)
    lines: list[str] = []
    code = steps.program(["tests/bench", "--json", *arguments], deadline=deadline, on_line=lines.append)
    first = next((number for number, line in enumerate(lines) if line == "["), None)
    return code, [] if code or first is None else json.loads("\n".join(lines[first:]))


def fuzz(steps: Steps) -> None:
    """Every fuzz target for a short time."""
    seconds = FUZZ_SECONDS_SOAK if steps.soak else FUZZ_SECONDS
    steps.tests("fuzz targets", ["tests/fuzz/run", str(seconds)], deadline=16 * MINUTE + seconds)


def demo(steps: Steps) -> None:
    """The README's first command, with a command for the guest; then by firmware, and with images of the user's."""
    lines: list[str] = []
    code = steps.program(["guests/run", "--", "uname", "-r"], deadline=15 * MINUTE, on_line=lines.append)
    kernel = [line for line in lines if re.fullmatch(r"\d+\.\d+\.\d+\S*\r?", line)]
    what = f"{shlex.join(['guests/run', '--', 'uname', '-r'])} prints the guest's kernel"
    if code == 0 and kernel:
        steps.passed(f"{what} ({kernel[-1].strip()})")
    else:
        steps.failed(f"{what} (exit code {code})")
    # With the disk of the first time: the guest reaches the host over the VLAN, and its command's status comes back.
    ping = "for try in $(seq 20); do ping -c 1 -W 2 10.100.0.1 && exit 7; sleep 1; done; exit 1"
    what = "guests/run: the guest reaches the host, and its command's exit status is passed on"
    _demo(steps, what, ["--keep"], ping, 7)
    what = "guests/run --uefi: firmware boots the disk, and the guest, which asks for its address, reaches the host"
    _demo(steps, what, ["--uefi"], f"[ -d /sys/firmware/efi ] || exit 2; {ping}", 7)
    what = "guests/run --kill-replica: a guest that loses a replica reads what it wrote, and a new one gets all of it"
    steps.check(what, ["guests/run", "--kill-replica"], deadline=15 * MINUTE)
    if steps.soak:
        _demo_with_images(steps)


def _demo_with_images(steps: Steps) -> None:
    """Images of the user's, which firmware boots as it does those of the end-to-end tests."""
    images = REPOSITORY / "target" / "guests"
    booted = "grep -o probe.image=%s /proc/cmdline && [ -b /dev/vda ] && exit 7"
    what = "guests/run --iso: firmware boots the ISO, next to an empty disk"
    _demo(steps, what, ["--iso", str(images / "iso-hybrid.iso")], f"{booted % 'iso-hybrid'}", 7)
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory) / "uki.qcow2"
        if steps.must("qemu-img", ["qemu-img", "convert", "-O", "qcow2", str(images / "uki.raw"), str(image)], deadline=MINUTE):
            _demo(steps, "guests/run --image: firmware boots a copy of a qcow2 image", ["--image", str(image)], f"{booted % 'uki'}", 7)


def _demo(steps: Steps, what: str, options: list[str], command: str, wanted: int) -> None:
    """One run of guests/run, with a shell command for the guest that has to end with the wanted status."""
    code = steps.program(["guests/run", *options, "--", "sh", "-c", command], deadline=15 * MINUTE)
    if code == wanted:
        steps.passed(what)
    else:
        steps.failed(f"{what} (exit code {code}, not {wanted})")


BUILT = ("setup", "build", "guests")

STAGES = [
    Stage("setup", "install and prepare what the tests need", setup),
    Stage("build", "release binaries and end-to-end tests", build, needs=("setup",), behind=True),
    Stage("guests", "guest kernels, initramfs and disk images", guests, needs=("setup",), behind=True),
    Stage("longhorn", "the real Longhorn, and Paddock beside it", longhorn, needs=BUILT, behind=True),
    Stage("style", "formatting, lints, documentation, shell files, versions", style, needs=("setup",)),
    Stage("unit", "tests that need no KVM", unit, needs=("setup",)),
    Stage("lab", "the lab's own tests", lab, needs=("setup",)),
    Stage("vm", "end-to-end tests on real KVM", vm, needs=BUILT),
    Stage("conformance", "the HTTP API, asked by schemathesis and by a generated client", conformance, needs=BUILT, after=("vm",), behind=True),
    Stage("demo", "guests/run", demo, needs=BUILT),
    Stage("bench", "benchmarks beside QEMU, Longhorn and fio", bench, needs=BUILT, after=("longhorn", "conformance")),
    Stage("fuzz", "each fuzz target for a short time", fuzz, needs=("setup",)),
]
