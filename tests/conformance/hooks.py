"""What schemathesis does around each request: it brings the VM into a state in which the request can succeed, and keeps count.

Loaded by schemathesis (see schema.py, which starts it and judges the count). Generated requests alone would rarely meet a VM that runs, and
hardly ever a job or disk that is there. So for every other request that fits the schema, those things are made first, by requests of our
own on the API's socket, and the request is given their ids.
"""

import atexit
import http.client
import json
import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import schemathesis

Case = schemathesis.Case[Any]

SOCKET = os.environ["PADDOCK_SOCKET"]
TALLY = Path(os.environ["PADDOCK_TALLY"])
"""Where the count is left: operation, then status, then how often."""

SPEC = json.loads(os.environ.get("PADDOCK_SPEC", "null"))
"""A VM that can run; none where there is no KVM."""

SCRATCH = Path(os.environ["PADDOCK_SCRATCH"])
VOLUME = "volume"
"""The disk of that VM that is a replicated volume."""

DEADLINE = 120.0
"""Seconds that the VM may take to whatever is waited for. The lab is slow."""

tally: defaultdict[str, Counter[int]] = defaultdict(Counter)
turns: Counter[str] = Counter()


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(SOCKET)


def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """A request of our own; the status and the answer."""
    connection = UnixConnection("paddock")
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, f"/api/v1{path}", text, {"Content-Type": "application/json"} if text else {})
        answer = connection.getresponse()
        told = answer.read()
        return answer.status, json.loads(told) if told else None
    finally:
        connection.close()


def must(method: str, path: str, body: Any = None) -> Any:
    """A request of our own that has to succeed."""
    status, answer = ask(method, path, body)
    if status >= 300:
        raise AssertionError(f"preparing the VM: {method} {path} {body}: {status} {answer}")
    return answer


