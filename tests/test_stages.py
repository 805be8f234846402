"""Tests of the runner behind tests/run: counting, and steps that fail, hang or cannot start."""

import sys
import time
import unittest
import unittest.mock
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from stages.results import Counter, Counts  # noqa: E402
from stages.steps import DEADLINE, Steps  # noqa: E402
from stages import table  # noqa: E402
from stages.table import STAGES  # noqa: E402


def counted(text: str) -> Counts:
    """The counts of some output."""
    counter = Counter()
    for line in text.splitlines():
        counter.line(line)
    return counter.counts


class Counting(unittest.TestCase):
    """Output of libtest and unittest."""

    def test_libtest(self) -> None:
        text = "test a ... ok\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n"
        self.assertEqual(counted(text + "[2] test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out"), Counts(4, 2, 1))

    def test_unittest(self) -> None:
        self.assertEqual(counted("Ran 5 tests in 1.2s\n\nOK\n"), Counts(5))
        self.assertEqual(counted("Ran 9 tests in 1.2s\n\nFAILED (failures=1, errors=2, skipped=3)\n"), Counts(3, 3, 3))
        self.assertEqual(counted("OK\n"), Counts())

    def test_last_line(self) -> None:
        self.assertEqual(str(Counts(3, 1)), "3 passed, 1 failed")
        self.assertEqual(str(Counts(3, 1, 2)), "3 passed, 1 failed, 2 skipped")


class Binaries(unittest.TestCase):
    """The end-to-end tests' binaries, with a lab that does as it is told."""

    def counts(self, *ends: tuple[int, Counts]) -> tuple[Counts, int]:
        """The counts of one binary, and how often it was run."""
        steps = Steps("stages-test", soak=False)
        self.addCleanup(steps.log_path.unlink, missing_ok=True)
        self.addCleanup(steps.close)
        steps.say = lambda text: None  # type: ignore[method-assign]
        with (
            unittest.mock.patch.object(table.cargo, "test_binaries", return_value={"one": Path("one")}),
            unittest.mock.patch.object(table, "_run_in_lab", side_effect=ends) as run,
        ):
            table.vm(steps)
        return steps.counts, run.call_count

    def test_good(self) -> None:
        self.assertEqual(self.counts((0, Counts(2))), (Counts(2), 1))

    def test_a_failed_test_is_not_tried_again(self) -> None:
        self.assertEqual(self.counts((101, Counts(1, 1))), (Counts(1, 1), 1))

    def test_a_crash_without_results_is_a_failure(self) -> None:
        self.assertEqual(self.counts((139, Counts())), (Counts(0, 1), 1))

    def test_no_tests_is_a_failure(self) -> None:
        self.assertEqual(self.counts((0, Counts())), (Counts(0, 1), 1))

    def test_a_host_that_died_or_hung_gets_a_second_chance(self) -> None:
        for code in (table.LAB_DEADLINE, table.LAB_FAILED):
            self.assertEqual(self.counts((code, Counts()), (0, Counts(3))), (Counts(3), 2))
            self.assertEqual(self.counts((code, Counts()), (code, Counts())), (Counts(0, 1), 2))


class Running(unittest.TestCase):
    """Steps."""

    def setUp(self) -> None:
        self.steps = Steps("stages-test", soak=False)
        self.addCleanup(self.steps.log_path.unlink)
        self.addCleanup(self.steps.close)
        self.steps.say = lambda text: None  # type: ignore[method-assign]  # keep this test's output readable

    def test_failure_without_a_failed_test_counts(self) -> None:
        self.steps.tests("dies", ["sh", "-c", "exit 3"], deadline=10)
        self.assertEqual(self.steps.counts, Counts(failed=1))

    def test_no_tests_is_a_failure(self) -> None:
        self.steps.tests("empty", ["true"], deadline=10)
        self.assertEqual(self.steps.counts, Counts(failed=1))

    def test_failed_tests_count_once(self) -> None:
        self.steps.tests("fails", ["sh", "-c", "echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured'; exit 101"], deadline=10)
        self.assertEqual(self.steps.counts, Counts(1, 2))

    def test_hung_step_ends_with_all_it_started(self) -> None:
        began = time.monotonic()
        self.assertEqual(self.steps.program(["sh", "-c", "sleep 60 & sleep 60"], deadline=0.5), DEADLINE)
        self.assertLess(time.monotonic() - began, 30)

    def test_missing_program(self) -> None:
        self.assertEqual(self.steps.program(["/nonexistent"], deadline=1), 127)

    def test_stages_need_only_earlier_ones(self) -> None:
        seen: set[str] = set()
        for stage in STAGES:
            self.assertLessEqual(set(stage.needs), seen, stage.name)
            seen.add(stage.name)


if __name__ == "__main__":
    unittest.main()
