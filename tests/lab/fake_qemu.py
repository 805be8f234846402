#!/usr/bin/python3
"""Stands in for qemu-system-x86_64 in the lab's own tests: an agent that answers at once, or a QEMU that dies in a given way.

$FAKE_QEMU_STEPS names a file with one word per start: `abort` (the known assertion, then SIGABRT), `die` (exit status 1 with a message),
`silent` (never answers), `serve` (runs the protocol: echoes the command's arguments and exits with status 5).
"""

import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from paddock_lab import channel  # noqa: E402


def next_step() -> str:
    """Takes the first word off the file of steps."""
    path = Path(os.environ["FAKE_QEMU_STEPS"])
    first, *rest = path.read_text().split()
    path.write_text(" ".join(rest))
    return first


def serve(port: socket.socket) -> None:
    """The agent's part."""
    decoder = channel.Decoder()
    arguments: list[bytes] = []
    port.sendall(channel.frame(channel.HERE))
    while data := port.recv(65536):
        for kind, payload in decoder.feed(data):
            if kind == channel.SETUP:
                port.sendall(channel.frame(channel.READY))
            elif kind == channel.ARGUMENT:
                arguments.append(payload)
            elif kind == channel.GO:
                port.sendall(channel.frame(channel.STDOUT, b" ".join(arguments) + b"\n") + channel.frame(channel.EXIT, bytes([5])))


def main() -> None:
    """Acts out the next step."""
    step = next_step()
    descriptor = re.search(r"socket,id=lab,fd=(\d+)", " ".join(sys.argv))
    assert descriptor, "the lab gives QEMU no channel"
    if step == "abort":
        print("ERROR:../accel/tcg/tcg-accel-ops.c:95:tcg_handle_interrupt: assertion failed: (bql_locked())", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    elif step == "die":
        sys.exit("qemu-system-x86_64: cannot do that")
    elif step == "silent":
        time.sleep(600)
    serve(socket.socket(fileno=int(descriptor[1])))


if __name__ == "__main__":
    main()
