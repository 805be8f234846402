"""What a run is asked to do: command-line options, checked."""

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
LAB = REPOSITORY / "target" / "lab"
"""Where tests/lab/setup put what it prepared."""

ADDRESSES = {1: "10.77.0.1", 2: "10.77.0.2"}
"""The addresses of a pair's link."""

DEADLINE = 1800.0
LONGEST = 7 * 86400.0

EPILOG = """\
exit code: the command's own (128 + N if signal N ended it); 124 if it missed the deadline; 125 if the lab itself failed; 2 for wrong options.

On a machine with hardware KVM the command runs right here, as root (by sudo where need be). Elsewhere it runs inside an
emulated Debian host which has this machine's root file system: everything is there, but only the repository, $CARGO_TARGET_DIR and each
--share are written through; other writes are forgotten. /tmp inside is a fresh tmpfs. Load what the command needs with modprobe.

With --hosts 2 the command runs on two hosts joined by an Ethernet link (lab0), with LAB_HOST=1|2, LAB_ADDRESS and LAB_PEER_ADDRESS set; lines
of output carry the host's number, and the exit code is the first one that is not zero.
"""


@dataclass(frozen=True)
class Options:
    """One run. Sizes in MiB, times in seconds."""

    command: list[str]
    mode: str = "auto"
    hosts: int = 1
    memory: int = 4096
    cpus: int = 2
    deadline: float = DEADLINE
    boot_deadline: float = 180
    tty: bool = False
    retry: bool = True
    quiet: bool = False
    shares: tuple[Path, ...] = ()
    keep_logs: bool = False
    where: bool = False


def _memory(text: str) -> int:
    match = re.fullmatch(r"(\d+)([MG]?)", text)
    size = int(match[1]) * (1024 if match[2] == "G" else 1) if match else 0
    if not 512 <= size <= 1 << 20:
        raise argparse.ArgumentTypeError(f"'{text}': give MiB, or a number with M or G; at least 512M")
    return size


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"'{text}': give a number of seconds, more than 0 and at most a week")
    return seconds


def _cpus(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"'{text}': give 1 to 64")
    return int(text)


def _share(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is not a directory")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tests/lab/run",
        description="Runs COMMAND as root where real KVM is.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] -- COMMAND [ARGUMENT...]",
    )
    add = parser.add_argument
    add("--mode", choices=["auto", "direct", "emulated"], default=os.environ.get("LAB_MODE", "auto"), help="where to run (default: auto, or $LAB_MODE)")
    add("--hosts", type=int, choices=[1, 2], default=1, help="2: run on two hosts joined by an Ethernet link")
    add("--memory", type=_memory, default=4096, metavar="SIZE", help="memory of an emulated host, e.g. 10G (default 4G)")
    add("--cpus", type=_cpus, default=2, metavar="N", help="CPUs of an emulated host (default 2)")
    add("--deadline", type=_seconds, metavar="SECONDS", help="end the command after this long (default 1800; with --tty a week)")
    add("--boot-deadline", type=_seconds, default=180, metavar="SECONDS", help="how long an emulated host may take to come up (default 180)")
    add("--tty", action="store_true", help="connect the terminal: raw, with its size; needs a terminal on stdin")
    add("--no-retry", action="store_true", help="do not start again after QEMU's known abort (for commands that are not idempotent)")
    add("--share", type=_share, action="append", default=[], metavar="DIR", help="one more directory an emulated host writes through")
    add("--keep-logs", action="store_true", help="keep the console logs in target/lab/runs also after success")
    add("--where", action="store_true", help="print where the command would run, 'direct' or 'emulated', and end; takes no COMMAND")
    add("--quiet", action="store_true", help="do not print the summary line")
    add("command", nargs="*", help=argparse.SUPPRESS)
    return parser


def parse(arguments: list[str]) -> Options:
    """Options from a command line; exits with a usage message when they are wrong."""
    parser = _parser()
    # Everything after the first "--" is the command, even where it looks like an option of ours.
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    if cut == len(arguments) and not {"-h", "--help", "--where"} & set(arguments):
        parser.error("give the command after '--'")
    command = arguments[cut + 1 :]
    if not command and cut < len(arguments):
        parser.error("no command after '--'")
    given = parser.parse_args([*arguments[:cut], "--", *command])
    if given.where and command:
        parser.error("--where takes no command")
    if given.tty and given.hosts == 2:
        parser.error("--tty needs a single host")
    return Options(
        command=command,
        mode=given.mode,
        hosts=given.hosts,
        memory=given.memory,
        cpus=given.cpus,
        deadline=given.deadline or (LONGEST if given.tty else DEADLINE),
        boot_deadline=given.boot_deadline,
        tty=given.tty,
        retry=not given.no_retry,
        quiet=given.quiet,
        shares=_shares(given.share),
        keep_logs=given.keep_logs,
        where=given.where,
    )


def _shares(asked: list[Path]) -> tuple[Path, ...]:
    """The directories written through: those asked for, the repository, cargo's target directory; none inside another."""
    target = os.environ.get("CARGO_TARGET_DIR")
    wanted = {REPOSITORY, *asked}
    if target and Path(target).is_dir():
        wanted.add(Path(target).resolve())
    kept: list[Path] = []
    for path in sorted(wanted):
        if path == Path("/"):
            continue  # the whole root is never writable from inside
        if not any(path.is_relative_to(outer) for outer in kept):
            kept.append(path)
    return tuple(kept)
