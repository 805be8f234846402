// Drives one VM through its life by the generated client alone, against a process that serves and has no VM yet.
//
//     node drive.js SOCKET KERNEL INITRAMFS DISK OTHER_DISK
//
// Ends with 0, and with 1 and the reason when anything is not as it has to be.

import assert from "node:assert/strict";
import { type Client, connect, data, done, refusal, type Schemas, until } from "./client.js";
import { Events } from "./events.js";

/** How long the guest may take to boot, to notice and to let go, in seconds. */
const GUEST = 120;

const DISKS = "/api/v1/vm/disks";
const CPUS = "/api/v1/vm/cpus";
const MEDIUM = "/api/v1/vm/cdroms/{id}/medium";
const VM = "/api/v1/vm";

async function act(client: Client, action: Schemas["Action"]) {
  return client.POST("/api/v1/vm/actions/{action}", { params: { path: { action } } });
}

async function state(client: Client, wanted: Schemas["VmState"]): Promise<void> {
  await until(`the state ${wanted}`, GUEST, async () => (data("GET /vm", await client.GET(VM)).state === wanted ? true : undefined));
}

async function ended(client: Client, begun: Schemas["Job"]): Promise<Schemas["Job"]> {
  return until(`job ${begun.id}`, GUEST, async () => {
    const job = data("GET /jobs/ID", await client.GET("/api/v1/jobs/{id}", { params: { path: { id: begun.id } } }));
    return job.state === "running" ? undefined : job;
  });
}

async function refusals(client: Client): Promise<void> {
  refusal("a VM that is not there", await client.GET(VM), 404, "no-vm");
  refusal("an action on it", await act(client, "reset"), 404, "no-vm");
  const wrong: Schemas["VmConfig"] = {
    name: "Not A Name",
    boot: { kernel: "k" },
    memory: { size: "1MiB" },
    disks: [{ path: "a" }, { path: "b", queue_size: 17 }],
  };
  const problem = refusal("a wrong spec", await client.PUT(VM, { body: wrong }), 422, "invalid-spec");
  const found = (problem.errors ?? []).map((error): [string, Schemas["ProblemCode"]] => [error.pointer, error.code]);
  assert.deepEqual(found, [
    ["/disks/1/queue_size", "out-of-range"],
    ["/memory/size", "out-of-range"],
    ["/name", "malformed"],
  ]);
}

async function create(client: Client, kernel: string, initramfs: string, disk: string): Promise<void> {
  const spec: Schemas["VmConfig"] = {
    name: "generated",
    boot: { kernel, initramfs, command_line: "console=ttyS0 quiet panic=-1" },
    cpus: { max: 2 },
    memory: { size: "256MiB", max: "512MiB" },
    disks: [{ id: "root", path: disk, serial: "FIRST" }],
    cdroms: [{ id: "cd" }],
    balloon: {},
  };
  const vm = data("PUT /vm", await client.PUT(VM, { body: spec }));
  assert.equal(vm.spec.name, "generated");
  assert.equal(vm.spec.cpus?.count, 1, "defaults are told");
  refusal("a second VM", await client.PUT(VM, { body: spec }), 409, "vm-exists");
  await state(client, "running");
  // The guest's drivers are there when Linux is.
  await until("the guest's drivers", GUEST, async () => (data("GET /vm/balloon", await client.GET("/api/v1/vm/balloon")).driver ? true : undefined));
  const statistics = data("the guest's memory", await client.GET("/api/v1/vm/balloon/statistics"));
  assert.ok(Object.values(statistics).some((value) => typeof value === "number" && value > 0), JSON.stringify(statistics));
}

async function disks(client: Client, other: string): Promise<void> {
  const added = await ended(client, data("POST /vm/disks", await client.POST(DISKS, { body: { id: "more", path: other } })));
  assert.deepEqual([added.kind, added.device, added.state, added.failure], ["add-device", "more", "succeeded", undefined]);
  const again = refusal("the same id", await client.POST(DISKS, { body: { id: "more", path: "another" } }), 422, "invalid-spec");
  assert.deepEqual(again.errors?.map((error) => [error.pointer, error.code]), [["/id", "duplicate"]]);
  const ids = data("GET /vm/disks", await client.GET(DISKS)).map((disk) => disk.id);
  assert.deepEqual(ids, ["root", "more"]);
  const path = { id: "more" };
  const query = { deadline_ms: GUEST * 1000 };
  const removed = await ended(client, data("DELETE /vm/disks/more", await client.DELETE("/api/v1/vm/disks/{id}", { params: { path, query } })));
  assert.deepEqual([removed.kind, removed.state, removed.failure], ["remove-device", "succeeded", undefined]);
  refusal("the disk that is gone", await client.GET("/api/v1/vm/disks/{id}", { params: { path } }), 404, "no-device");
  const jobs = data("GET /jobs", await client.GET("/api/v1/jobs"));
  assert.deepEqual(jobs.map((job) => job.id).sort(), [added.id, removed.id].sort());
}

