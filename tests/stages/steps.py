"""Running one step of a stage: a program whose output is shown, logged, counted, and ended at a deadline.

The steps of a stage run one after the other, in the main thread. The jobs of pool.py have steps of their own, each in a thread of its own.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from stages.results import Counter, Counts

REPOSITORY = Path(__file__).resolve().parents[2]
LOGS = REPOSITORY / "target" / "test-logs"

DEADLINE = 124
"""The exit code of a step that missed its deadline."""


class Log:
    """A stage's output: in a file of its own, and on stdout, as it comes or in one piece. Of use to several threads at once: what one call is given
    stays together."""

    def __init__(self, name: str, *, live: bool = True) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.path = LOGS / f"{name}.log"
        self._live = live
        self._file = self.path.open("w", encoding="utf-8", errors="replace")
        self._lock = threading.Lock()

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def write(self, lines: Iterable[str]) -> None:
        """Some lines."""
        text = "".join(f"{line}\n" for line in lines)
        with self._lock:
            if self._live:
                sys.stdout.write(text)
                sys.stdout.flush()
            with suppress(ValueError):
                self._file.write(text)
                self._file.flush()


class Ended(Exception):
    """The run is being ended: no program is started any more."""


class Programs:
    """The programs that run, for whoever has to end them all. Of use to several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._over = False

    @property
    def over(self) -> bool:
        """Whether all has been ended."""
        with self._lock:
            return self._over

    def start(self, command: list[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
        """Starts a program in a process group of its own; OSError where there is no such program, Ended after `end_all`."""
        with self._lock:
            if self._over:
                raise Ended
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
            return process

    def ended(self, process: subprocess.Popen[str]) -> None:
        """Forgets a program that has ended."""
        with self._lock:
            self._running.discard(process)

    def end_all(self) -> None:
        """Ends what runs, and lets nothing start any more."""
        with self._lock:
            self._over = True
            running = list(self._running)
        _end(*running)


class Steps:
    """Steps that follow one another; collects their counts. `write` takes their output, `soak` asks for long runs."""

    def __init__(self, write: Callable[[Iterable[str]], None], *, soak: bool, programs: Programs | None = None) -> None:
        self.soak = soak
        self.counts = Counts()
        self.programs = programs or Programs()
        self._write = write

    def say(self, *lines: str) -> None:
        """Lines of output, which stay together."""
        self._write(lines)

    def passed(self, what: str) -> None:
        """Counts one check that passed."""
        self.counts += Counts(passed=1)
        self.say(f"ok: {what}")

    def failed(self, what: str) -> None:
        """Counts one check that failed."""
        self.counts += Counts(failed=1)
        self.say(f"FAILED: {what}")

    def program(
        self,
        command: list[str],
        *,
        deadline: float,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> int:
        """Runs a program to its end, without counting; returns its exit code (128 + N for a signal, DEADLINE when it was ended for that)."""
        self.say("$ " + " ".join(command))
        variables = dict(os.environ, **(environment or {}))
        try:
            process = self.programs.start(command, variables)
        except OSError as error:
            self.say(f"cannot start {command[0]}: {error}")
            return 127
        late = threading.Event()

        def end() -> None:
            late.set()
            _end(process)

        timer = threading.Timer(deadline, end)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdout
            with process.stdout:
                for line in process.stdout:
                    self.say(line.rstrip("\n"))
                    if on_line:
                        on_line(line.rstrip("\n"))
            code = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            timer.cancel()
            self.programs.ended(process)
        if late.is_set():
            self.say(f"the step has not ended within {deadline:.0f} s and was ended")
            return DEADLINE
        return 128 - code if code < 0 else code

    def check(self, what: str, command: list[str], *, deadline: float, environment: Mapping[str, str] | None = None) -> bool:
        """One check: passed when the program exits with 0."""
        code = self.program(command, deadline=deadline, environment=environment)
        if code == 0:
            self.passed(what)
        else:
            self.failed(f"{what} (exit code {code})")
        return code == 0

    def must(self, what: str, command: list[str], *, deadline: float, environment: Mapping[str, str] | None = None) -> bool:
        """A preparation: counts only when it fails."""
        code = self.program(command, deadline=deadline, environment=environment)
        if code:
            self.failed(f"{what} (exit code {code})")
        return code == 0

    def tests(self, what: str, command: list[str], *, deadline: float, environment: Mapping[str, str] | None = None) -> bool:
        """A program whose output tells of tests. An exit code that no failed test explains is a failure, too."""
        counter = Counter()
        code = self.program(command, deadline=deadline, environment=environment, on_line=counter.line)
        self.counts += counter.counts
        if code and not counter.counts.failed:
            self.failed(f"{what} (exit code {code})")
        elif not code and counter.counts == Counts():
            self.failed(f"{what}: no tests ran")
        return code == 0


def _end(*processes: subprocess.Popen[str]) -> None:
    """Ends the process groups of steps: first by SIGTERM, so that the lab takes its hosts down, then by SIGKILL."""
    for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
        for process in processes:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
        until = time.monotonic() + patience
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, until - time.monotonic()))
    sys.stdout.flush()
