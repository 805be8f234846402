// The stream of events: server-sent events, whose data have the types of the document's `Event` and `Gap`.

import { type Client, type Schemas, Unexpected } from "./client.js";

type Event = Schemas["Event"];

/** Follows the events, and keeps those that came. */
export class Events {
  readonly seen: Event[] = [];
  private readonly reader: ReadableStreamDefaultReader<Uint8Array>;
  private readonly reading: Promise<void>;
  private ended = false;
  private failure: unknown;

  private constructor(stream: ReadableStream<Uint8Array>) {
    this.reader = stream.getReader();
    this.reading = this.read();
  }

  /** Begins behind the event `after`. */
  static async follow(client: Client, after: number): Promise<Events> {
    const answer = await client.GET("/api/v1/events", { params: { query: { after } }, parseAs: "stream" });
    if (!answer.data) throw new Unexpected(`GET /events: ${answer.response.status} ${JSON.stringify(answer.error)}`);
    return new Events(answer.data as unknown as ReadableStream<Uint8Array>);
  }

  /** The first event that is like this, be it one that came already. */
  async find(what: string, seconds: number, like: (event: Event) => boolean): Promise<Event> {
    const end = Date.now() + seconds * 1000;
    for (;;) {
      const found = this.seen.find(like);
      if (found) return found;
      if (this.ended || Date.now() > end) {
        throw new Unexpected(`no event ${what} came within ${seconds} s, but ${JSON.stringify(this.seen)} (${String(this.failure)})`);
      }
      await new Promise((go) => setTimeout(go, 50));
    }
  }

  /** Leaves the stream. */
  async close(): Promise<void> {
    // Not by the request's AbortSignal: undici forgets it once the request is garbage, and reading would never end.
    await this.reader.cancel();
    await this.reading;
  }

  private async read(): Promise<void> {
    const decoder = new TextDecoder();
    let text = "";
    try {
      for (;;) {
        const { done, value } = await this.reader.read();
        if (done) break;
        text += decoder.decode(value, { stream: true });
        const blocks = text.split("\n\n");
        text = blocks.pop() ?? "";
        for (const block of blocks) this.take(block);
      }
    } catch (error) {
      this.failure = error;
    } finally {
      this.ended = true;
    }
  }

  private take(block: string): void {
    const fields: Partial<Schemas["EventMessage"]> = {};
    for (const line of block.split("\n")) {
      const [name, ...rest] = line.split(": ");
      if (name === "id" || name === "event" || name === "data") fields[name] = rest.join(": ");
    }
    // Comments only show that the connection lives.
    if (fields.data === undefined) return;
    if (fields.event === "gap") throw new Unexpected(`events were lost: ${fields.data}`);
    const event = JSON.parse(fields.data) as Event;
    if (fields.id !== String(event.seq) || fields.event !== event.type) {
      throw new Unexpected(`an event whose head is another's: ${block}`);
    }
    this.seen.push(event);
  }
}
