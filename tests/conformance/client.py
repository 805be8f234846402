"""Whether a client generated from api/openapi.json can drive one VM through its life: client/drive.ts does, against a live process in the lab.

Wants PADDOCK_BIN, and what tests/conformance/client/build made.
"""

import subprocess
import unittest
from pathlib import Path

from process import Paddock

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / "target" / "conformance" / "client" / "built" / "drive.js"
GUESTS = REPOSITORY / "target" / "guests"
DEADLINE = 300.0


class Drive(unittest.TestCase):
    """One VM."""

    def test_the_generated_client_drives_one_vm(self) -> None:
        self.assertTrue(PROGRAM.exists(), "run tests/conformance/client/build")
        with Paddock(kvm=True) as paddock:
            disks = [paddock.image(f"{name}.img") for name in ("one", "other")]
            command: list[str | Path] = ["node", PROGRAM, paddock.socket, GUESTS / "vmlinuz", GUESTS / "initramfs.cpio", *disks]
            try:
                code = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, timeout=DEADLINE).returncode
            except subprocess.TimeoutExpired:
                self.fail(f"the client has not ended within {DEADLINE:.0f} s; the log of paddock:\n{paddock.logged()}")
            self.assertEqual(code, 0, f"the client failed, see above; the log of paddock:\n{paddock.logged()}")
            self.assertEqual(paddock.stop(), 0, paddock.logged())


if __name__ == "__main__":
    unittest.main(verbosity=2)
