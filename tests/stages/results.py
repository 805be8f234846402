"""Counting tests: what stages return, and what the output of libtest and unittest says."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

LIBTEST = re.compile(r"^(?:\[\d\] )?test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;")
LIBTEST_BEGINS = re.compile(r"^running \d+ tests?$")
LIBTEST_ONE = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. (?:ok|FAILED)$")
UNITTEST_RAN = re.compile(r"^Ran (\d+) tests? in ")
UNITTEST_END = re.compile(r"^(?:OK|FAILED)(?: \((.*)\))?$")


SLOWEST = 12
"""So many of the slowest tests are told of."""


@dataclass(frozen=True)
class Counts:
    """Tests that passed, failed and were skipped; and the slowest of them, in seconds."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    slowest: tuple[tuple[float, str], ...] = field(default=(), compare=False)

    def __add__(self, other: "Counts") -> "Counts":
        slowest = sorted(self.slowest + other.slowest, reverse=True)[:SLOWEST]
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped, tuple(slowest))

    def __str__(self) -> str:
        text = f"{self.passed} passed, {self.failed} failed"
        return f"{text}, {self.skipped} skipped" if self.skipped else text


class Counter:
    """Adds up the results that libtest and unittest announce in a stream of lines.

    How long a test of libtest took is how long its line was waited for, which is right where its tests run one after the other.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts = Counts()
        self._ran: int | None = None
        self._clock = clock
        self._since = clock()

    def line(self, text: str) -> None:
        """Takes one line of output."""
        if match := LIBTEST.match(text):
            passed, failed, ignored = (int(group) for group in match.groups())
            self.counts += Counts(passed, failed, ignored)
        elif LIBTEST_BEGINS.match(text):
            self._since = self._clock()
        elif match := LIBTEST_ONE.match(text):
            before, self._since = self._since, self._clock()
            self.counts += Counts(slowest=((self._since - before, match[1]),))
        elif match := UNITTEST_RAN.match(text):
            self._ran = int(match[1])
        elif self._ran is not None and (match := UNITTEST_END.match(text)):
            numbers = {name: int(value) for name, value in re.findall(r"([a-z ]+)=(\d+)", match[1] or "")}
            numbers = {name.strip(): value for name, value in numbers.items()}
            failed = numbers.get("failures", 0) + numbers.get("errors", 0) + numbers.get("unexpected successes", 0)
            skipped = numbers.get("skipped", 0)
            self.counts += Counts(max(0, self._ran - failed - skipped), failed, skipped)
            self._ran = None
