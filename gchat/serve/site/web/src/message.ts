// One message on the page, and the growth of an answer block by block.
import { cleaned, copy, el, iconButton } from "./dom.ts";
import type { Change, Message, Source } from "./types.ts";

export interface Acts {
  edit(message: Message, text: string): void;
  regenerate(message: Message): void;
  rate(message: Message, value: number): void;
  branch(id: string): void;
}

/** The list item of a message. An answer's blocks are the children of its `.md`. */
export function messageItem(message: Message, acts: Acts): HTMLLIElement {
  const mine = message.role === "user";
  const body = el("div", { class: mine ? "body own" : "body md" });
  if (mine) body.textContent = message.content;
  else cleaned(body, message.html);
  const item = el("li", { class: `message ${message.role} ${message.status}` },
    el("h2", { class: "unseen" }, mine ? "You said" : "Answer"), body);
  item.dataset.id = String(message.id);
  item.dataset.status = message.status;
  if (message.sources?.length) item.append(sourceList(message.sources));
  if (message.status === "failed") item.append(el("p", { class: "problem" }, message.error || "This answer could not be finished."));
  if (message.status === "stopped") item.append(el("p", { class: "soft small" }, "Stopped."));
  if (message.status !== "streaming") item.append(actions(item, message, acts));
  return item;
}

function actions(item: HTMLLIElement, message: Message, acts: Acts): HTMLElement {
  const row = el("div", { class: "actions", role: "group", "aria-label": "Actions on this message" });
  const at = message.siblings.findIndex((id) => String(id) === String(message.id));
  if (message.siblings.length > 1) {
    const earlier = iconButton("left", "Earlier version", () => acts.branch(message.siblings[at - 1]));
    const later = iconButton("right", "Later version", () => acts.branch(message.siblings[at + 1]));
    earlier.disabled = at <= 0;
    later.disabled = at >= message.siblings.length - 1;
    row.append(earlier, el("span", { class: "soft versions" }, `${at + 1} of ${message.siblings.length}`), later);
  }
  row.append(iconButton("copy", "Copy the text", () => void copy(message.content)));
  if (message.role === "user") {
    row.append(iconButton("edit", "Edit", () => editor(item, message, acts)));
    return row;
  }
  row.append(iconButton("again", "Answer again", () => acts.regenerate(message)));
  const up = iconButton("up", "Good answer", () => rate(1)), down = iconButton("down", "Bad answer", () => rate(-1));
  const show = () => [up, down].forEach((button, i) => button.setAttribute("aria-pressed", String(message.rating === 1 - 2 * i)));
  const rate = (value: number) => {
    message.rating = message.rating === value ? 0 : value;
    show();
    acts.rate(message, message.rating);
  };
  show();
  row.append(up, down);
  return row;
}

/** Turns a message of one's own into a field; sending it makes a new branch. */
export function editor(item: HTMLLIElement, message: Message, acts: Acts): void {
  const body = item.querySelector<HTMLElement>(".body")!, row = item.querySelector<HTMLElement>(".actions")!;
  const field = el("textarea", { value: message.content, "aria-label": "Edit the message", rows: Math.min(12, message.content.split("\n").length + 1) });
  const close = () => { box.remove(); body.hidden = row.hidden = false; };
  const submit = () => { if (field.value.trim()) { close(); acts.edit(message, field.value); } };
  const box = el("div", { class: "editor" }, field, el("div", { class: "line" },
    el("button", { type: "button", class: "primary", onclick: submit }, "Send"), el("button", { type: "button", onclick: close }, "Cancel")));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); close(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  });
  body.hidden = row.hidden = true;
  body.after(box);
  field.focus();
}

export function sourceList(sources: Source[]): HTMLElement {
  return el("ol", { class: "sources", "aria-label": "Sources" }, ...sources.map((source) => {
    const link = el("a", { target: "_blank", rel: "noopener noreferrer nofollow", title: source.url }, source.title || source.url);
    let host = "";
    try {
      const url = new URL(source.url);
      if (url.protocol === "https:" || url.protocol === "http:") { link.href = url.href; host = url.host; }
    } catch { /* shown without a link */ }
    return el("li", {}, link, el("span", { class: "soft" }, ` ${host}`));
  }));
}

/** The blocks of an answer that is being written. */
export class Blocks {
  private html: string[] = [];
  constructor(readonly body: HTMLElement) { body.replaceChildren(); }

  apply(change: Change): void {
    const head = change.keep ? this.html[change.from].slice(0, change.keep) : "";
    const html = change.html.length ? [head + change.html[0], ...change.html.slice(1)] : [];
    this.html.length = Math.min(this.html.length, change.from);
    html.forEach((block, i) => {
      let node = this.body.children[change.from + i];
      if (!node) this.body.append(node = document.createElement("div"));
      cleaned(node, block);
    });
    this.html.push(...html);
    while (this.body.children.length > this.html.length) this.body.lastElementChild!.remove();
  }
}

/** Copy buttons of code, wherever they are on the page. */
export function watchCopyButtons(): void {
  document.addEventListener("click", (event) => {
    const button = (event.target as Element).closest?.("button.copy");
    if (button) void copy(button.closest(".code")?.querySelector("pre")?.textContent ?? "");
  });
}
