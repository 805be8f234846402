"""The frames between the runner and the agent inside an emulated host (the other side is guest/agent.c, which lists the kinds).

A frame is one byte of kind, four bytes of payload length (little-endian), and the payload.
"""

import struct
from collections.abc import Iterator

HEAD = struct.Struct("<cI")
FRAME_MAX = 1 << 22
"""Largest payload in bytes; the agent sends at most 64 KiB, and accepts this much."""

# To the agent.
SETUP, DIRECTORY, ARGUMENT, VARIABLE = b"S", b"C", b"A", b"E"
TERMINAL, WINDOW, GO = b"T", b"W", b"G"
STDIN, STDIN_END, SIGNAL, DESCRIBE, POWER_OFF = b"I", b"F", b"K", b"D", b"P"
# From the agent.
HERE, READY, STDOUT, STDERR, EXIT, MESSAGE, DESCRIBED = b"H", b"R", b"O", b"N", b"X", b"M", b"D"


class ChannelError(Exception):
    """The other side does not speak the protocol."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One encoded frame."""
    if len(payload) > FRAME_MAX:
        raise ChannelError(f"a frame of {len(payload)} bytes is too long (an argument or environment variable?)")
    return HEAD.pack(kind, len(payload)) + payload


def window(rows: int, columns: int) -> bytes:
    """The payload of a WINDOW frame."""
    return struct.pack("<HH", rows, columns)


class Decoder:
    """Cuts the byte stream from the agent into frames."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Takes the next bytes, yields each frame that is complete as (kind, payload)."""
        self._pending += data
        while len(self._pending) >= HEAD.size:
            kind, length = HEAD.unpack_from(self._pending)
            if length > FRAME_MAX:
                raise ChannelError(f"the agent announces a frame of {length} bytes")
            end = HEAD.size + length
            if len(self._pending) < end:
                return
            payload = bytes(self._pending[HEAD.size : end])
            del self._pending[:end]
            yield kind, payload
