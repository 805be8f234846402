"""The stages of `tests/run`, in their order. To add one: write a function that takes `Steps`, and name it in STAGES."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stages import cargo
from stages.results import Counter, Counts
from stages.steps import REPOSITORY, Steps

MINUTE = 60.0

EXTRA_PACKAGES = ["acpica-tools", "dmsetup", "g++", "shellcheck"]
"""Debian packages that the stages below need, beside what the lab needs. g++ compiles libFuzzer, dmsetup makes disks with bad blocks."""

SHELLCHECK = ["shellcheck", "--external-sources", "--exclude=SC1091,SC2016"]
"""SC1091: a sourced file is checked where it is in the tree. SC2016: a dollar sign in single quotes is meant for another program."""

VM_MEMORY = "10G"
"""Memory of the lab's host for the end-to-end tests: a guest of 5 GiB, and scratch files on a tmpfs."""

VM_BINARY_DEADLINE = 15 * MINUTE
FUZZ_SECONDS = 60
FUZZ_SECONDS_SOAK = 300


@dataclass(frozen=True)
class Stage:
    """One stage. Where a stage it needs has failed, it counts as failed without being run."""

    name: str
    title: str
    run: Callable[[Steps], None]
    needs: tuple[str, ...] = ()


def setup(steps: Steps) -> None:
    """Installs and prepares; idempotent."""
    steps.must("tests/lab/setup", ["tests/lab/setup", *EXTRA_PACKAGES], deadline=20 * MINUTE)


