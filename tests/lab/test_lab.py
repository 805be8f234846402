"""Tests of the lab itself: python3 tests/lab/test_lab.py [-v], or as a stage of tests/run.

`Logic` runs without QEMU. `Here` tests whichever way `tests/lab/run` takes on this machine, `Pair` its two-host variant; `Direct` runs
without KVM, too, since the lab's direct way needs none by itself.
"""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest
from pathlib import Path

LAB = Path(__file__).resolve().parent
sys.path.insert(0, str(LAB))

from paddock_lab import channel, direct, options  # noqa: E402
from paddock_lab.qemu import KNOWN_ABORT, newc_file  # noqa: E402

# Calls the assertion's function with the good path of QEMU's tcg_handle_interrupt() right behind the call, or (GOOD=0) with other code there.
SHIM_CALLER = """
#include <stdint.h>
int main(void) {
    static uint32_t word[256];
    register const char *expression asm("r8") = "bql_locked()";
    register const char *function asm("rcx") = FUNCTION;
    asm volatile(
        "mov %%rsp, %%r12\\n and $-16, %%rsp\\n"
        "call g_assertion_message_expr@plt\\n"
        ".if " GOOD "\\n .byte 0x0f, 0x1f, 0x00\\n .endif\\n"
        "or %%ebp, 0xd0(%%rbx)\\n"
        "mov %%r12, %%rsp\\n"
        : "+r"(expression), "+r"(function)
        : "b"(word), "D"(0L), "S"("x.c"), "d"(95L)
        : "rax", "r9", "r10", "r11", "r12", "memory", "cc");
    return 9;
}
"""

LIMIT = 400
"""Seconds after which a run of the lab counts as hung, whatever its own deadline."""

# Makes a VM and a vCPU on /dev/kvm, and prints the API version.
CREATE_VM = """
import fcntl, os
kvm = os.open("/dev/kvm", os.O_RDWR)
vm = fcntl.ioctl(kvm, 0xAE01, 0)
vcpu = fcntl.ioctl(vm, 0xAE41, 0)
print("api", fcntl.ioctl(kvm, 0xAE00), "vcpu", vcpu > 0)
"""

FEATURES = """
set -e
python3 -c '%s'
cat /sys/module/kvm_amd/parameters/npt /sys/module/kvm_intel/parameters/ept 2>/dev/null | sed s/^/npt-/
ip link add labtest type bridge vlan_filtering 1
ip link add labport type veth peer name labpeer
ip link set labport master labtest
bridge vlan add dev labport vid 42 pvid untagged
bridge vlan show dev labport | grep -o "42 PVID Egress Untagged"
ip link delete labtest
ip link delete labport
modprobe vhost_net && test -c /dev/vhost-net && echo vhost-net
modprobe tun && test -c /dev/net/tun && echo tun
for module in loop nbd 8021q; do modprobe $module && echo $module; done
df -T /tmp | awk 'NR == 2 { print $2 }'
sysctl -qw vm.nr_hugepages=8 && grep -E '^HugePages_Total: +8$' /proc/meminfo
sysctl -qw vm.nr_hugepages=0
touch target/lab/written-inside
""" % CREATE_VM


