"""Running one step of a stage: a program whose output is shown as it comes, logged, counted, and ended at a deadline."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from stages.results import Counter, Counts

REPOSITORY = Path(__file__).resolve().parents[2]
LOGS = REPOSITORY / "target" / "test-logs"

DEADLINE = 124
"""The exit code of a step that missed its deadline."""


class Steps:
    """The steps of one stage; collects their counts. `soak` asks for long runs."""

    def __init__(self, name: str, *, soak: bool) -> None:
        self.soak = soak
        self.counts = Counts()
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log_path = LOGS / f"{name}.log"
        self._log: TextIO = self.log_path.open("w", encoding="utf-8", errors="replace")

    def close(self) -> None:
        """Ends the log."""
        self._log.close()

    def say(self, text: str) -> None:
        """One line on stdout and in the log."""
        print(text, flush=True)
        with suppress(ValueError):
            self._log.write(text + "\n")
            self._log.flush()

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


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a step's process group: first by SIGTERM, so that the lab takes its hosts down, then by SIGKILL."""
    for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
    sys.stdout.flush()
