"""A live `paddock serve` for the conformance tests, harmless whatever it is asked for.

Generated specs name files to be appended to, sockets to be made, disks to be written, taps, bridges. So the process is nobody's where the tests
are root's: it can open nothing of the host's for writing, makes files in a scratch directory only, and gets /dev/kvm as a descriptor.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

NOBODY = 65534
DEADLINE = 60.0
"""Seconds that the process may take to start and to end."""

REPLICA_PORT = 21000
"""The first port of the first replica."""


class Paddock:
    """The process, from the `with` on to its end. `kvm`: whether it can run VMs."""

    def __init__(self, *, kvm: bool) -> None:
        # Below /tmp and short: there are unix sockets in it. Readable for nobody, wherever the repository is.
        self.scratch = Path(tempfile.mkdtemp(prefix="paddock-", dir="/tmp"))
        self.work = self.scratch / "work"
        """Its working directory, in which it may make files."""
        self.socket = self.scratch / "api.sock"
        self.log = self.scratch / "paddock.log"
        self.kvm = kvm
        self.process: subprocess.Popen[bytes] | None = None
        self.replicas: list[subprocess.Popen[bytes]] = []
        self.mounts: list[Path] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        self.work.mkdir()
        program = shutil.copy(os.environ["PADDOCK_BIN"], self.scratch / "paddock")
        command = [str(program), "serve", "--log-level", "info", "--api-socket", str(self.socket)]
        descriptors = []
        if self.kvm:
            descriptors.append(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
            command += ["--kvm", f"fd:{descriptors[0]}"]
        user = groups = None
        if os.geteuid() == 0:
            user, groups = NOBODY, list[int]()
            for path in (self.scratch, self.work):
                os.chown(path, NOBODY, NOBODY)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
                user=user,
                group=user,
                extra_groups=groups,
            )
        for descriptor in descriptors:
            os.close(descriptor)
        end = time.monotonic() + DEADLINE
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"paddock serve does not listen:\n{self.logged()}")
            time.sleep(0.02)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(self.socket))
            return True
        return False

    def image(self, name: str) -> Path:
        """A new disk image of 1 MiB, which it may write."""
        path = self.work / name
        path.write_bytes(bytes(1 << 20))
        path.chmod(0o666)
        return path

    def volume(self, replicas: int) -> dict[str, object]:
        """A volume of 1 MiB on so many replicas, each a process that ends with this one's `with`."""
        program = Path(os.environ["PADDOCK_BIN"]).with_name("paddock-replica")
        if not program.exists():
            raise AssertionError(f"{program} is missing: run cargo build --release -p paddock-replica")
        file_system = self._file_system()
        addresses = []
        for number in range(replicas):
            address = f"127.0.0.1:{REPLICA_PORT + 10 * number}"
            place = file_system / str(number)
            command = [str(program), "--volume-name", "conformance", "replica", "--listen", address, "--size", "1m", "--sync-agent-port-count", "3", str(place)]
            self.replicas.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            addresses.append(address)
        return {"name": "conformance", "replicas": addresses}

    def _file_system(self) -> Path:
        """One of its own for replicas, which want holes and O_DIRECT: the lab's scratch is a tmpfs."""
        image = self.scratch / "replicas.ext4"
        with image.open("wb") as file:
            file.truncate(128 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        place = self.scratch / "replicas"
        place.mkdir()
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
        self.mounts.append(place)
        return place

    def logged(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:]) if self.log.exists() else ""

    def stop(self) -> int:
        """Ends it, and gives its exit status; a VM in it is stopped."""
        assert self.process
        self.process.send_signal(signal.SIGQUIT)  # SIGTERM would ask the guest first
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"paddock does not end:\n{self.logged()}") from None

    def __exit__(self, *_: object) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for replica in self.replicas:
            replica.kill()
            replica.wait()
        for place in self.mounts:
            subprocess.run(["umount", "--lazy", str(place)], check=False)
        shutil.rmtree(self.scratch, ignore_errors=True)


class Forwarder:
    """A TCP port of the loopback interface that leads to a unix socket, for tools that cannot reach one. From the `with` on to its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop).result(DEADLINE)
        self.port = server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self._path)
        except OSError:
            writer.close()
            return
        both = [asyncio.create_task(_copy(reader, far_writer)), asyncio.create_task(_copy(far_reader, writer))]
        # Whichever side ends, the other is told: a follower of the events who is gone must not keep its place.
        _, pending = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        far_writer.close()
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
