"""Tests of the runner behind tests/run: counting, steps that fail, hang or cannot start, and jobs that run at once."""

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from stages.lanes import Row, run_stages  # noqa: E402
from stages.pool import Job, run_jobs  # noqa: E402
from stages.results import Counter, Counts  # noqa: E402
from stages.steps import DEADLINE, LOGS, Ended, Log, Programs, Steps  # noqa: E402
from stages import table  # noqa: E402
from stages.table import STAGES, Stage  # noqa: E402


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

    def test_the_slowest_come_first(self) -> None:
        times = iter([0.0, 100.0, 101.0, 131.0])
        counter = Counter(lambda: next(times))
        for line in ("running 2 tests", "test quick ... ok", "test soak::slow ... FAILED", "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0"):
            counter.line(line)
        self.assertEqual(counter.counts.slowest, ((30.0, "soak::slow"), (1.0, "quick")))
        many = sum((Counts(slowest=((float(number), str(number)),)) for number in range(50)), Counts())
        self.assertEqual((many.slowest[0], len(many.slowest)), ((49.0, "49"), 12))

    def test_last_line(self) -> None:
        self.assertEqual(str(Counts(3, 1)), "3 passed, 1 failed")
        self.assertEqual(str(Counts(3, 1, 2)), "3 passed, 1 failed, 2 skipped")


