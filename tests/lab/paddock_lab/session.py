"""One attempt to run a command inside one or two emulated hosts: an event loop over the agents' channels, stdin, signals and deadlines.

Single-threaded. Signal handlers only note the signal; the loop, woken through a socket, acts on it.
"""

import contextlib
import enum
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

from paddock_lab import channel, terminal
from paddock_lab.options import ADDRESSES, Options
from paddock_lab.output import Output
from paddock_lab.qemu import EmulatedHost
from paddock_lab.status import DEADLINE, GRACE, LabError, say

DESCRIBE_SECONDS = 60.0
"""How long a host may take to describe its state after a missed deadline."""

CONGESTED = 1 << 20
"""Bytes waiting for an agent above which no more of stdin is read."""

PASSED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class KnownAbort(Exception):
    """QEMU died of its known bug."""


class Interrupted(Exception):
    """A signal ended the run. Carries the exit code."""


class Stdin(enum.Enum):
    """How stdin is read."""

    CLOSED = enum.auto()
    POLLED = enum.auto()
    PLAIN = enum.auto()
    """A regular file or /dev/null, which epoll refuses: always readable."""


class Session:
    """Hosts from start to end. A context manager; call `start`, then `run`."""

    def __init__(self, options: Options, run_directory: Path) -> None:
        self.options = options
        self.stdin_used = False
        """True once bytes of stdin went to the command: a second attempt would miss them."""
        self.hosts: list[EmulatedHost] = []
        self._run_directory = run_directory
        self._selector = selectors.DefaultSelector()
        self._decoders: dict[int, channel.Decoder] = {}
        self._outgoing: dict[int, bytearray] = {}
        self._output = Output()
        self._here: set[int] = set()
        self._ready: set[int] = set()
        self._codes: dict[int, int] = {}
        self._described: set[int] = set()
        self._running = False
        self._stdin = Stdin.CLOSED
        self._stdin_watched = False
        self._signals: list[int] = []
        self._signalled: tuple[int, float] | None = None
        """The exit code and the time by which the command must have ended, after a signal was passed on."""
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "Session":
        self._undo.callback(self._selector.close)
        try:
            self._catch_signals()
            self._start_hosts()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _start_hosts(self) -> None:
        links: list[socket.socket | None] = [None]
        if self.options.hosts == 2:
            links = list(socket.socketpair())
        for index, link in enumerate(links):
            host = EmulatedHost(index + 1 if len(links) == 2 else 0, self.options, self._run_directory, link)
            self._undo.callback(host.end)
            self.hosts.append(host)
            self._decoders[host.number] = channel.Decoder()
            self._outgoing[host.number] = bytearray()
            self._selector.register(host.channel, selectors.EVENT_READ, host)

    def _catch_signals(self) -> None:
        woken, waker = socket.socketpair()
        self._undo.callback(woken.close)
        self._undo.callback(waker.close)
        woken.setblocking(False)
        waker.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ, woken)
        self._undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False))

        def note(number: int, _frame: FrameType | None) -> None:
            self._signals.append(number)

        for number in (*PASSED_SIGNALS, signal.SIGWINCH):
            self._undo.callback(signal.signal, number, signal.signal(number, note))

    # -- start -----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Waits until every host is up (and a pair's hosts have seen each other); LabError if that fails."""
        deadline = time.monotonic() + self.options.boot_deadline
        while len(self._ready) < len(self.hosts):
            if time.monotonic() > deadline:
                missing = [host for host in self.hosts if host.number not in self._ready]
                raise self._failure(missing[0], f"not up after {self.options.boot_deadline:.0f} s")
            self._turn(deadline)

    def _setup_frame(self, host: EmulatedHost) -> bytes:
        own = ADDRESSES.get(host.number, "-")
        peer = ADDRESSES.get(3 - host.number, "-") if host.number else "-"
        fields = [str(host.number), own, peer, str(int(self.options.boot_deadline))]
        return channel.frame(channel.SETUP, b"".join(field.encode() + b"\0" for field in fields))

    def _failure(self, host: EmulatedHost, what: str) -> LabError:
        which = f"emulated host {host.number}" if host.number else "the emulated host"
        parts = [f"{which}: {what}"]
        if host.complaints():
            parts.append(f"QEMU said:\n{host.complaints()}")
        parts.append(f"console log, its end ({host.console_log}):\n{host.console_tail()}")
        return LabError("\n".join(parts))

    # -- the command -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Runs the command on every host, until each has ended; returns the first exit code that is not zero."""
        for host in self.hosts:
            self._send(host, self._command_frames(host))
        self._running = True
        deadline = time.monotonic() + self.options.deadline
        with terminal.raw(self.options.tty):
            self._open_stdin()
            while len(self._codes) < len(self.hosts) and time.monotonic() < deadline:
                if self._signalled and time.monotonic() > self._signalled[1]:
                    raise Interrupted(self._signalled[0])
                self._turn(deadline)
        self._output.finish()
        if len(self._codes) < len(self.hosts):
            return self._missed_deadline()
        return next((code for _, code in sorted(self._codes.items()) if code), 0)

    def _command_frames(self, host: EmulatedHost) -> bytes:
        # TMPDIR may name a directory of the outer /tmp, which is not the inner one.
        variables = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
        variables["LAB_MODE"] = "inside"
        if host.number:
            variables |= {"LAB_HOST": str(host.number), "LAB_ADDRESS": ADDRESSES[host.number], "LAB_PEER_ADDRESS": ADDRESSES[3 - host.number]}
        frames = [channel.frame(channel.DIRECTORY, os.fsencode(os.getcwd()))]
        frames += [channel.frame(channel.ARGUMENT, os.fsencode(argument)) for argument in self.options.command]
        frames += [channel.frame(channel.VARIABLE, os.fsencode(f"{name}={value}")) for name, value in variables.items()]
        if self.options.tty:
            frames += [channel.frame(channel.TERMINAL), channel.frame(channel.WINDOW, channel.window(*terminal.size()))]
        return b"".join([*frames, channel.frame(channel.GO)])

    def _missed_deadline(self) -> int:
        late = [host for host in self.hosts if host.number not in self._codes]
        say(f"deadline: the command has not ended after {self.options.deadline:.0f} s; ending it")
        until = time.monotonic() + DESCRIBE_SECONDS
        with contextlib.suppress(LabError, KnownAbort, Interrupted):
            for host in late:
                self._send(host, channel.frame(channel.DESCRIBE))
            while time.monotonic() < until and not all(host.number in self._described for host in late):
                self._turn(time.monotonic() + 0.2)
        for host in late:
            which = f" of host {host.number}" if host.number else ""
            if host.number not in self._described:
                say(f"the state{which} is not all there after {DESCRIBE_SECONDS:.0f} s")
            say(f"console log{which}, its end ({host.console_log}):")
            sys.stderr.write(host.console_tail(lines=200) + "\n")
        return DEADLINE

    # -- stdin and signals -----------------------------------------------------------------------------------------------

    def _open_stdin(self) -> None:
        """Starts to pass stdin on. A terminal is only read with --tty; a pair's hosts get none."""
        if self.options.hosts == 1 and (self.options.tty or not terminal.is_terminal(0)):
            self._stdin = Stdin.POLLED
            try:
                self._watch_stdin(True)
                return
            except PermissionError:
                self._stdin = Stdin.PLAIN
                return
            except (OSError, ValueError):
                self._stdin = Stdin.CLOSED
        for host in self.hosts:
            self._send(host, channel.frame(channel.STDIN_END))

    def _watch_stdin(self, wanted: bool) -> None:
        if self._stdin is not Stdin.POLLED or wanted == self._stdin_watched:
            return
        if wanted:
            self._selector.register(0, selectors.EVENT_READ, self._read_stdin)
        else:
            self._selector.unregister(0)
        self._stdin_watched = wanted

    def _read_stdin(self) -> None:
        host = self.hosts[0]
        try:
            data = os.read(0, 65536)
        except OSError:
            data = b""
        if data:
            self.stdin_used = True
            self._send(host, channel.frame(channel.STDIN, data))
            return
        self._watch_stdin(False)
        self._stdin = Stdin.CLOSED
        self._send(host, channel.frame(channel.STDIN_END))

    def _act_on_signals(self) -> None:
        """Passes a signal on to the command, which has a few seconds to end by it; a second one ends the run at once."""
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGWINCH:
                if self._running and self.options.tty:
                    self._send(self.hosts[0], channel.frame(channel.WINDOW, channel.window(*terminal.size())))
                continue
            if self._signalled or not self._running:
                raise Interrupted(128 + number)
            self._signalled = 128 + number, time.monotonic() + GRACE
            for host in self.hosts:
                self._send(host, channel.frame(channel.SIGNAL, bytes([number])))

    # -- events ----------------------------------------------------------------------------------------------------------

    def _turn(self, deadline: float) -> None:
        """Waits for the next events, at most until the deadline, and handles them."""
        congested = any(len(pending) > CONGESTED for pending in self._outgoing.values())
        read_now = self._stdin is Stdin.PLAIN and not congested
        self._watch_stdin(not congested)
        for key, events in self._selector.select(0.0 if read_now else max(0.0, min(deadline - time.monotonic(), 1.0))):
            if isinstance(key.data, EmulatedHost):
                if events & selectors.EVENT_WRITE:
                    self._write(key.data)
                if events & selectors.EVENT_READ:
                    self._read(key.data)
            elif isinstance(key.data, socket.socket):
                with contextlib.suppress(BlockingIOError):
                    key.data.recv(4096)
            else:
                self._read_stdin()
        if read_now:
            self._read_stdin()
        self._act_on_signals()

    def _send(self, host: EmulatedHost, data: bytes) -> None:
        self._outgoing[host.number] += data
        self._write(host)

    def _write(self, host: EmulatedHost) -> None:
        pending = self._outgoing[host.number]
        try:
            while pending:
                del pending[: host.channel.send(pending)]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            pending.clear()  # reading will tell that the host is gone
        self._selector.modify(host.channel, selectors.EVENT_READ | (selectors.EVENT_WRITE if pending else 0), host)

    def _read(self, host: EmulatedHost) -> None:
        try:
            data = host.channel.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._gone(host)
        for kind, payload in self._decoders[host.number].feed(data):
            self._handle(host, kind, payload)

    def _handle(self, host: EmulatedHost, kind: bytes, payload: bytes) -> None:
        if kind in (channel.STDOUT, channel.STDERR):
            self._output.write(host.number, payload, error=kind == channel.STDERR)
        elif kind == channel.EXIT:
            self._codes[host.number] = payload[0]
        elif kind == channel.DESCRIBED:
            self._described.add(host.number)
        elif kind == channel.HERE:
            self._here.add(host.number)
            # Both hosts of a pair are up before either looks for the other.
            if len(self._here) == len(self.hosts):
                for each in self.hosts:
                    self._send(each, self._setup_frame(each))
        elif kind == channel.READY:
            self._ready.add(host.number)
        elif kind == channel.MESSAGE:
            raise self._failure(host, payload.decode(errors="replace"))
        else:
            raise LabError(f"the agent sent a frame of unknown kind {kind!r}; delete target/lab and run tests/lab/setup")

    def _gone(self, host: EmulatedHost) -> None:
        """The host's QEMU closed the channel: it has ended, which it never does by itself before the command has."""
        with contextlib.suppress(Exception):
            host.process.wait(timeout=5)
        if host.aborted_as_known():
            raise KnownAbort
        when = "died while the command ran" if self._running else "ended during its start"
        raise self._failure(host, f"{when} (QEMU's exit status: {host.process.poll()})")
