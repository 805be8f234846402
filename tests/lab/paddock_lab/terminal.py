"""The terminal on stdin: whether there is one, its size, raw mode."""

import contextlib
import fcntl
import os
import struct
import termios
import tty
from collections.abc import Iterator


def is_terminal(descriptor: int) -> bool:
    """True when the descriptor is open and a terminal."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def size() -> tuple[int, int]:
    """Rows and columns of the terminal on stdin; 24 by 80 when it does not tell."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        rows, columns = 0, 0
    return rows or 24, columns or 80


@contextlib.contextmanager
def raw(wanted: bool) -> Iterator[None]:
    """Puts the terminal on stdin into raw mode for a while."""
    if not wanted:
        yield
        return
    saved = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        # DRAIN, not FLUSH: what the user has typed ahead is for the shell.
        termios.tcsetattr(0, termios.TCSADRAIN, saved)