def wait(what: str, ready: Callable[[], Any]) -> Any:
    """Asks until the answer is something."""
    end = time.monotonic() + DEADLINE
    while not (found := ready()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {DEADLINE:.0f} s for {what}; the VM: {ask('GET', '/vm')}")
        time.sleep(0.05)
    return found


def running() -> bool:
    """Does one step towards a VM that runs; whether it does."""
    status, vm = ask("GET", "/vm")
    if status == 404:
        must("PUT", "/vm", SPEC)
    elif vm["state"] == "running":
        return True
    elif vm["state"] == "paused":
        ask("POST", "/vm/actions/resume")
    elif vm["state"] == "ended":
        if vm["end"]["reason"] not in ("stopped", "powered-off"):
            raise AssertionError(f"the VM: {vm['end']}")
        must("DELETE", "/vm")
    return False


def driver() -> bool:
    """Whether the guest has come so far that it can be asked for its memory."""
    return running() and bool(must("GET", "/vm/balloon")["driver"])


def image() -> str:
    """A new disk image."""
    path = SCRATCH / f"disk-{turns['image']}.img"
    turns["image"] += 1
    path.write_bytes(bytes(1 << 16))
    path.chmod(0o666)
    return str(path)


def idle(kind: str) -> str | None:
    """A disk or NIC that nothing is being done to; not the volume, which is to stay."""
    busy = {job["device"] for job in must("GET", "/jobs") if job["state"] == "running"} | {VOLUME}
    found = [device["id"] for device in must("GET", f"/vm/{kind}") if device["id"] not in busy]
    return found[-1] if found else None


def disk() -> str:
    """A disk that can be removed."""

    def ready() -> str | None:
        if not running():
            return None
        if (found := idle("disks")) is None:
            ask("POST", "/vm/disks", {"path": image()})
        return found

    return str(wait("a disk", ready))


def volume() -> str:
    """The disk that is a volume, while nothing is being done to it."""

    def ready() -> bool:
        if not running():
            return False
        found = [disk for disk in must("GET", "/vm/disks") if disk["id"] == VOLUME]
        if not found:
            must("DELETE", "/vm")
            return False
        state = found[0].get("volume", {"job": 0})
        return found[0]["state"] == "present" and "job" not in state

    wait("the volume", ready)
    return VOLUME


def snapshot() -> str:
    """A snapshot of it."""
    return str(must("POST", f"/vm/disks/{volume()}/snapshots", {})["name"])


def replica() -> str:
    """A replica of it that it can do without, if there is one."""
    replicas = [one["address"] for one in must("GET", f"/vm/disks/{volume()}/replicas") if one["mode"] == "rw"]
    return str(replicas[-1])


def last_reset() -> Any:
    """When the guest was last reset, or nothing."""
    return must("GET", "/vm")["timeline"].get("last_reset_us")


def removal() -> int:
    """A job that waits for the guest: one that has only begun to boot does not let go of a disk yet."""
    name = disk()
    before = last_reset()
    must("POST", "/vm/actions/reset")
    wait("the reset", lambda: last_reset() != before and running())
    return int(must("DELETE", f"/vm/disks/{name}")["id"])


def before_action(case: Case) -> None:
    """Lets the guest be resumed where it is to be."""
    if case.path_parameters["action"] == "resume":
        must("POST", "/vm/actions/pause")
        wait("the pause", lambda: must("GET", "/vm")["state"] == "paused")


def prepare(operation: str, case: Case) -> None:
    """Makes what the request needs to succeed on the VM, which runs."""
    match operation:
        case "create_vm":
            must("DELETE", "/vm")
            case.body = SPEC
        case "act_on_vm":
            before_action(case)
        case "add_disk":
            case.body = {"path": image()}
        case "add_nic":
            case.body = {"tap": "tap-to-be"}
        case "read_disk" | "remove_disk":
            case.path_parameters["id"] = disk()
        case "limit_disk":
            case.path_parameters["id"] = disk()
            # So few that a tenth of a second allows none: the answer's burst is one all the same.
            case.body = {"iops": 5}
        case "resize_disk":
            case.path_parameters["id"] = disk()
            case.body = {}
        case "list_replicas" | "list_snapshots":
            case.path_parameters["id"] = volume()
        case "take_snapshot":
            case.path_parameters["id"] = volume()
            case.body = {}
        case "remove_snapshot":
            case.path_parameters |= {"id": VOLUME, "name": snapshot()}
        case "add_replica":
            case.path_parameters["id"] = volume()
            # Nobody is there, which the job finds out.
            case.body = {"address": "127.0.0.1:1"}
        case "remove_replica":
            case.path_parameters |= {"id": VOLUME, "address": replica()}
        case "read_nic" | "remove_nic":
            case.path_parameters["id"] = idle("nics") or "nic0"
        case "read_cdrom" | "eject_medium":
            case.path_parameters["id"] = "cdrom0"
        case "insert_medium":
            case.path_parameters["id"] = "cdrom0"
            case.body = {"path": image()}
        case "set_memory":
            case.body = {"requested": SPEC["memory"]["max"]}
        case "set_cpus":
            case.body = {"wanted": SPEC["cpus"]["max"]}
        case "set_balloon":
            case.body = {"target": "8MiB"}
        case "read_memory_statistics":
            wait("the guest's Linux", driver)
        case "read_job":
            case.path_parameters["id"] = must("GET", "/jobs")[-1]["id"]
        case "cancel_job":
            case.path_parameters["id"] = removal()


def name_of(case: Case) -> str | None:
    """The operation that the request is for; none where schemathesis uses a method that the path does not have."""
    if case.method.upper() != case.operation.method.upper():
        return None
    return str(case.operation.definition.raw["operationId"])


@schemathesis.hook
def before_call(_context: schemathesis.HookContext, case: Case, _kwargs: dict[str, Any]) -> None:
    """Brings the VM into a state: where there is KVM, running; elsewhere, by turns, ended, away, and as it is."""
    operation = name_of(case)
    turn = turns[f"{operation}"]
    turns[f"{operation}"] += 1
    if SPEC is None:
        if turn % 3 == 0:
            ask("PUT", "/vm", {"boot": {"kernel": "/absent"}})
        elif turn % 3 == 1:
            ask("DELETE", "/vm")
        return
    wait("a VM that runs", running)
    if operation == "act_on_vm" and case.path_parameters.get("action") == "nmi":
        # A Linux that has only begun to boot has no handler for it yet, and dies of it.
        wait("the guest's Linux", driver)
    fits = case.meta is None or case.meta.generation.mode.is_positive
    if operation and fits:
        # A VM that starts anew costs seconds.
        wanted = 12 if operation == "create_vm" else 2
        if turns[f"{operation} fits"] % wanted == 0:
            prepare(operation, case)
        turns[f"{operation} fits"] += 1


@schemathesis.hook
def after_call(_context: schemathesis.HookContext, case: Case, response: schemathesis.Response) -> None:
    """Counts."""
    if operation := name_of(case):
        tally[operation][response.status_code] += 1


@schemathesis.check
def reasons_beyond_the_schema(_context: schemathesis.CheckContext, response: schemathesis.Response, case: Case) -> None:
    """A body that fits the schema is not refused for what the schema could have told."""
    fits = case.meta is not None and case.meta.generation.mode.is_positive
    if response.status_code != 422 or not fits:
        return
    told = [error for error in response.json()["errors"] if error["code"] in ("unknown-field", "wrong-type")]
    if told:
        raise AssertionError(f"the schema allows what is refused: {told}")


@schemathesis.check
def events_are_those_of_the_document(_context: schemathesis.CheckContext, response: schemathesis.Response, case: Case) -> None:
    """The data of server-sent events, which the schema of the stream says only to be JSON."""
    if not response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        return
    components = case.operation.schema.raw_schema["components"]
    for block in response.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in fields:
            name = "Gap" if fields["event"] == "gap" else "Event"
            jsonschema_rs.validate({"$ref": f"#/components/schemas/{name}", "components": components}, json.loads(fields["data"]))
            tally["events"][200] += 1


@atexit.register
def leave_the_tally() -> None:
    """For schema.py."""
    TALLY.write_text(json.dumps(tally), encoding="utf-8")