class Binaries(unittest.TestCase):
    """The end-to-end tests' binaries, with a lab that does as it is told."""

    def counts(self, *ends: tuple[int, Counts]) -> tuple[Counts, int]:
        """The counts of one binary, and how often it was run."""
        steps = Steps([].extend, soak=False)
        with (
            unittest.mock.patch.object(table.cargo, "test_binaries", return_value={"longhorn_one": Path("longhorn_one"), "one": Path("one")}),
            unittest.mock.patch.object(table, "_hosts_here", return_value=2),
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

    def test_the_longest_begin_first(self) -> None:
        lines: list[str] = []
        binaries = {name: Path(name) for name in ("api", "disk", "volume")}
        with (
            unittest.mock.patch.object(table.cargo, "test_binaries", return_value=binaries),
            unittest.mock.patch.object(table, "_hosts_here", return_value=1),
            unittest.mock.patch.object(table, "_run_in_lab", return_value=(0, Counts(1))),
        ):
            table.vm(Steps(lines.extend, soak=False))
        self.assertEqual([line for line in lines if "begins" in line], [f"-- {name}: begins" for name in ("volume", "disk", "api")])

    def test_a_host_that_died_or_hung_gets_a_second_chance(self) -> None:
        for code in (table.LAB_DEADLINE, table.LAB_FAILED):
            self.assertEqual(self.counts((code, Counts()), (0, Counts(3))), (Counts(3), 2))
            self.assertEqual(self.counts((code, Counts()), (code, Counts())), (Counts(0, 1), 2))

    def test_longhorn_runs_on_this_machine(self) -> None:
        steps = Steps([].extend, soak=False)
        binaries = {"longhorn": Path("longhorn"), "one": Path("one")}
        with (
            unittest.mock.patch.object(table.cargo, "test_binaries", return_value=binaries),
            unittest.mock.patch.object(steps, "program", side_effect=[0, 1]) as program,
        ):
            table.longhorn(steps)
        commands = [call.args[0] for call in program.call_args_list]
        self.assertEqual(commands[0], ["tests/conformance/longhorn/build"])
        self.assertIn("longhorn", commands[1])
        self.assertEqual((len(commands), steps.counts), (2, Counts(0, 1)))

    def test_without_longhorn_its_tests_have_failed(self) -> None:
        steps = Steps([].extend, soak=False)
        with unittest.mock.patch.object(steps, "program", return_value=1) as program:
            table.longhorn(steps)
        self.assertEqual((program.call_count, steps.counts), (1, Counts(0, 1)))

    def test_as_many_hosts_as_the_machine_bears(self) -> None:
        for place, cores, available, expected in (
            ("emulated", 2, 23.0, 2),
            ("emulated", 64, 500.0, 2),
            ("emulated", 1, 500.0, 1),
            ("emulated", 2, 19.0, 1),
            ("emulated", 2, 3.0, 1),
            ("direct", 64, 500.0, 1),
        ):
            self.assertEqual(table.hosts_at_once(place, cores, available), expected, (place, cores, available))


class Benchmarks(unittest.TestCase):
    """The benchmarks' stage, with a tests/bench that prints what it is told to."""

    def counts(self, *ends: tuple[int, list[dict[str, object]]], soak: bool = False) -> tuple[Counts, list[list[str]]]:
        """The counts of the stage, and how tests/bench was called."""
        steps = Steps([].extend, soak=soak)
        left, calls = list(ends), []

        def program(command: list[str], *, deadline: float, on_line: Callable[[str], None]) -> int:
            calls.append(command)
            code, reports = left.pop(0)
            for line in ["boot 1/1: paddock 0.500 s", *json.dumps(reports, indent=2).splitlines()]:
                on_line(line)
            return code

        with unittest.mock.patch.object(steps, "program", side_effect=program):
            table.bench(steps)
        return steps.counts, calls

    @staticmethod
    def report(figure: str, *, met: bool | None, median: float | None) -> dict[str, object]:
        """A report of tests/bench; without a median there is no ratio."""
        ratio = None if median is None else {"median": median, "min": median, "max": median}
        return {"figure": figure, "goal": "at most 1", "met": met, "ratio": ratio}

    def test_a_figure_of_each_kind_in_one_round(self) -> None:
        good = (0, [self.report("boot", met=True, median=0.4)])
        self.assertEqual(self.counts(good), (Counts(1), [["tests/bench", "--json", *table.BENCH_QUICK, "--rounds", "1"]]))
        self.assertEqual(self.counts(good, soak=True), (Counts(1), [["tests/bench", "--json"]]))

    def test_a_ratio_has_to_come_about_and_a_limit_to_be_kept(self) -> None:
        for figure, met, median, expected in (
            ("boot", False, 1.5, Counts(1)),
            ("boot", None, None, Counts(0, 1)),
            ("block-read-1", False, 0.0, Counts(0, 1)),
            ("overhead", True, 0.1, Counts(1)),
            ("overhead", False, 0.1, Counts(0, 1)),
        ):
            report = self.report(figure, met=met, median=median)
            self.assertEqual(self.counts((0, [report]))[0], expected, report)

    def test_a_figure_that_does_not_run_is_a_failure(self) -> None:
        self.assertEqual(self.counts((1, []))[0], Counts(0, 1))
        self.assertEqual(self.counts((0, []))[0], Counts(0, 1))

    def test_a_host_that_died_gets_a_second_chance(self) -> None:
        good = (0, [self.report("boot", met=True, median=0.4)])
        dead = (table.LAB_FAILED, [])
        self.assertEqual(self.counts(dead, good)[0], Counts(1))
        self.assertEqual(self.counts(dead, dead)[0], Counts(0, 1))


class Lanes(unittest.TestCase):
    """Stages in front and behind."""

    def run_them(self, *stages: Stage) -> tuple[list[tuple[str, Counts]], str]:
        """What they come to, and what is shown. Their logs are removed again."""
        for stage in stages:
            self.addCleanup((LOGS / f"{stage.name}.log").unlink, missing_ok=True)
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            rows: list[Row] = run_stages(stages, soak=False)
        return [(row.stage.name, row.counts) for row in rows], shown.getvalue()

    def test_one_behind_runs_beside_those_in_front(self) -> None:
        # Each waits for the other.
        meet = threading.Barrier(2, timeout=10)

        def run(steps: Steps) -> None:
            steps.say("one line")
            meet.wait()
            steps.say("another")
            steps.passed("it")

        rows, shown = self.run_them(Stage("t-behind", "", run, behind=True), Stage("t-front", "", run))
        self.assertEqual(rows, [("t-behind", Counts(1)), ("t-front", Counts(1))])
        self.assertIn("one line\nanother\nok: it\n", shown[shown.index("== t-behind") :])

    def test_each_waits_for_what_it_needs_and_comes_after(self) -> None:
        order: list[str] = []

        def stage(name: str, *needs: str, after: tuple[str, ...] = (), behind: bool = False, fails: bool = False) -> Stage:
            def run(steps: Steps) -> None:
                if behind:
                    time.sleep(0.2)
                order.append(name)
                (steps.failed if fails else steps.passed)(name)

            return Stage(f"t-{name}", "", run, tuple(f"t-{need}" for need in needs), tuple(f"t-{one}" for one in after), behind)

        rows, shown = self.run_them(
            stage("a"),
            stage("b", "a", behind=True),
            stage("c", "b", behind=True, fails=True),
            stage("d", "b"),
            stage("e", after=("c", "not-run")),
            stage("f", "c"),
        )
        self.assertEqual(order[:2], ["a", "b"])
        self.assertEqual(sorted(order[2:]), ["c", "d", "e"])
        self.assertLess(order.index("c"), order.index("e"))
        self.assertEqual([counts.failed for _, counts in rows], [0, 0, 1, 0, 0, 1])
        self.assertIn("FAILED: not run, since t-c failed", shown)

    def test_one_that_breaks_has_failed_and_the_others_run(self) -> None:
        def breaks(_steps: Steps) -> None:
            raise OSError("no such thing")

        for behind in (False, True):
            rows, _ = self.run_them(Stage("t-one", "", breaks, behind=behind), Stage("t-two", "", lambda steps: steps.passed("two"), after=("t-one",)))
            self.assertEqual([counts for _, counts in rows], [Counts(0, 1), Counts(1)])

    def test_what_skips_in_ci_has_failed(self) -> None:
        def skips(steps: Steps) -> None:
            steps.counts += Counts(1, 0, 1)

        for ci, failed in (("true", 1), ("", 0)):
            with unittest.mock.patch.dict(os.environ, {"CI": ci}):
                self.assertEqual(self.run_them(Stage("t-one", "", skips))[0], [("t-one", Counts(1, failed, 1))])

    def test_an_interruption_ends_what_runs_behind(self) -> None:
        started = threading.Event()

        def sleeps(steps: Steps) -> None:
            started.set()
            steps.check("sleeps", ["sleep", "60"], deadline=60)

        def interrupted(_steps: Steps) -> None:
            started.wait(10)
            raise KeyboardInterrupt

        began = time.monotonic()
        with self.assertRaises(KeyboardInterrupt):
            self.run_them(Stage("t-behind", "", sleeps, behind=True), Stage("t-front", "", interrupted))
        self.assertLess(time.monotonic() - began, 30)


class AtOnce(unittest.TestCase):
    """Jobs of a stage."""

    def setUp(self) -> None:
        self.lines: list[str] = []
        self.steps = Steps(self.lines.extend, soak=False)

    def test_so_many_at_once_and_their_output_in_one_piece(self) -> None:
        # Each job waits for its neighbour, which a pool of one would never start.
        meet = threading.Barrier(2, timeout=10)

        def job(name: str) -> Job:
            def run(own: Steps) -> None:
                own.say(f"{name} 1")
                meet.wait()
                own.tests(name, ["sh", "-c", f"echo '{name} 2'; echo 'test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured'"], deadline=10)

            return Job(name, run)

        names = ["a", "b", "c", "d"]
        run_jobs(self.steps, [job(name) for name in names], at_once=2)
        self.assertEqual(self.steps.counts, Counts(8, 0, 4))
        for name in names:
            begins, first = self.lines.index(f"-- {name}: begins"), self.lines.index(f"{name} 1")
            self.assertLess(begins, first)
            self.assertRegex(self.lines[first - 1], rf"^-- {name}: 2 passed, 0 failed, 1 skipped in \d+ s$")
            self.assertEqual(self.lines.index(f"{name} 2"), first + 2)

    def test_never_more_than_asked_for(self) -> None:
        lock, running, most = threading.Lock(), 0, 0

        def run(_own: Steps) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.05)
            with lock:
                running -= 1

        run_jobs(self.steps, [Job(str(number), run) for number in range(6)], at_once=2)
        self.assertEqual(most, 2)

    def test_a_job_that_breaks_has_failed_and_the_others_run(self) -> None:
        def breaks(_own: Steps) -> None:
            raise OSError("no such thing")

        run_jobs(self.steps, [Job("one", breaks), Job("two", lambda own: own.passed("two"))], at_once=1)
        self.assertEqual(self.steps.counts, Counts(1, 1))
        self.assertIn("FAILED: one ended by OSError: no such thing", self.lines)

    def test_an_interruption_ends_all_jobs(self) -> None:
        # A shell starts what it does not wait for with SIGINT ignored, and Python leaves it so.
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
        with tempfile.TemporaryDirectory() as directory:
            started = [Path(directory) / name for name in "ab"]

            def job(path: Path) -> Job:
                return Job(path.name, lambda own: own.check("sleeps", ["sh", "-c", f"echo $$ >{path}; sleep 60"], deadline=60))

            def interrupt() -> None:
                while not all(path.exists() and path.read_text() for path in started):
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGINT)

            began = time.monotonic()
            threading.Thread(target=interrupt).start()
            with self.assertRaises(KeyboardInterrupt):
                run_jobs(self.steps, [*map(job, started), Job("never", lambda own: own.passed("never"))], at_once=2)
            self.assertLess(time.monotonic() - began, 30)
            for path in started:
                with self.assertRaises(ProcessLookupError):
                    os.kill(int(path.read_text()), 0)
        self.assertIn("FAILED: sleeps (exit code 143)", self.lines)
        self.assertNotIn("ok: never", self.lines)

    def test_nothing_starts_after_the_end(self) -> None:
        programs = Programs()
        programs.end_all()
        with self.assertRaises(Ended):
            Steps(self.lines.extend, soak=False, programs=programs).program(["true"], deadline=1)


