"""What the stages ask cargo: the test binaries for the lab, and the packages in the tree."""

import json
import subprocess
from pathlib import Path

from stages.steps import REPOSITORY

TEST_BUILDS = [
    ["cargo", "test", "--locked", "-p", "paddock-tests", "--no-run"],
    # On taps and bridges, which this machine's kernel may not have.
    ["cargo", "test", "--locked", "-p", "paddock-network", "--features", "lab-tests", "--test", "host", "--no-run"],
]
"""What builds the tests that run in the lab, or beside it: those of paddock-tests, and those of other packages that need the lab's kernel. They are
debug builds, whose dependencies the unit tests have built: tests wait for guests, and what they test is the release build of paddock."""


class CargoError(Exception):
    """Cargo failed; the text is what it said."""


def _cargo(command: list[str]) -> str:
    result = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode:
        raise CargoError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


def metadata(manifest: Path | None = None, *, dependencies: bool = True) -> dict:  # type: ignore[type-arg]  # cargo's JSON
    """`cargo metadata` of the workspace or of another manifest."""
    command = ["cargo", "metadata", "--format-version", "1"]
    command += ["--manifest-path", str(manifest)] if manifest else ["--locked"]
    return json.loads(_cargo(command + ([] if dependencies else ["--no-deps"])))


def target_directory() -> Path:
    """Where cargo puts what it builds."""
    return Path(metadata(dependencies=False)["target_directory"])


def test_binaries() -> dict[str, Path]:
    """The test binaries for the lab and this machine (tests/ targets, not libraries), by name; builds them where need be."""
    found: dict[str, Path] = {}
    for build in TEST_BUILDS:
        for line in _cargo([*build, "--message-format=json"]).splitlines():
            message = json.loads(line) if line.startswith("{") else {}
            if message.get("reason") == "compiler-artifact" and message.get("executable") and "test" in message["target"]["kind"]:
                found[message["target"]["name"]] = Path(message["executable"])
    return dict(sorted(found.items()))


def doubled_rust_vmm_crates() -> dict[str, list[str]]:
    """The crates of the rust-vmm project that are in the tree in more than one version: their types would not fit together."""
    versions: dict[str, set[str]] = {}
    for package in metadata()["packages"]:
        if "/rust-vmm/" in (package.get("repository") or ""):
            versions.setdefault(package["name"], set()).add(package["version"])
    return {name: sorted(found) for name, found in versions.items() if len(found) > 1}
