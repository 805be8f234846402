"""The order of the stages: one after the other in front, and beside them, likewise one after the other, those that may run behind.

What runs behind shows its output in one piece, when it has ended. What interrupts the wait for it (Ctrl-C, SIGTERM) ends all that it runs.
"""

import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stages.results import Counts
from stages.steps import Ended, Log, Programs, Steps
from stages.table import Stage


@dataclass(frozen=True)
class Row:
    """What a stage came to."""

    stage: Stage
    counts: Counts
    seconds: float


class Rows:
    """The stages that have ended, for those that wait for them."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._pending = {stage.name for stage in stages}
        self._rows: list[Row] = []
        self._changed = threading.Condition()

    def add(self, row: Row) -> None:
        """A stage has ended."""
        with self._changed:
            self._rows.append(row)
            self._pending.discard(row.stage.name)
            self._changed.notify_all()

    def wait_for(self, names: Iterable[str], programs: Programs) -> list[str]:
        """Waits until the stages with these names have ended, if they run at all; returns those that failed. Ended once `programs` have been."""
        wanted = set(names)
        with self._changed:
            # Not for ever: Python acts on a signal that comes right before it waits only afterwards.
            while self._pending & wanted and not programs.over:
                self._changed.wait(1)
            if programs.over:
                raise Ended
            return [row.stage.name for row in self._rows if row.stage.name in wanted and row.counts.failed]

    def in_order(self, stages: Sequence[Stage]) -> list[Row]:
        """The rows, in the order of the table."""
        return sorted(self._rows, key=lambda row: stages.index(row.stage))


def run_stages(stages: Sequence[Stage], *, soak: bool) -> list[Row]:
    """Runs stages to their end."""
    rows, programs = Rows(stages), Programs()
    behind = threading.Thread(target=_behind, args=([stage for stage in stages if stage.behind], rows, programs, soak))
    behind.start()
    try:
        for stage in stages:
            if not stage.behind:
                failed = rows.wait_for(stage.needs + stage.after, programs)
                print(f"\n== {stage.name}: {stage.title}", flush=True)
                rows.add(_run(stage, failed, Log(stage.name), programs, soak=soak))
        rows.wait_for([stage.name for stage in stages], programs)
    except BaseException:
        programs.end_all()
        raise
    finally:
        behind.join()
    return rows.in_order(stages)


def _behind(stages: Sequence[Stage], rows: Rows, programs: Programs, soak: bool) -> None:
    for stage in stages:
        try:
            failed = rows.wait_for(stage.needs + stage.after, programs)
        except Ended:
            return
        print(f"-- {stage.name}: begins, beside what follows", flush=True)
        row = Row(stage, Counts(failed=1), 0.0)
        try:
            log = Log(stage.name, live=False)
            row = _run(stage, failed, log, programs, soak=soak)
            text = log.path.read_text(encoding="utf-8", errors="replace")
            sys.stdout.write(f"\n== {stage.name}: {stage.title} (it ran beside others, {row.seconds:.0f} s)\n{text}\n")
            sys.stdout.flush()
        finally:
            # Whatever happens: others may wait for it.
            rows.add(row)


def _run(stage: Stage, failed: Sequence[str], log: Log, programs: Programs, *, soak: bool) -> Row:
    began = time.monotonic()
    steps = Steps(log.write, soak=soak, programs=programs)
    try:
        missing = [name for name in failed if name in stage.needs]
        if missing:
            steps.failed(f"not run, since {', '.join(missing)} failed")
        else:
            stage.run(steps)
        if steps.counts.skipped and os.environ.get("CI") == "true":
            steps.failed(f"{steps.counts.skipped} skipped, which CI does not allow")
    except Ended:
        steps.failed("ended before its end")
    except Exception as error:  # noqa: BLE001  # whatever it is, the other stages still run
        steps.failed(f"the stage ended by {type(error).__name__}: {error}")
    finally:
        log.close()
    return Row(stage, steps.counts, time.monotonic() - began)
