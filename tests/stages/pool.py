"""Jobs of one stage that run at once, each in a thread and with steps of its own.

The output of a job comes in one piece, when it has ended; a line tells when it begins. What interrupts the wait for them (Ctrl-C, SIGTERM)
ends all that they run.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass

from stages.results import Counts
from stages.steps import Ended, Programs, Steps


@dataclass(frozen=True)
class Job:
    """A part of a stage that needs nothing of the other parts."""

    name: str
    run: Callable[[Steps], None]


def run_jobs(steps: Steps, jobs: Sequence[Job], *, at_once: int) -> None:
    """Runs jobs, begun in their order, so many at once. Returns when all have ended, with their counts added to those of `steps`."""
    programs = Programs()
    with ThreadPoolExecutor(at_once) as threads:
        try:
            pending = {threads.submit(_run, steps, job, programs) for job in jobs}
            while pending:
                # Not for ever: Python acts on a signal that comes right before it waits only afterwards.
                ended, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                for one in ended:
                    steps.counts += one.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            programs.end_all()
            raise


def _run(steps: Steps, job: Job, programs: Programs) -> Counts:
    lines: list[str] = []
    own = Steps(lines.extend, soak=steps.soak, programs=programs)
    steps.say(f"-- {job.name}: begins")
    began = time.monotonic()
    try:
        job.run(own)
    except Ended:
        own.say("ended before its end")
    except Exception as error:  # noqa: BLE001  # whatever it is, the other jobs still run
        own.failed(f"{job.name} ended by {type(error).__name__}: {error}")
    finally:
        steps.say(f"-- {job.name}: {own.counts} in {time.monotonic() - began:.0f} s", *lines)
    return own.counts
