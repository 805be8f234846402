"""Exit codes of the lab itself, and what it says about itself on stderr.

Every other exit code is the command's own (128 + N when signal N ended it).
"""

import sys

DEADLINE = 124
"""The command did not end before `--deadline`; everything it started has been ended."""

LAB_FAILED = 125
"""The lab did not start, or the emulated host died under the command: the message says which."""

GRACE = 5.0
"""Seconds between passing a signal on to the command and ending what is left of it."""


class LabError(Exception):
    """The lab itself failed; the text says what and, where known, what to do."""


def say(text: str) -> None:
    """One line of the lab's own on stderr, told apart from the command's by its prefix."""
    sys.stderr.write(f"lab: {text}\n")
    sys.stderr.flush()