async function cdroms(client: Client, image: string, events: Events): Promise<void> {
  const path = { id: "cd" };
  const inserted = data("PUT /vm/cdroms/cd/medium", await client.PUT(MEDIUM, { params: { path }, body: { path: image } }));
  assert.deepEqual([inserted.id, inserted.medium, inserted.open], ["cd", image, false]);
  await events.find("the medium", GUEST, (event) => event.type === "medium" && event.cdrom === "cd" && event.path === image);
  assert.deepEqual(data("GET /vm/cdroms", await client.GET("/api/v1/vm/cdroms")).map((drive) => drive.medium), [image]);
  const absent = refusal("no medium", await client.PUT(MEDIUM, { params: { path }, body: { path: "/absent" } }), 422, "invalid-spec");
  assert.deepEqual(absent.errors?.map((error) => error.pointer), ["/path"]);
  const query = { force: true };
  const ejected = data("DELETE /vm/cdroms/cd/medium", await client.DELETE(MEDIUM, { params: { path, query } }));
  assert.equal(ejected.medium, undefined);
  const other = { path: { id: "other" } };
  refusal("another drive", await client.GET("/api/v1/vm/cdroms/{id}", { params: other }), 404, "no-device");
}

async function cpus(client: Client): Promise<void> {
  const more = await ended(client, data("PUT /vm/cpus", await client.PUT(CPUS, { body: { wanted: 2 } })));
  assert.deepEqual([more.kind, more.device, more.state], ["resize-cpus", "cpus", "succeeded"]);
  const over = refusal("too many CPUs", await client.PUT(CPUS, { body: { wanted: 3 } }), 422, "invalid-spec");
  assert.deepEqual(over.errors?.map((error) => error.pointer), ["/wanted"]);
  const query = { deadline_ms: GUEST * 1000 };
  const fewer = await ended(client, data("PUT /vm/cpus", await client.PUT(CPUS, { body: { wanted: 1 }, params: { query } })));
  assert.deepEqual([fewer.state, fewer.failure], ["succeeded", undefined]);
  assert.equal(data("GET /vm/cpus", await client.GET(CPUS)).present, 1);
}

async function memory(client: Client): Promise<void> {
  const asked = data("PUT /vm/memory", await client.PUT("/api/v1/vm/memory", { body: { requested: "384MiB" } }));
  assert.equal(asked.requested, 384 * 2 ** 20);
  const over = refusal("too much memory", await client.PUT("/api/v1/vm/memory", { body: { requested: "1GiB" } }), 422, "invalid-spec");
  assert.deepEqual(over.errors?.map((error) => error.pointer), ["/requested"]);
  await until("the memory", GUEST, async () => (data("GET /vm/memory", await client.GET("/api/v1/vm/memory")).plugged === 384 * 2 ** 20 ? true : undefined));
}

async function actions(client: Client, events: Events): Promise<void> {
  done("pause", await act(client, "pause"), 202);
  await state(client, "paused");
  refusal("a reset of a paused VM", await act(client, "reset"), 409, "wrong-state");
  done("resume", await act(client, "resume"), 202);
  await state(client, "running");
  done("power button", await act(client, "power-button"), 202);
  await events.find("action power-button", GUEST, (event) => event.type === "action" && event.action === "power-button");
  done("reset", await act(client, "reset"), 202);
  const reset = await events.find("state resetting", GUEST, (event) => event.type === "state" && event.state === "resetting");
  await events.find("state running behind it", GUEST, (event) => event.type === "state" && event.state === "running" && event.seq > reset.seq);
}

async function main([socket, kernel, initramfs, disk, other]: string[]): Promise<void> {
  if (!socket || !kernel || !initramfs || !disk || !other) throw new Error("usage: drive.js SOCKET KERNEL INITRAMFS DISK OTHER_DISK");
  const client = connect(socket);
  const events = await Events.follow(client, 0);
  const step = async (name: string, run: () => Promise<void>) => {
    const began = Date.now();
    await run();
    console.log(`ok: ${name} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
  };
  await step("refusals, with their pointers", () => refusals(client));
  await step("create, boot, read", () => create(client, kernel, initramfs, disk));
  await step("a disk added and removed", () => disks(client, other));
  await step("a medium inserted and ejected", () => cdroms(client, other, events));
  await step("CPUs that come and go", () => cpus(client));
  await step("memory", () => memory(client));
  await step("pause, resume, power button, reset", () => actions(client, events));
  await step("metrics", async () => {
    const metrics = data("GET /metrics", await client.GET("/api/v1/metrics", { parseAs: "text" }));
    assert.match(metrics, /^# TYPE paddock_/m);
  });
  await step("delete", async () => {
    done("DELETE /vm", await client.DELETE(VM), 204);
    const over = await events.find("ended", GUEST, (event) => event.type === "ended");
    assert.equal(over.type === "ended" && over.end.reason, "stopped");
    await events.find("deleted", GUEST, (event) => event.type === "deleted");
    refusal("the VM that is gone", await client.GET(VM), 404, "no-vm");
  });
  await step("the events are all there, in their order", async () => {
    assert.deepEqual(events.seen.map((event) => event.seq), events.seen.map((_, index) => index + 1));
    const kinds = new Set(events.seen.map((event) => event.type));
    assert.deepEqual([...kinds].sort(), ["action", "created", "deleted", "ended", "job", "medium", "state"]);
    await events.close();
  });
}

main(process.argv.slice(2)).then(
  () => process.exit(0),
  (error: unknown) => {
    console.error(error instanceof Error ? `FAILED: ${error.stack}` : `FAILED: ${String(error)}`);
    process.exit(1);
  },
);
