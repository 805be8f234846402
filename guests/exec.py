"""Runs one command in a guest through the probe in it, then powers the guest off.

usage: exec.py [--stdin] SOCKET PADDOCK_PID COMMAND [ARGUMENT...]

With --stdin, what comes on standard input is passed on to the command. Its output is passed on as it comes; the exit status is the command's,
128+N if signal N ended it, 125 if it could not be run. Speaks the line protocol of paddock-probe (guests/probe/src/protocol).
"""

import base64
import itertools
import json
import os
import socket
import sys
import threading
import time
from typing import Any, BinaryIO

BOOT_DEADLINE = 300.0
COMMAND_DEADLINE = 24 * 3600.0
END_DEADLINE = 120.0
FAILED = 125


class Failure(Exception):
    """The command could not be run; the text says why."""


def alive(pid: int) -> bool:
    """Whether the process still runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def connect(path: str, pid: int) -> socket.socket:
    """Connects to the probe's port as soon as paddock listens."""
    end = time.monotonic() + BOOT_DEADLINE
    while time.monotonic() < end:
        if not alive(pid):
            raise Failure("paddock ended before the guest was up")
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(path)
        except OSError:
            link.close()
            time.sleep(0.05)
        else:
            return link
    raise Failure(f"nobody listens at {path}")


def lines(stream: BinaryIO) -> Any:
    """The guest's messages."""
    while True:
        try:
            line = stream.readline()
        except TimeoutError:
            raise Failure("the guest does not answer in time") from None
        if not line:
            raise Failure("the guest closed the connection")
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict):
            yield message


SENDING = threading.Lock()
"""Requests are lines: one at a time."""


def send(link: socket.socket, request: dict[str, Any]) -> None:
    """Sends a request to the probe."""
    with SENDING:
        link.sendall(json.dumps(request).encode() + b"\n")


def decoded(value: Any) -> bytes:
    """Bytes as the protocol carries them: text, or {"base64": ...} where they are not."""
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else str(value).encode()


def pass_input(link: socket.socket) -> None:
    """Passes standard input on to the command, until it ends or the guest is gone."""
    identifiers = itertools.count(10)
    try:
        while data := os.read(0, 4096):
            text = base64.b64encode(data).decode()
            send(link, {"id": next(identifiers), "op": "exec.stdin", "exec": 1, "data": {"base64": text}})
        send(link, {"id": next(identifiers), "op": "exec.stdin", "exec": 1, "close": True})
    except OSError:
        # The other side of the connection tells what became of it.
        pass


def run(link: socket.socket, command: list[str], with_input: bool) -> int:
    """Waits for the probe, runs the command, passes its output on, and returns its exit status."""
    link.settimeout(BOOT_DEADLINE)
    stream = link.makefile("rb")
    messages = lines(stream)
    for message in messages:
        if message.get("event") == "hello":
            break
    link.settimeout(COMMAND_DEADLINE)
    request = {"id": 1, "op": "exec", "command": {"argv": command}, "stream": True, "keep_stdin": with_input, "timeout_ms": int(COMMAND_DEADLINE * 1000)}
    send(link, request)
    if with_input:
        threading.Thread(target=pass_input, args=[link], daemon=True).start()
    outputs = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    for message in messages:
        if message.get("event") == "output":
            output = outputs[message["stream"]]
            output.write(decoded(message["data"]))
            output.flush()
        elif message.get("id") == 1:
            if "error" in message:
                raise Failure(message["error"])
            status = message["ok"]["status"]
            if not isinstance(status, dict):
                raise Failure(f"the command did not end: {status}")
            if "exited" in status:
                return int(status["exited"])
            if "signaled" in status:
                return 128 + int(status["signaled"])
            raise Failure(f"the command did not end: {status}")
    raise Failure("the guest said nothing more")


def power_off(link: socket.socket, pid: int) -> None:
    """Powers the guest off and waits for paddock to end."""
    send(link, {"id": 2, "op": "poweroff"})
    end = time.monotonic() + END_DEADLINE
    while alive(pid):
        if time.monotonic() > end:
            raise Failure("the guest does not power off")
        time.sleep(0.05)


def main() -> int:
    """See the module's text."""
    arguments = sys.argv[1:]
    with_input = arguments[:1] == ["--stdin"]
    path, pid, *command = arguments[with_input:]
    try:
        link = connect(path, int(pid))
        status = run(link, command, with_input)
    except (Failure, OSError, KeyError, TypeError, ValueError) as error:
        print(f"guests/run: {error}", file=sys.stderr)
        return FAILED
    try:
        power_off(link, int(pid))
    except (Failure, OSError) as error:
        print(f"guests/run: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