def lab(*arguments: str, stdin: bytes | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs tests/lab/run from the repository's root."""
    return subprocess.run(
        [str(LAB / "run"), *arguments],
        input=stdin if stdin is not None else None,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=LIMIT,
        check=False,
        cwd=options.REPOSITORY,
        env=dict(os.environ, **environment),
    )


class Logic(unittest.TestCase):
    """Without QEMU."""

    def test_frames_survive_any_cut(self) -> None:
        stream = channel.frame(b"O", b"abc") + channel.frame(b"X", b"\x03") + channel.frame(b"N", b"")
        decoder = channel.Decoder()
        got = [frame for byte in stream for frame in decoder.feed(bytes([byte]))]
        self.assertEqual(got, [(b"O", b"abc"), (b"X", b"\x03"), (b"N", b"")])

    def test_oversized_frames_are_refused(self) -> None:
        with self.assertRaises(channel.ChannelError):
            list(channel.Decoder().feed(b"O\xff\xff\xff\xff"))
        with self.assertRaises(channel.ChannelError):
            channel.frame(b"A", bytes(channel.FRAME_MAX + 1))

    def test_cpio_is_readable(self) -> None:
        listed = subprocess.run(["cpio", "-t", "--quiet"], input=newc_file("lab.conf", b"X=1\n"), capture_output=True, check=True)
        self.assertEqual(listed.stdout, b"lab.conf\n")

    def test_known_abort_is_recognized_in_both_wordings(self) -> None:
        for text in (b"ERROR:x.c:95:tcg_handle_interrupt: assertion failed: (bql_locked())", b"E:x.c:80:tcg_handle_interrupt: assertion failed: (qemu_mutex_iothread_locked())"):
            self.assertRegex(text, KNOWN_ABORT)
        self.assertNotRegex(b"ERROR:x.c:1:other: assertion failed: (bql_locked())", KNOWN_ABORT)

    def test_shim_passes_over_only_what_it_knows(self) -> None:
        shim = options.LAB / "qemu_shim.so"
        with tempfile.TemporaryDirectory() as directory:
            for good, function, expected in (("1", "tcg_handle_interrupt", 9), ("0", "tcg_handle_interrupt", -signal.SIGABRT), ("1", "other", -signal.SIGABRT)):
                program = Path(directory) / f"caller-{good}-{function}"
                flags = ["-O0", "-mno-red-zone", f'-DGOOD="{good}"', f'-DFUNCTION="{function}"', "-x", "c", "-", "-x", "none", str(shim)]
                subprocess.run(["gcc", *flags, "-o", str(program)], input=SHIM_CALLER.encode(), check=True)
                ended = subprocess.run([str(program)], check=False, capture_output=True)
                self.assertEqual(ended.returncode, expected, (good, function))
                self.assertEqual(b"passed over" in ended.stderr, expected == 9)

    def test_shares_are_not_nested(self) -> None:
        inner = options.REPOSITORY / "tests"
        given = options.parse(["--share", str(inner), "--share", "/usr", "--", "true"])
        self.assertIn(options.REPOSITORY, given.shares)
        self.assertNotIn(inner, given.shares)
        self.assertIn(Path("/usr"), given.shares)

    def test_wrong_options_are_named(self) -> None:
        for wrong in (["--memory", "7"], ["--memory", "lots"], ["--cpus", "0"], ["--deadline", "-1"], ["--share", "/nonexistent"], ["--hosts", "3"], ["--bad"]):
            result = lab(*wrong, "--", "true")
            self.assertEqual(result.returncode, 2, wrong)
            self.assertIn(wrong[0].encode(), result.stderr)
        self.assertEqual(lab("true").returncode, 2)
        self.assertEqual(lab("--").returncode, 2)
        self.assertEqual(lab("--where", "--", "true").returncode, 2)

    def test_tells_where_it_would_run(self) -> None:
        for mode in ("direct", "emulated"):
            self.assertEqual(lab("--mode", mode, "--where").stdout, mode.encode() + b"\n")
        self.assertIn(lab("--where").stdout, (b"direct\n", b"emulated\n"))


class Fake(unittest.TestCase):
    """The emulated way with a QEMU that does as it is told."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="lab-test-"))
        self.addCleanup(shutil.rmtree, self.directory)
        (self.directory / "qemu-system-x86_64").symlink_to(LAB / "fake_qemu.py")

    def run_fake(self, steps: str, *arguments: str) -> tuple[subprocess.CompletedProcess[bytes], str]:
        path = self.directory / "steps"
        path.write_text(steps)
        result = lab("--mode", "emulated", *arguments, PATH=f"{self.directory}:{os.environ['PATH']}", FAKE_QEMU_STEPS=str(path))
        return result, path.read_text()

    def test_retries_once_after_the_known_abort(self) -> None:
        result, left = self.run_fake("abort serve", "--", "say", "hello")
        self.assertEqual((result.returncode, result.stdout, left), (5, b"say hello\n", ""))
        self.assertIn(b"trying once more", result.stderr)

    def test_does_not_retry_twice(self) -> None:
        result, left = self.run_fake("abort abort serve", "--", "true")
        self.assertEqual((result.returncode, left), (125, "serve"))

    def test_no_retry(self) -> None:
        result, left = self.run_fake("abort serve", "--no-retry", "--", "true")
        self.assertEqual((result.returncode, left), (125, "serve"))
        self.assertIn(b"known bug", result.stderr)

    def test_other_ends_of_qemu_are_not_retried_and_are_shown(self) -> None:
        result, left = self.run_fake("die serve", "--", "true")
        self.assertEqual((result.returncode, left), (125, "serve"))
        self.assertIn(b"cannot do that", result.stderr)

    def test_a_host_that_never_comes_up(self) -> None:
        result, _ = self.run_fake("silent", "--boot-deadline", "1", "--", "true")
        self.assertEqual(result.returncode, 125)
        self.assertIn(b"not up after 1 s", result.stderr)


class Direct(unittest.TestCase):
    """On this machine itself."""

    def setUp(self) -> None:
        if os.geteuid() and subprocess.run(["sudo", "-n", "true"], check=False, capture_output=True).returncode:
            self.fail("these tests need root, or sudo without a password")

    def test_exit_codes_and_streams(self) -> None:
        result = lab("--mode", "direct", "--", "sh", "-c", "id -u; cat; echo two >&2; exit 3", stdin=b"in\0put")
        self.assertEqual((result.returncode, result.stdout), (3, b"0\nin\0put"))
        self.assertIn(b"two", result.stderr)
        self.assertEqual(lab("--mode", "direct", "--", "sh", "-c", "kill -TERM $$").returncode, 128 + signal.SIGTERM)

    def test_deadline_ends_all_it_started(self) -> None:
        result = lab("--mode", "direct", "--deadline", "1", "--", "sh", "-c", "setsid sleep 4711 & setsid sleep 4711")
        self.assertEqual(result.returncode, 124)
        self.assertNotIn(b"sleep\0004711", b"".join(_command_lines()))

    def test_pair(self) -> None:
        result = lab("--mode", "direct", "--hosts", "2", "--", "sh", "-c", 'ping -c 1 -W 5 "$LAB_PEER_ADDRESS" >/dev/null && echo "$LAB_HOST" && exit $((LAB_HOST - 1))')
        self.assertEqual((result.returncode, sorted(result.stdout.split(b"\n"))), (1, [b"", b"[1] 1", b"[2] 2"]))
        self.assertNotIn(b"lab", subprocess.run(["ip", "netns"], capture_output=True, check=True).stdout)


def _command_lines() -> list[bytes]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    return lines


class Here(unittest.TestCase):
    """The way the lab takes on this machine."""

    def test_host_has_what_tests_need(self) -> None:
        written = options.LAB / "written-inside"
        written.unlink(missing_ok=True)
        result = lab("--", "bash", "-c", FEATURES)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        lines = result.stdout.decode().split("\n")
        self.assertIn("api 12 vcpu True", lines)
        self.assertTrue({"npt-Y", "npt-1"} & set(lines), lines)
        for expected in ("42 PVID Egress Untagged", "vhost-net", "tun", "loop", "nbd", "8021q"):
            self.assertIn(expected, lines)
        self.assertTrue(written.exists(), "a file written inside the repository did not get out")
        written.unlink()
        if not direct.hardware_kvm():
            self.assertIn("tmpfs", lines)
            self.assertNotIn(b"qemu_shim", result.stderr, "the shim does not know this build of QEMU")

    def test_an_emulated_hosts_clock_is_not_measured_by_the_emulation(self) -> None:
        result = lab("--", "dmesg")
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        if not direct.hardware_kvm():
            told = subprocess.run([options.LAB / "tsc_khz"], stdout=subprocess.PIPE, check=True, text=True).stdout
            detected = re.search(r"tsc: Detected (\d+)\.(\d{3}) MHz", result.stdout.decode())
            assert detected, result.stdout.decode()
            self.assertLess(abs(int(detected[1] + detected[2]) - int(told)), int(told) // 1000)
            self.assertNotIn(b"reference calibration", result.stdout)

    def test_streams_are_intact(self) -> None:
        every_byte = bytes(range(256)) * 4096
        result = lab("--", "sh", "-c", "cat; head -c 3000000 /dev/zero >&2; exit 3", stdin=every_byte)
        self.assertEqual(result.returncode, 3)
        self.assertEqual(result.stdout, every_byte)
        self.assertEqual(result.stderr.count(b"\0"), 3000000)

    def test_output_streams_and_a_signal_is_an_exit_code(self) -> None:
        command = [str(LAB / "run"), "--", "sh", "-c", "echo first; sleep 3; kill -KILL $$"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=options.REPOSITORY) as process:
            assert process.stdout
            self.assertEqual(process.stdout.readline(), b"first\n")
            self.assertIsNone(process.poll(), "the first line came only at the end")
            self.assertEqual(process.wait(LIMIT), 128 + signal.SIGKILL)

    def test_command_that_does_not_exist(self) -> None:
        result = lab("--", "/nonexistent/program")
        self.assertEqual(result.returncode, 127)
        self.assertIn(b"/nonexistent/program", result.stderr)

    def test_closed_stdin(self) -> None:
        result = subprocess.run(["sh", "-c", '"$0" -- sh -c "wc -c" <&-', str(LAB / "run")], capture_output=True, timeout=LIMIT, check=False, cwd=options.REPOSITORY)
        self.assertEqual((result.returncode, result.stdout.strip()), (0, b"0"), result.stderr)

    def test_deadline_shows_the_console(self) -> None:
        began = time.monotonic()
        result = lab("--deadline", "5", "--", "sh", "-c", "echo hung-here >/dev/kmsg; sleep 4712")
        self.assertEqual(result.returncode, 124)
        self.assertLess(time.monotonic() - began, LIMIT / 2)
        if not direct.hardware_kvm():
            said = result.stderr.decode(errors="replace")
            self.assertIn("sleep 4712", said)
            self.assertIn("Show backtrace of all active CPUs", said)
            # Not by a last line of the agent's: what the kernel writes late tears it apart.
            self.assertNotIn("is not all there", said)

    def test_ends_by_a_signal(self) -> None:
        command = [str(LAB / "run"), "--", "sh", "-c", "echo up; trap 'echo trapped; exit 9' TERM; while :; do sleep 0.1; done"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=options.REPOSITORY) as process:
            assert process.stdout
            self.assertEqual(process.stdout.readline(), b"up\n")
            time.sleep(0.5)
            process.terminate()
            self.assertIn(process.wait(LIMIT), (9, 128 + signal.SIGTERM))

    def test_terminal(self) -> None:
        """A terminal of ours is the command's, with its size, and input reaches it raw."""
        script = 'tty; stty size; read -r line; echo "got $line"; stty -a | grep -q isig && kill -INT $$; exit 1'
        process, master = pty.fork()
        if process == 0:
            os.chdir(options.REPOSITORY)
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
            os.execv(LAB / "run", [str(LAB / "run"), "--tty", "--quiet", "--", "sh", "-c", script])
        seen = b""
        until = time.monotonic() + LIMIT
        while time.monotonic() < until:
            if not select.select([master], [], [], 1)[0]:
                continue
            try:
                seen += os.read(master, 4096)
            except OSError:
                break
            if b"31 97" in seen and b"got" not in seen and b"typed" not in seen:
                os.write(master, b"typed\r")
        _, status = os.waitpid(process, 0)
        self.assertRegex(seen, re.compile(rb"/dev/(pts/|tty)"))
        self.assertIn(b"31 97", seen)
        self.assertIn(b"got typed", seen)
        self.assertEqual(os.waitstatus_to_exitcode(status), 128 + signal.SIGINT)


class PairHere(unittest.TestCase):
    """Two hosts the way this machine has them."""

    def test_both_see_each_other_and_the_first_failure_is_the_exit_code(self) -> None:
        script = """
            ping -c 2 -W 10 "$LAB_PEER_ADDRESS" >/dev/null && echo "host $LAB_HOST at $LAB_ADDRESS reaches $LAB_PEER_ADDRESS"
            cat /sys/class/net/lab0/mtu
            [ "$LAB_HOST" = 1 ] || sleep 3
            printf unfinished
            exit $((LAB_HOST == 2 ? 4 : 0))
        """
        result = lab("--hosts", "2", "--memory", "1G", "--", "sh", "-c", script)
        lines = result.stdout.decode().split("\n")
        self.assertEqual(result.returncode, 4, result.stderr.decode())
        self.assertIn("[1] host 1 at 10.77.0.1 reaches 10.77.0.2", lines)
        self.assertIn("[2] host 2 at 10.77.0.2 reaches 10.77.0.1", lines)
        for line in ("[1] 1500", "[2] 1500", "[1] unfinished", "[2] unfinished"):
            self.assertIn(line, lines)


if __name__ == "__main__":
    unittest.main()
