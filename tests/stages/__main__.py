"""Entry point of `tests/run`: options, the loop over the stages, the summary."""

import argparse
import os
import signal
import sys
import time
from types import FrameType

from stages.results import Counts
from stages.steps import LOGS, Log, Steps
from stages.table import STAGES, Stage

Row = tuple[Stage, Counts, float]


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/run", description="Passes all tests of Paddock.")
    parser.add_argument("--list", action="store_true", help="list the stages and end")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE", help="run only this stage (repeatable, or several with commas)")
    parser.add_argument("--soak", action="store_true", help="run long: PADDOCK_SOAK=1 for the tests, long fuzzing, all benchmarks, long deadlines")
    options = parser.parse_args(arguments)
    options.only = [name for given in options.only for name in given.split(",") if name]
    unknown = set(options.only) - {stage.name for stage in STAGES}
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; see --list")
    return options


def _run(stage: Stage, failed: set[str], *, soak: bool) -> Row:
    print(f"\n== {stage.name}: {stage.title}", flush=True)
    began = time.monotonic()
    log = Log(stage.name)
    steps = Steps(log.write, soak=soak)
    try:
        missing = [name for name in stage.needs if name in failed]
        if missing:
            steps.failed(f"not run, since {', '.join(missing)} failed")
        else:
            stage.run(steps)
        if steps.counts.skipped and os.environ.get("CI") == "true":
            steps.failed(f"{steps.counts.skipped} skipped, which CI does not allow")
    except Exception as error:  # noqa: BLE001  # whatever it is, the other stages still run
        steps.failed(f"the stage ended by {type(error).__name__}: {error}")
    finally:
        log.close()
    return stage, steps.counts, time.monotonic() - began


def _summary(rows: list[Row]) -> Counts:
    total = Counts()
    print(f"\n== summary (logs: {LOGS})")
    for stage, counts, seconds in rows:
        mark = "FAILED" if counts.failed else "ok"
        print(f"{stage.name:11} {mark:6} {int(seconds) // 60:3d}:{int(seconds) % 60:02d}  {counts}")
        total += counts
    seconds = sum(row[2] for row in rows)
    print(f"{'all':11} {'':6} {int(seconds) // 60:3d}:{int(seconds) % 60:02d}")
    return total


def _terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> int:
    """Runs the stages asked for; returns the exit code."""
    options = _options(sys.argv[1:])
    if options.list:
        for stage in STAGES:
            print(f"{stage.name:11} {stage.title}")
        return 0
    if options.soak:
        os.environ["PADDOCK_SOAK"] = "1"
    signal.signal(signal.SIGTERM, _terminate)
    failed: set[str] = set()
    rows: list[Row] = []
    for stage in STAGES:
        if options.only and stage.name not in options.only:
            continue
        row = _run(stage, failed, soak=options.soak)
        rows.append(row)
        if row[1].failed:
            failed.add(stage.name)
    total = _summary(rows)
    print(total, flush=True)
    return 0 if total.passed and not total.failed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
