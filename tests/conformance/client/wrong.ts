// Compiled, never run: what the document does not have, the generated client does not let through. A line that is no error does not compile.

import type { Client, Schemas } from "./client.js";

export async function wrong(client: Client): Promise<void> {
  // @ts-expect-error  no such path
  await client.GET("/api/v1/vms");
  // @ts-expect-error  no such method
  await client.POST("/api/v1/vm");
  // @ts-expect-error  no such action
  await client.POST("/api/v1/vm/actions/{action}", { params: { path: { action: "explode" } } });
  // @ts-expect-error  a parameter is missing
  await client.GET("/api/v1/vm/disks/{id}");
  // @ts-expect-error  what to boot is missing
  await client.PUT("/api/v1/vm", { body: {} });
  // @ts-expect-error  no such field
  const spec: Schemas["VmConfig"] = { boot: { kernel: "k" }, colour: "red" };
  // @ts-expect-error  a text and no number
  await client.POST("/api/v1/vm/disks", { body: { path: "disk.img", queues: "two" } });
  // @ts-expect-error  no such code
  const code: Schemas["Code"] = "out-of-luck";
  const answer = await client.GET("/api/v1/vm");
  // @ts-expect-error  a success has no problem
  const detail: string = answer.error.detail;
  // @ts-expect-error  no such field in the answer
  const colour: string | undefined = answer.data?.colour;
  void [spec, code, detail, colour];
}
