// The generated client on a unix socket. Paths, parameters, bodies and answers have the types that openapi-typescript made of
// api/openapi.json (api.ts, which is generated and not checked in); what is not in the document does not compile.

import createClient from "openapi-fetch";
import { Agent, fetch as fetchBy, Request as RequestOf } from "undici";
import type { components, paths } from "./api.js";

export type Schemas = components["schemas"];
export type Client = ReturnType<typeof connect>;

/** How long an answer may take, in milliseconds. The lab is slow. */
const ANSWER = 60_000;

/** A client of the API at `socketPath`. */
export function connect(socketPath: string) {
  const agent = new Agent({ connect: { socketPath }, headersTimeout: ANSWER, bodyTimeout: ANSWER });
  return createClient<paths>({
    baseUrl: "http://paddock",
    // Node's own fetch takes no agent that its types know; undici's is the same one.
    fetch: fetchBy as unknown as typeof fetch,
    Request: RequestOf as unknown as typeof Request,
    requestInitExt: { dispatcher: agent },
  });
}

/** Something is not as it has to be. */
export class Unexpected extends Error {}

/** The data of an answer that has to be a success. */
export function data<T>(what: string, answer: { data?: T; error?: unknown; response: { status: number } }): T {
  if (answer.data === undefined) {
    throw new Unexpected(`${what}: ${answer.response.status} ${JSON.stringify(answer.error)}`);
  }
  return answer.data;
}

/** Checks that an answer has no body to read and is this success. */
export function done(what: string, answer: { error?: unknown; response: { status: number } }, status: number): void {
  if (answer.error !== undefined || answer.response.status !== status) {
    throw new Unexpected(`${what}: ${answer.response.status} ${JSON.stringify(answer.error)}, not ${status}`);
  }
}

/** The problem of an answer that has to be this refusal. */
export function refusal(
  what: string,
  answer: { error?: Schemas["Problem"]; response: { status: number } },
  status: number,
  code: Schemas["Code"],
): Schemas["Problem"] {
  const problem = answer.error;
  if (problem?.code !== code || problem.status !== status || answer.response.status !== status) {
    throw new Unexpected(`${what}: ${answer.response.status} ${JSON.stringify(problem)}, not ${status} ${code}`);
  }
  return problem;
}

/** Asks until the answer is something, for at most `seconds`. */
export async function until<T>(what: string, seconds: number, ready: () => Promise<T | undefined>): Promise<T> {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const found = await ready();
    if (found !== undefined) return found;
    if (Date.now() > end) throw new Unexpected(`waited ${seconds} s for ${what}`);
    await new Promise((go) => setTimeout(go, 50));
  }
}
