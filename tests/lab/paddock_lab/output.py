"""The command's output on its way to our stdout and stderr."""

import sys


class OutputClosed(Exception):
    """Nobody reads our stdout or stderr any more."""


class Output:
    """Passes bytes on unchanged, or, for a pair, line by line with the host's number in front."""

    def __init__(self) -> None:
        self._partial: dict[tuple[int, bool], bytes] = {}

    def write(self, host: int, data: bytes, *, error: bool) -> None:
        """Output of one host (0: a single host, passed on as it is); `error` picks stderr."""
        if host:
            *lines, rest = (self._partial.get((host, error), b"") + data).split(b"\n")
            self._partial[host, error] = rest
            data = b"".join(b"[%d] %s\n" % (host, line) for line in lines)
        self._pass(data, error=error)

    def finish(self) -> None:
        """Writes the lines that never got their end."""
        for (host, error), rest in self._partial.items():
            if rest:
                self._pass(b"[%d] %s\n" % (host, rest), error=error)
        self._partial.clear()

    @staticmethod
    def _pass(data: bytes, *, error: bool) -> None:
        stream = sys.stderr.buffer if error else sys.stdout.buffer
        try:
            stream.write(data)
            stream.flush()
        except BrokenPipeError:
            raise OutputClosed from None
