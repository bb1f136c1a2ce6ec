// Dialogs: options of a conversation, a question with yes and no, a text that is shown once.
import { api, Refused } from "./api.ts";
import { $, copy, el, notice } from "./dom.ts";
import { formOf, numbers } from "./forms.ts";
import type { Conversation, Model } from "./types.ts";

function open(title: string, ...parts: (Node | string)[]): HTMLDialogElement {
  const dialog = $<HTMLDialogElement>("dialog");
  const close = el("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: () => dialog.close() }, "✕");
  dialog.replaceChildren(el("header", {}, el("h2", { id: "dialog-title" }, title), close), ...parts);
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  if (!dialog.open) dialog.showModal();
  return dialog;
}

export function confirm(title: string, text: string, yes: string): Promise<boolean> {
  return new Promise((resolve) => {
    const answer = (value: boolean) => { resolve(value); dialog.close(); };
    const dialog = open(title, el("p", {}, text), el("div", { class: "line" },
      el("button", { type: "button", class: "danger", onclick: () => answer(true) }, yes),
      el("button", { type: "button", onclick: () => answer(false) }, "Cancel")));
    dialog.onclose = () => resolve(false);
  });
}

/** Shows a text that can be copied, such as a link or a key. */
export function reveal(title: string, text: string, note: string): void {
  open(title, el("p", { class: "soft" }, note), el("div", { class: "line" },
    el("input", { value: text, readOnly: true, "aria-label": title, class: "secret", onfocus: (e: FocusEvent) => (e.target as HTMLInputElement).select() }),
    el("button", { type: "button", class: "primary", onclick: () => void copy(text) }, "Copy")));
}

export function help(lines: [string, string][]): void {
  open("Commands and keys", el("dl", { class: "help" }, ...lines.flatMap(([name, text]) => [el("dt", {}, el("kbd", {}, name)), el("dd", {}, text)])));
}

export interface Changed { renamed(): void; deleted(id: string): void; saved(): void }

/** Options of a conversation, or of one that has not begun (`id` is null: kept by `keep`). */
export async function conversationOptions(
  conversation: Conversation, models: Model[], keep: (values: Partial<Conversation>) => Promise<void>, changed: Changed,
): Promise<void> {
  const sampling = conversation.sampling ?? {}, shown = ["temperature", "top_p", "max_tokens"];
  const others = Object.fromEntries(Object.entries(sampling).filter(([name]) => !shown.includes(name)));
  const field = (name: string, label: string, rest: object) =>
    el("label", {}, label, el("input", { name, type: "number", value: String((sampling as Record<string, number>)[name] ?? ""), placeholder: "model's", ...rest }));
  const model = el("select", { name: "model" }, ...models.map((one) => el("option", { value: one.id, selected: one.id === conversation.model }, one.id)));
  const form = el("form", { method: "dialog" },
    el("label", {}, "Title", el("input", { name: "title", value: conversation.title, maxLength: 200 })),
    ...(models.length > 1 ? [el("label", {}, "Model", model)] : []),
    el("label", {}, "System prompt", el("textarea", { name: "system", value: conversation.system ?? "", rows: 4, maxLength: 20000 })),
    el("div", { class: "row" }, field("temperature", "Temperature", { min: "0", max: "2", step: "0.05" }),
      field("top_p", "Top p", { min: "0", max: "1", step: "0.01" }), field("max_tokens", "Longest answer", { min: "1", step: "1" })),
    el("p", { class: "problem", role: "alert" }), el("button", { class: "primary" }, "Save"));
  const dialog = open("Options of this conversation", form, ...(conversation.id ? [more(conversation, changed)] : []));
  formOf(form, async (values) => {
    await keep({
      ...(conversation.id ? { title: values.title } : {}), ...(values.model ? { model: values.model } : {}),
      system: values.system, sampling: { ...others, ...numbers(values, shown) },
    });
    dialog.close();
    changed.saved();
  });
}

function more(conversation: Conversation, changed: Changed): HTMLElement {
  const dialog = $<HTMLDialogElement>("dialog"), path = `conversations/${conversation.id}`;
  const act = (label: string, run: () => Promise<void>, kind = "") =>
    el("button", { type: "button", class: kind, onclick: () => void run().catch((error) => notice((error as Refused).message, true)) }, label);
  const file = (format: string, label: string) => el("a", { class: "button", href: `/api/${path}/export?format=${format}`, download: "" }, label);
  return el("div", { class: "more" },
    act(conversation.pinned ? "Unpin" : "Pin", async () => {
      await api("PATCH", path, { pinned: !conversation.pinned });
      dialog.close();
      changed.renamed();
    }),
    act("Share…", async () => {
      const { url } = await api<{ url: string }>("POST", `${path}/share`);
      conversation.share = url;
      reveal("Link to this conversation", new URL(url, location.href).href, "Whoever has the link can read the conversation as it is now.");
    }),
    ...(conversation.share ? [act("Stop sharing", async () => {
      await api("DELETE", `${path}/share`);
      conversation.share = null;
      dialog.close();
      notice("The link works no longer.");
    })] : []),
    file("markdown", "Export Markdown"), file("json", "Export JSON"),
    act("Delete", async () => {
      if (!await confirm("Delete this conversation?", `“${conversation.title}” is removed for good.`, "Delete")) return;
      await api("DELETE", path);
      changed.deleted(conversation.id);
    }, "danger"));
}
