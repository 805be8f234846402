"""Chooses where the command runs, runs it, and turns the lab's own failures into messages and exit codes."""

import subprocess

from paddock_lab import direct, emulated
from paddock_lab.options import REPOSITORY, parse
from paddock_lab.status import LAB_FAILED, LabError, say


def _setup(*options: str) -> None:
    """Installs and prepares what is missing. What it says goes to stderr: stdout is the command's."""
    command = [str(REPOSITORY / "tests" / "lab" / "setup"), *options]
    try:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=2)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LabError(f"tests/lab/setup: {error}") from error
    except KeyboardInterrupt:
        raise LabError("interrupted during tests/lab/setup") from None


def main(arguments: list[str]) -> int:
    """The whole of `tests/lab/run`; returns its exit code."""
    options = parse(arguments)
    try:
        here = options.mode == "direct" or (options.mode == "auto" and direct.hardware_kvm())
        if options.where:
            print("direct" if here else "emulated")
            return 0
        if here:
            _setup("--direct")
            return direct.run(options)
        _setup()
        return emulated.run(options)
    except LabError as error:
        say(f"the lab failed: {error}")
        return LAB_FAILED
