// Speech with the server: JSON, and events of answers that are being written.
import type { ChatEvent } from "./types.ts";

export class Refused extends Error {
  constructor(message: string, readonly status: number, readonly field?: string) { super(message); }
}

const token = () => document.querySelector<HTMLMetaElement>("meta[name=csrf-token]")?.content ?? "";

function headers(method: string, body: unknown): Record<string, string> {
  const sent: Record<string, string> = { accept: "application/json" };
  if (method !== "GET") sent["x-csrf-token"] = token();
  if (body !== undefined) sent["content-type"] = "application/json";
  return sent;
}

let leaving = false;
async function refusal(response: Response): Promise<Refused> {
  const data = await response.json().catch(() => ({})) as { error?: { message?: string; field?: string } };
  const onDoor = ["login", "register"].includes(document.body.dataset.page ?? "");
  if (response.status === 401 && !onDoor && !leaving) {
    leaving = true;
    location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
  }
  const field = data.error?.field;
  const stale = response.status === 403 && field === "csrf";
  const text = stale ? "This tab is older than your session: reload the page." : data.error?.message;
  return new Refused(text ?? `The server answered ${response.status}.`, response.status, field);
}

const OFFLINE = "The server cannot be reached. Nothing is lost: try again.";

export async function api<T = unknown>(method: string, path: string, body?: unknown): Promise<T> {
  let response: Response;
  try {
    response = await fetch(`/api/${path}`, {
      method, headers: headers(method, body), body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Refused(OFFLINE, 0);
  }
  if (!response.ok) throw await refusal(response);
  return response.json() as Promise<T>;
}

/** Events of one answer. `id` numbers them; `broken` tells a connection that ended before its answer. */
async function* events(response: Response): AsyncGenerator<ChatEvent & { id: number }> {
  if (!response.ok) throw await refusal(response);
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop()!;
      for (const part of parts) {
        const fields: Record<string, string> = {};
        for (const line of part.split("\n")) {
          const at = line.indexOf(":");
          if (at > 0) fields[line.slice(0, at)] = line.slice(at + 1).trimStart();
        }
        if (fields.data) yield { event: fields.event, id: Number(fields.id ?? -1), data: JSON.parse(fields.data) } as ChatEvent & { id: number };
      }
    }
  } finally {
    void reader.cancel().catch(() => undefined); // whoever stops reading leaves no connection open
  }
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** All events of an answer, from the request that asks or of one that runs; lost connections are taken up again. */
export async function* answer(ask: unknown, message?: string): AsyncGenerator<ChatEvent> {
  let last = -1, failures = 0, begun = message !== undefined;
  while (true) {
    try {
      const more: Record<string, string> = last >= 0 ? { "last-event-id": String(last) } : {};
      const response = begun
        ? await fetch(`/api/stream/${message}`, { headers: { ...headers("GET", undefined), ...more } })
        : await fetch("/api/chat", { method: "POST", headers: headers("POST", ask), body: JSON.stringify(ask) });
      for await (const event of events(response)) {
        if (event.event === "start") { message = event.data.message.id; begun = true; }
        if (event.id >= 0 && event.id <= last && event.event === "delta") continue;
        last = Math.max(last, event.id);
        failures = 0;
        yield event;
        if (event.event === "end" || event.event === "error") return;
      }
    } catch (error) {
      if (error instanceof Refused) throw error;
    }
    if (message === undefined || ++failures > 6) throw new Refused(OFFLINE, 0);
    await pause(Math.min(8000, 250 * 2 ** failures));
  }
}
