"""Whether a live process keeps what api/openapi.json promises: schemathesis asks, by requests made from the document.

    tests/conformance/schema.py breadth    on this machine, without KVM: every kind of request, and every refusal
    tests/conformance/schema.py vm         in the lab, with a VM that runs: fewer requests, and every success

Wants PADDOCK_BIN, and what tests/conformance/setup made. A run begins with the same seed each time; under PADDOCK_SOAK it is long, and the
seed is by chance and told.
"""

import json
import os
import random
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

from process import NOBODY, Forwarder, Paddock

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SCHEMATHESIS = REPOSITORY / "target" / "conformance" / "python" / "bin" / "schemathesis"
FILE = REPOSITORY / "api" / "openapi.json"
DOCUMENT = json.loads(FILE.read_text(encoding="utf-8"))
SOAK = "PADDOCK_SOAK" in os.environ
TAP = "paddock-fuzz"
VOLUME = "volume"
METHODS = {"get", "put", "post", "delete"}

GENERAL = {"403", "405", "408", "413", "503"}
"""Refusals that have nothing to do with the operation, or that no small request meets; the tests of the `api` crate meet them."""

WITH_A_VM = {
    "add_disk": {"422"},
    "add_nic": {"422"},
    "cancel_job": {"409"},
    "limit_disk": {"409"},
    "read_memory_statistics": {"409"},
    "resize_disk": {"409"},
    "list_replicas": {"409"},
    "add_replica": {"409"},
    "remove_replica": {"409"},
    "list_snapshots": {"409"},
    "take_snapshot": {"409"},
    "remove_snapshot": {"409"},
}
"""Refusals that take a VM that runs, or has run."""

EVENTS = {"events": {"200"}}
"""Beside the operations, the hooks count the events whose data they looked at."""


def operations() -> dict[str, Any]:
    """The document's operations by their id."""
    found = (operation for path in DOCUMENT["paths"].values() for method, operation in path.items() if method in METHODS)
    return {operation["operationId"]: operation for operation in found}


class Run(unittest.TestCase):
    """One run of schemathesis against one process."""

    def ask(self, *, kvm: bool, options: list[str], deadline: float) -> dict[str, dict[str, int]]:
        """Runs schemathesis; returns how often each operation was answered with which status."""
        self.assertTrue(SCHEMATHESIS.exists(), "run tests/conformance/setup")
        seed = random.SystemRandom().randrange(1 << 32) if SOAK else 1
        with Paddock(kvm=kvm) as paddock, Forwarder(paddock.socket) as forwarder:
            tally = paddock.scratch / "tally.json"
            environment = {
                "PATH": os.environ["PATH"],
                "HOME": str(paddock.scratch),
                "PYTHONDONTWRITEBYTECODE": "1",
                "SCHEMATHESIS_HOOKS": "hooks",
                "PYTHONPATH": str(HERE),
                "PADDOCK_SOCKET": str(paddock.socket),
                "PADDOCK_TALLY": str(tally),
                "PADDOCK_SCRATCH": str(paddock.work),
            }
            if kvm:
                environment["PADDOCK_SPEC"] = json.dumps(spec(paddock))
            command = [str(SCHEMATHESIS), "--config-file", str(HERE / "schemathesis.toml"), "run"]
            # From the file and not from the process: where schemathesis has read a document from, it does not test.
            command += [str(FILE), "--url", f"http://127.0.0.1:{forwarder.port}", "--no-color", "--seed", str(seed), *options]
            try:
                code = subprocess.run(command, cwd=paddock.scratch, env=environment, check=False, stdin=subprocess.DEVNULL, timeout=deadline).returncode
            except subprocess.TimeoutExpired:
                self.fail(f"schemathesis has not ended within {deadline:.0f} s; the log of paddock:\n{paddock.logged()}")
            self.assertEqual(code, 0, f"schemathesis found breaches, see above; the log of paddock:\n{paddock.logged()}")
            self.assertEqual(paddock.stop(), 0, paddock.logged())
            self.assertNotIn("panicked", paddock.log.read_text(errors="replace"))
            return dict(json.loads(tally.read_text(encoding="utf-8")))

    def each_answered(self, tally: dict[str, dict[str, int]], wanted: dict[str, set[str]]) -> None:
        """Fails unless each operation got all of its statuses: a run in which it did not has shown nothing about them."""
        for operation, statuses in tally.items():
            print(f"{operation:24}", *(f"{status}: {count}" for status, count in sorted(statuses.items())), sep="  ")
        lacking = {name: statuses - set(tally.get(name, {})) for name, statuses in wanted.items()}
        self.assertEqual({name: statuses for name, statuses in lacking.items() if statuses}, {}, "operations that never had these answers")


class Breadth(Run):
    """Without KVM."""

    def test_no_breach_and_every_operation_refuses(self) -> None:
        examples = "600" if SOAK else "100"
        tally = self.ask(kvm=False, options=["--max-examples", examples], deadline=900 if SOAK else 240)
        refusals = {name: {status for status in operation["responses"] if status.startswith("4")} for name, operation in operations().items()}
        self.each_answered(tally, {name: statuses - GENERAL - WITH_A_VM.get(name, set()) for name, statuses in refusals.items()} | EVENTS)


class Vm(Run):
    """With a VM that runs, in the lab."""

    def setUp(self) -> None:
        # A tap of nobody's, since the process is nobody's.
        owner = ["user", str(NOBODY)] if os.geteuid() == 0 else []
        subprocess.run(["ip", "tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr", *owner], check=True)
        self.addCleanup(subprocess.run, ["ip", "link", "delete", TAP], check=True)

    def test_no_breach_and_every_operation_succeeds(self) -> None:
        options = ["--max-examples", "20"] if SOAK else ["--phases", "fuzzing", "--max-examples", "6", "--no-shrink"]
        tally = self.ask(kvm=True, options=options, deadline=1200 if SOAK else 600)
        self.each_answered(tally, {name: {status for status in operation["responses"] if status.startswith("2")} for name, operation in operations().items()} | EVENTS)


def spec(paddock: Paddock) -> dict[str, Any]:
    """A VM with something of everything, whose guest boots Linux with the probe."""
    guests = REPOSITORY / "target" / "guests"
    return {
        "name": "conformance",
        "boot": {"kernel": str(guests / "vmlinuz"), "initramfs": str(guests / "initramfs.cpio"), "command_line": "console=ttyS0 quiet panic=-1"},
        "cpus": {"count": 1, "max": 2},
        "memory": {"size": "256MiB", "max": "512MiB"},
        "balloon": {},
        "disks": [{"id": VOLUME, "volume": paddock.volume(3)}, {"path": str(paddock.image("disk.img"))}],
        "cdroms": [{}],
        "nics": [{"tap": TAP}],
        "console": {"serial": {"file": str(paddock.work / "console.log")}},
    }


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what schemathesis prints stays in its place
    runs = {"breadth": "Breadth", "vm": "Vm"}
    if len(sys.argv) != 2 or sys.argv[1] not in runs:
        sys.exit(__doc__)
    unittest.main(argv=[sys.argv[0], runs[sys.argv[1]], "-v"])