class Running(unittest.TestCase):
    """Steps."""

    def setUp(self) -> None:
        self.lines: list[str] = []
        self.steps = Steps(self.lines.extend, soak=False)

    def test_output_is_shown_and_logged(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            log = Log("stages-test")
            self.addCleanup(log.path.unlink)
            Steps(log.write, soak=False).program(["echo", "heard"], deadline=10)
            log.close()
        self.assertEqual(shown.getvalue(), "$ echo heard\nheard\n")
        self.assertEqual(log.path.read_text(encoding="utf-8"), shown.getvalue())

    def test_failure_without_a_failed_test_counts(self) -> None:
        self.steps.tests("dies", ["sh", "-c", "exit 3"], deadline=10)
        self.assertEqual(self.steps.counts, Counts(failed=1))

    def test_no_tests_is_a_failure(self) -> None:
        self.steps.tests("empty", ["true"], deadline=10)
        self.assertEqual(self.steps.counts, Counts(failed=1))

    def test_failed_tests_count_once(self) -> None:
        self.steps.tests("fails", ["sh", "-c", "echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured'; exit 101"], deadline=10)
        self.assertEqual(self.steps.counts, Counts(1, 2))

    def test_what_only_the_soak_runs(self) -> None:
        self.assertEqual(table.libtest(Path("disk"), soak=False), ["disk", "--test-threads=1", "--skip", "soak::"])
        self.assertEqual(table.libtest(Path("disk"), soak=True), ["disk", "--test-threads=1"])

    def test_hung_step_ends_with_all_it_started(self) -> None:
        began = time.monotonic()
        self.assertEqual(self.steps.program(["sh", "-c", "sleep 60 & sleep 60"], deadline=0.5), DEADLINE)
        self.assertLess(time.monotonic() - began, 30)

    def test_hung_program_of_root_ends_by_itself(self) -> None:
        began = time.monotonic()
        command = table.native(["sh", "-c", "setsid sleep 60 & sleep 60"], deadline=1)
        self.assertEqual(self.steps.program(command, deadline=50), 137)
        self.assertLess(time.monotonic() - began, 30)

    def test_missing_program(self) -> None:
        self.assertEqual(self.steps.program(["/nonexistent"], deadline=1), 127)

    def test_stages_need_only_earlier_ones(self) -> None:
        seen: set[str] = set()
        for stage in STAGES:
            self.assertLessEqual({*stage.needs, *stage.after}, seen, stage.name)
            seen.add(stage.name)


if __name__ == "__main__":
    unittest.main()
