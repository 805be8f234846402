"""Runs a command on this machine, whose hardware KVM is usable: as root, in a PID namespace of its own, so that all it started ends with it."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from paddock_lab.options import ADDRESSES, Options
from paddock_lab.status import DEADLINE, GRACE, LabError, say

MODULES = ("tun", "vhost_net", "bridge", "8021q")


def hardware_kvm() -> bool:
    """True when the CPU has VMX or SVM and /dev/kvm is there to be used.

    A /dev/kvm alone says nothing: some machines have one without hardware behind it.
    """
    try:
        flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "").split()
    except OSError:
        return False
    if not {"vmx", "svm"} & set(flags):
        return False
    if not os.path.exists("/dev/kvm"):
        _root("modprobe", "-qa", "kvm_amd", "kvm_intel")
    # A container may have the node without the right to open it.
    return _root("sh", "-c", ": <>/dev/kvm").returncode == 0


def _as_root() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo"]


def _root(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_as_root(), *command], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def _wrapped(command: list[str], number: int, network: str | None) -> list[str]:
    """The command as root with our environment, in its own PID namespace, for a pair also in a network namespace."""
    variables = {"LAB_MODE": "inside"}
    if number:
        variables |= {"LAB_HOST": str(number), "LAB_ADDRESS": ADDRESSES[number], "LAB_PEER_ADDRESS": ADDRESSES[3 - number]}
    if _as_root():
        variables = dict(os.environ) | variables  # sudo would drop them
    enter = ["ip", "netns", "exec", network] if network else []
    # PID 1 of a namespace does not get the usual effect of signals, hence a shell in that place.
    inner = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    environment = ["env", *(f"{name}={value}" for name, value in variables.items())]
    return [*_as_root(), *environment, *enter, "unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--", *inner]


class Pair:
    """Two network namespaces joined by a veth link; a context manager."""

    def __init__(self) -> None:
        self.names = {number: f"lab{os.getpid()}-{number}" for number in (1, 2)}

    def __enter__(self) -> "Pair":
        one, two = self.names[1], self.names[2]
        lines = [f"ip netns add {one}", f"ip netns add {two}", f"ip link add lab0 netns {one} mtu 1500 type veth peer name lab0 netns {two}"]
        for number, name in self.names.items():
            lines += [f"ip -n {name} address add {ADDRESSES[number]}/24 dev lab0", f"ip -n {name} link set lo up", f"ip -n {name} link set lab0 up"]
        result = _root("sh", "-ec", "\n".join(lines))
        if result.returncode:
            self.__exit__()
            raise LabError(f"cannot make the two network namespaces: {result.stderr.strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names.values():
            _root("ip", "netns", "delete", name)


def _copy(source: BinaryIO, target: BinaryIO, number: int) -> None:
    for line in source:
        with suppress(BrokenPipeError, ValueError):
            target.write(b"[%d] %s" % (number, line if line.endswith(b"\n") else line + b"\n"))
            target.flush()


def _family(process: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [process]
    for member in found:
        found += children.get(member, [])
    return found


def _signal(processes: list[subprocess.Popen[bytes]], number: int) -> None:
    """Sends a signal to all that runs; by `kill` as root, since the processes are root's."""
    alive = [str(member) for process in processes if process.poll() is None for member in _family(process.pid)]
    if alive:
        _root("kill", f"-{number}", *alive)


def _wait(processes: list[subprocess.Popen[bytes]], options: Options) -> int:
    deadline = time.monotonic() + options.deadline
    try:
        for process in processes:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        say(f"deadline: the command has not ended after {options.deadline:.0f} s; ending it")
        _signal(processes, signal.SIGKILL)
        return DEADLINE
    codes = [128 - code if (code := process.returncode) < 0 else code for process in processes]
    return next((code for code in codes if code), 0)


class _Signalled(Exception):
    """A signal to the runner; carries its number."""


def _raise(number: int, _frame: object) -> None:
    raise _Signalled(number)


def run(options: Options) -> int:
    """Runs the command here; returns the exit code of `tests/lab/run`."""
    for module in MODULES:
        _root("modprobe", "-q", module)
    if not options.quiet:
        where = "two network namespaces of this machine" if options.hosts == 2 else "this machine"
        say(f"running on {where}, hardware KVM {'found' if hardware_kvm() else 'not found'}")
    if options.hosts == 2:
        with Pair() as pair:
            return _run_all(options, {number: _wrapped(options.command, number, name) for number, name in pair.names.items()})
    return _run_all(options, {0: _wrapped(options.command, 0, None)})


def _start(options: Options, number: int, command: list[str], copies: list[threading.Thread]) -> subprocess.Popen[bytes]:
    if not number:
        # A terminal belongs to its foreground process group, so with --tty the command stays in ours.
        return subprocess.Popen(command, start_new_session=not options.tty)
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for source, target in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer)):
        if source is not None:
            copies.append(threading.Thread(target=_copy, args=(source, target, number), daemon=True))
            copies[-1].start()
    return process


def _run_all(options: Options, commands: dict[int, list[str]]) -> int:
    processes: list[subprocess.Popen[bytes]] = []
    copies: list[threading.Thread] = []
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _raise)
    try:
        for number, command in commands.items():
            processes.append(_start(options, number, command, copies))
        code = _wait(processes, options)
        for copy in copies:
            copy.join(timeout=GRACE)
        return code
    except _Signalled as got:
        number = int(got.args[0])
        _signal(processes, number)
        with suppress(subprocess.TimeoutExpired):
            for process in processes:
                process.wait(timeout=GRACE)
        return 128 + number
    except OSError as error:
        raise LabError(f"cannot start the command: {error}") from error
    finally:
        _signal(processes, signal.SIGKILL)
        for process in processes:
            process.wait()
