"""Counting tests: what stages return, and what the output of libtest and unittest says."""

import re
from dataclasses import dataclass

LIBTEST = re.compile(r"^(?:\[\d\] )?test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;")
UNITTEST_RAN = re.compile(r"^Ran (\d+) tests? in ")
UNITTEST_END = re.compile(r"^(?:OK|FAILED)(?: \((.*)\))?$")


@dataclass(frozen=True)
class Counts:
    """Tests that passed, failed and were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        text = f"{self.passed} passed, {self.failed} failed"
        return f"{text}, {self.skipped} skipped" if self.skipped else text


class Counter:
    """Adds up the results that libtest and unittest announce in a stream of lines."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._ran: int | None = None

    def line(self, text: str) -> None:
        """Takes one line of output."""
        if match := LIBTEST.match(text):
            passed, failed, ignored = (int(group) for group in match.groups())
            self.counts += Counts(passed, failed, ignored)
        elif match := UNITTEST_RAN.match(text):
            self._ran = int(match[1])
        elif self._ran is not None and (match := UNITTEST_END.match(text)):
            numbers = {name: int(value) for name, value in re.findall(r"([a-z ]+)=(\d+)", match[1] or "")}
            numbers = {name.strip(): value for name, value in numbers.items()}
            failed = numbers.get("failures", 0) + numbers.get("errors", 0) + numbers.get("unexpected successes", 0)
            skipped = numbers.get("skipped", 0)
            self.counts += Counts(max(0, self._ran - failed - skipped), failed, skipped)
            self._ran = None
