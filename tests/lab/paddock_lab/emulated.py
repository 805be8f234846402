"""Runs a command inside emulated hosts: the attempt, its repetition after QEMU's known abort, and the logs that are kept."""

import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from paddock_lab import terminal
from paddock_lab.channel import ChannelError
from paddock_lab.options import LAB, LONGEST, Options
from paddock_lab.output import OutputClosed
from paddock_lab.session import Interrupted, KnownAbort, Session
from paddock_lab.status import DEADLINE, LAB_FAILED, LabError, say

LOGS_KEPT = 20
"""Directories of failed runs kept in target/lab/runs."""

INITRAMFS = "initramfs.cpio"
"""In a run's directory from its start to its end (qemu.py makes it)."""


def _attempt(options: Options, run_directory: Path, *, may_retry: bool) -> int | None:
    """One attempt; None when it is to be repeated."""
    began = time.monotonic()
    session = Session(options, run_directory)
    try:
        with session:
            try:
                session.start()
                if not all(host.mended() for host in session.hosts):
                    say("QEMU's build is not one that tests/lab/qemu_shim.c knows; guests with several CPUs may now and then hang or crash")
                if not options.quiet:
                    where = "two emulated hosts" if options.hosts == 2 else "an emulated host"
                    say(f"running in {where} ({options.cpus} CPUs, {options.memory} MiB), up after {time.monotonic() - began:.1f} s")
                return session.run()
            finally:
                if any(host.shim_fired() for host in session.hosts):
                    say("QEMU's known wrong assertion (tcg_handle_interrupt, bql_locked) came up and was passed over")
    except KnownAbort:
        said = "QEMU aborted by its known bug (tcg_handle_interrupt: assertion failed: bql_locked)"
        if not may_retry:
            raise LabError(f"{said}; not trying again") from None
        if session.stdin_used:
            raise LabError(f"{said}; not trying again, since the command may have read from stdin") from None
        say(f"{said}; trying once more")
        return None


def _run(options: Options, run_directory: Path) -> int:
    try:
        code = _attempt(options, run_directory, may_retry=options.retry)
        if code is None:
            code = _attempt(options, run_directory, may_retry=False)
    except ChannelError as error:
        raise LabError(str(error)) from error
    except Interrupted as interruption:
        return int(interruption.args[0])
    except OutputClosed:
        return 128 + signal.SIGPIPE
    return LAB_FAILED if code is None else code


def _new_run_directory() -> Path:
    """A directory for this run's logs; the oldest ones are deleted."""
    runs = LAB / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for old in sorted(runs.iterdir())[:-LOGS_KEPT]:
        # Another run, at the same time, may delete it before us.
        with suppress(FileNotFoundError):
            running = (old / INITRAMFS).exists() and old.stat().st_mtime > time.time() - LONGEST
            if not running:
                shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=runs))


def run(options: Options) -> int:
    """Runs the command in emulated hosts; returns the exit code of `tests/lab/run`."""
    if options.tty and not terminal.is_terminal(0):
        raise LabError("--tty needs a terminal on stdin")
    run_directory = _new_run_directory()
    keep = True
    try:
        code = _run(options, run_directory)
        keep = options.keep_logs or code in (DEADLINE, LAB_FAILED)
        return code
    finally:
        (run_directory / INITRAMFS).unlink(missing_ok=True)
        if not keep:
            shutil.rmtree(run_directory, ignore_errors=True)
