"""The QEMU process of one emulated host: its command line, its logs, its end."""

import base64
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from paddock_lab.options import LAB, Options
from paddock_lab.status import LabError

MSIZE = 512000
"""Largest 9p message in bytes; virtio-9p's limit in QEMU is 128 descriptors of a page each, so more is not used."""

KNOWN_ABORT = re.compile(rb"tcg_handle_interrupt: assertion failed: \(?(bql_locked|qemu_mutex_iothread_locked)")
"""QEMU's known bug under nested guests (see qemu_shim.c)."""

SHIM_FIRED = re.compile(rb"^qemu-shim: .* assertion passed over", re.MULTILINE)

SHIM_MENDED = "qemu-shim: CPU emulation mended"
"""What the preloaded shim prints where it knows QEMU's build."""

# quiet: the serial line is slow. mitigations and audit cost emulated instructions, and guard nothing here. tsc, no_timer_check and lpj: the
# calibrations measure the emulation's jitter. The rest shortens the boot.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off audit=0 selinux=0 apparmor=0 tsc=reliable no_timer_check "
    "cryptomgr.notests random.trust_cpu=on rcupdate.rcu_expedited=1 nokaslr"
)

# la57: guests would walk five levels of page tables. erms, fsrm: the kernels would copy and clear memory by string instructions of bytes, which
# are the fastest way on hardware, and the slowest in this emulation: a file is read at a third of the speed.
CPU = "max,la57=off,erms=off,fsrm=off"


def newc_file(name: str, data: bytes) -> bytes:
    """A cpio archive (newc format) with one file; the kernel unpacks archives that follow one another."""

    def entry(path: str, mode: int, content: bytes) -> bytes:
        path_bytes = path.encode() + b"\0"
        fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path_bytes), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields)
        return b"".join(part + b"\0" * (-len(part) % 4) for part in (head + path_bytes, content))

    return entry(name, 0o100644, data) + entry("TRAILER!!!", 0, b"")


def _comma(path: Path | str) -> str:
    """A path as QEMU's option parser wants it."""
    return str(path).replace(",", ",,")


def _counter_speed() -> str:
    """The kernel's argument for the speed of the time-stamp counter, which it would else measure itself (see tsc_khz.c)."""
    try:
        told = subprocess.run([LAB / "tsc_khz"], stdout=subprocess.PIPE, timeout=10, check=True, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"cannot measure the time-stamp counter: {error}; run tests/lab/setup") from error
    return f" tsc_early_khz={told}"


class EmulatedHost:
    """One emulated host. `channel` is the runner's end of the agent's port."""

    def __init__(self, number: int, options: Options, run_directory: Path, link: socket.socket | None) -> None:
        """Starts QEMU. `number` is 0 for a single host, else 1 or 2, with `link` its end of the Ethernet link."""
        self.number = number
        self.console_log = run_directory / f"console{number or ''}.log"
        self.qemu_log = run_directory / f"qemu{number or ''}.log"
        self._run_directory = run_directory
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        command = self._command(options, theirs, link)
        environment = dict(os.environ)
        shim = LAB / "qemu_shim.so"
        if shim.exists():
            environment["LD_PRELOAD"] = str(shim)
        inherited = [theirs.fileno()] + ([link.fileno()] if link else [])
        with self.qemu_log.open("wb") as log:
            log.write((shlex.join(command) + "\n").encode())
            log.flush()
            try:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=inherited, start_new_session=True
                )
            except OSError as error:
                raise LabError(f"cannot start QEMU: {error}; run tests/lab/setup") from error
            finally:
                theirs.close()
                if link:
                    link.close()

    def _initramfs(self, options: Options) -> Path:
        version = (LAB / "kernel" / "version").read_text().strip()
        settings = {
            "LAB_MSIZE": str(MSIZE),
            "LAB_TMP_SIZE": "75%",
            "LAB_SHARES": " ".join(base64.b64encode(bytes(path)).decode() for path in options.shares),
            "LAB_MODULES": str(LAB / "kernel" / "usr" / "lib" / "modules" / version),
        }
        text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
        image = self._run_directory / "initramfs.cpio"
        if not image.exists():
            image.write_bytes((LAB / "initramfs.cpio").read_bytes() + newc_file("lab.conf", text.encode()))
        return image

    def _command(self, options: Options, channel: socket.socket, link: socket.socket | None) -> list[str]:
        qemu = shutil.which("qemu-system-x86_64")
        if qemu is None:
            raise LabError("qemu-system-x86_64 is not installed; run tests/lab/setup")
        kernel = LAB / "kernel" / "vmlinux"
        if not kernel.exists():
            kernel = LAB / "kernel" / "vmlinuz"
        command = [
            # QEMU must not outlive a runner that was killed.
            *("setpriv", "--pdeathsig", "KILL", "--", qemu),
            *("-name", f"lab{self.number or ''}"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "q35,hpet=off,smm=off,usb=off,sata=off"),
            *("-accel", "tcg,thread=multi,tb-size=512"),
            *("-cpu", CPU),
            *("-smp", str(options.cpus)),
            *("-m", str(options.memory)),
            *("-kernel", str(kernel)),
            *("-initrd", str(self._initramfs(options))),
            *("-append", f"{KERNEL_ARGUMENTS}{_counter_speed()}"),
            *("-chardev", f"file,id=console,path={_comma(self.console_log)}", "-serial", "chardev:console"),
            *("-device", "virtio-serial-pci,max_ports=2"),
            *("-chardev", f"socket,id=lab,fd={channel.fileno()}", "-device", "virtserialport,chardev=lab,name=lab"),
            *("-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"),
            *self._share("root", Path("/"), read_only=True),
        ]
        for index, path in enumerate(options.shares):
            command += self._share(f"share{index}", path, read_only=False)
        if link:
            command += ["-netdev", f"socket,id=link,fd={link.fileno()}"]
            command += ["-device", f"virtio-net-pci,netdev=link,mac=52:54:00:77:00:0{self.number},romfile="]
        return command

    @staticmethod
    def _share(tag: str, path: Path, *, read_only: bool) -> list[str]:
        mode = ",readonly=on" if read_only else ""
        return [
            *("-fsdev", f"local,id={tag},path={_comma(path)},security_model=none,multidevs=remap{mode}"),
            *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
        ]

    def aborted_as_known(self) -> bool:
        """True when QEMU has died of its known bug."""
        return self.process.poll() == -signal.SIGABRT and KNOWN_ABORT.search(self._log()) is not None

    def shim_fired(self) -> bool:
        """True when the preloaded shim let QEMU's wrong assertion pass."""
        return SHIM_FIRED.search(self._log()) is not None

    def complaints(self) -> str:
        """What QEMU and the shim printed, without the first line, which is its command, and without what is always there."""
        lines = self._log().decode(errors="replace").splitlines()[1:]
        return "\n".join(line for line in lines if line != SHIM_MENDED).strip()

    def mended(self) -> bool:
        """True when the preloaded shim knows this build of QEMU and has taken its place in it."""
        return SHIM_MENDED.encode() in self._log()

    def _log(self) -> bytes:
        try:
            return self.qemu_log.read_bytes()
        except OSError:
            return b""

    def console_tail(self, lines: int = 60) -> str:
        """The end of the console log."""
        try:
            text = self.console_log.read_bytes()[-65536:].decode(errors="replace")
        except OSError:
            return "(no console log)"
        return "\n".join(text.replace("\r", "").splitlines()[-lines:]) or "(the console log is empty)"

    def end(self) -> None:
        """Ends QEMU, and with it everything inside; returns when it is gone."""
        self.channel.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
