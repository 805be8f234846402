"""Entry point of `tests/run`: options, the loop over the stages, the summary."""

import argparse
import os
import signal
import sys
import time
from types import FrameType

from stages.lanes import Row, run_stages
from stages.results import Counts
from stages.steps import LOGS
from stages.table import STAGES

SLOW = 10.0
"""Seconds from which on a test is worth a word."""

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


def _summary(rows: list[Row], seconds: float) -> Counts:
    total = sum((row.counts for row in rows), Counts())
    print(f"\n== summary (logs: {LOGS})")
    slow = [(took, name) for took, name in total.slowest if took >= SLOW]
    if slow:
        print(f"the slowest tests: {', '.join(f'{name} {took:.0f} s' for took, name in slow)}")
    for row in rows:
        mark = "FAILED" if row.counts.failed else "ok"
        print(f"{row.stage.name:11} {mark:6} {_time(row.seconds)}  {row.counts}{'  (beside others)' if row.stage.behind else ''}")
    print(f"{'all':11} {'':6} {_time(seconds)}")
    return total


def _time(seconds: float) -> str:
    return f"{int(seconds) // 60:3d}:{int(seconds) % 60:02d}"


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
    began = time.monotonic()
    rows = run_stages([stage for stage in STAGES if not options.only or stage.name in options.only], soak=options.soak)
    total = _summary(rows, time.monotonic() - began)
    print(total, flush=True)
    return 0 if total.passed and not total.failed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