def style(steps: Steps) -> None:
    """Formatting, lints, shell files, one version of each rust-vmm crate."""
    steps.check("formatted", ["cargo", "fmt", "--all", "--check"], deadline=MINUTE)
    clippy = ["cargo", "clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]
    steps.check("clippy", clippy, deadline=20 * MINUTE)
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
    if steps.must("paddock", ["cargo", "build", "--locked", "--release", "-p", "paddock-vmm"], deadline=20 * MINUTE):
        for command in cargo.TEST_BUILDS:
            steps.must("tests for the lab", command, deadline=20 * MINUTE)


def guests(steps: Steps) -> None:
    """Kernels, initramfs and disk images."""
    steps.must("guests/build", ["guests/build"], deadline=20 * MINUTE)


def lab(steps: Steps) -> None:
    """The lab's own tests."""
    steps.tests("tests of the lab", ["/usr/bin/python3", "-B", "tests/lab/test_lab.py", "-v"], deadline=20 * MINUTE)


# Runs the binaries given as arguments one after the other. $1 is each one's deadline in seconds.
VM_SCRIPT = """
deadline=$1; shift
modprobe --all bridge dm-mod loop tun veth
for binary; do
    echo "=== begin ${binary##*/}"
    timeout --kill-after=15 "$deadline" "$binary" --test-threads=1 2>&1
    echo "=== end ${binary##*/} $?"
done
"""


class _Binaries:
    """Follows VM_SCRIPT's output: each binary's counts, and those that did not end as a test binary does."""

    def __init__(self) -> None:
        self.results: dict[str, Counts] = {}
        """By the file's name; a binary that ended oddly counts one failure more."""
        self.bad: list[str] = []
        self._counter = Counter()

    def line(self, text: str) -> None:
        """Takes one line."""
        words = text.split()
        if text.startswith("=== begin "):
            self._counter = Counter()
        elif text.startswith("=== end ") and len(words) == 4:
            counts, code = self._counter.counts, int(words[3])
            why = None
            if code and not counts.failed:
                why = "missed its deadline" if code in (124, 137) else f"ended with exit code {code}"
            elif counts == Counts():
                why = "has no tests"
            if why:
                self.bad.append(f"{words[2]} {why}")
            self.results[words[2]] = counts + Counts(failed=1 if why else 0)
        else:
            self._counter.line(text)


def _run_in_lab(steps: Steps, paths: list[Path]) -> _Binaries:
    """Runs test binaries in one host of the lab; those that it did not come to are missing in the results."""
    deadline = VM_BINARY_DEADLINE * (8 if steps.soak else 1)
    whole = deadline * len(paths)
    followed = _Binaries()
    arguments = [f"{deadline:.0f}", *(str(path) for path in paths)]
    steps.program(
        ["tests/lab/run", "--memory", VM_MEMORY, "--deadline", f"{whole:.0f}", "--", "bash", "-c", VM_SCRIPT, "vm", *arguments],
        deadline=whole + 10 * MINUTE,
        environment={"PADDOCK_BIN": str(cargo.target_directory() / "release" / "paddock")},
        on_line=followed.line,
    )
    return followed


def vm(steps: Steps) -> None:
    """All end-to-end tests in one host of the lab.

    QEMU's emulation of nested virtualization now and then loses an interrupt or takes one where it must not, and then a guest, or the
    emulated host itself, hangs or panics. So a binary with a failure is run once more, whole, and its second result counts; both are in the log.
    """
    paths = list(cargo.test_binaries().values())
    if not paths:
        steps.failed("paddock-tests has no end-to-end tests")
        return
    followed = _run_in_lab(steps, paths)
    results, bad = followed.results, followed.bad
    again = [path for path in paths if path.name not in results or results[path.name].failed]
    if again:
        steps.say(f"once more, for they failed or did not end: {', '.join(path.name for path in again)}")
        second = _run_in_lab(steps, again)
        results, bad = results | second.results, second.bad
        for path in again:
            if path.name in second.results and not second.results[path.name].failed:
                steps.say(f"UNSTEADY: {path.name} passed only the second time")
    for counts in results.values():
        steps.counts += counts
    for what in bad:
        steps.say(f"FAILED: {what}")
    for path in paths:
        if path.name not in results:
            steps.failed(f"the lab ended before {path.name} had")


def fuzz(steps: Steps) -> None:
    """Every fuzz target for a short time."""
    seconds = FUZZ_SECONDS_SOAK if steps.soak else FUZZ_SECONDS
    targets = len(list((REPOSITORY / "tests" / "fuzz" / "fuzz_targets").glob("*.rs")))
    deadline = 15 * MINUTE + targets * (seconds + MINUTE)
    steps.tests("fuzz targets", ["tests/fuzz/run", str(seconds)], deadline=deadline)


def demo(steps: Steps) -> None:
    """The README's first command, with a command for the guest."""
    lines: list[str] = []
    code = steps.program(["guests/run", "--", "uname", "-r"], deadline=15 * MINUTE, on_line=lines.append)
    kernel = [line for line in lines if re.fullmatch(r"\d+\.\d+\.\d+\S*\r?", line)]
    what = f"{shlex.join(['guests/run', '--', 'uname', '-r'])} prints the guest's kernel"
    if code == 0 and kernel:
        steps.passed(f"{what} ({kernel[-1].strip()})")
    else:
        steps.failed(f"{what} (exit code {code})")
    # Once more, with the disk of the first time: the guest reaches the host over the VLAN, and its command's status comes back.
    ping = "for try in $(seq 20); do ping -c 1 -W 2 10.100.0.1 && exit 7; sleep 1; done; exit 1"
    code = steps.program(["guests/run", "--keep", "--", "sh", "-c", ping], deadline=15 * MINUTE)
    what = "guests/run: the guest reaches the host, and its command's exit status is passed on"
    if code == 7:
        steps.passed(what)
    else:
        steps.failed(f"{what} (exit code {code}, not 7)")


STAGES = [
    Stage("setup", "install and prepare what the tests need", setup),
    Stage("style", "formatting, lints, shell files, versions", style, needs=("setup",)),
    Stage("unit", "tests that need no KVM", unit, needs=("setup",)),
    Stage("build", "release binaries and end-to-end tests", build, needs=("setup",)),
    Stage("guests", "guest kernels, initramfs and disk images", guests, needs=("setup",)),
    Stage("lab", "the lab's own tests", lab, needs=("setup",)),
    Stage("vm", "end-to-end tests on real KVM", vm, needs=("setup", "build", "guests")),
    Stage("fuzz", "each fuzz target for a short time", fuzz, needs=("setup",)),
    Stage("demo", "guests/run", demo, needs=("setup", "build", "guests")),
]
