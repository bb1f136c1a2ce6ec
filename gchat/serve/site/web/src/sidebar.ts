// The list of conversations: search, pages as one scrolls, groups by day.
import { api, Refused } from "./api.ts";
import { $, el, iconButton, notice } from "./dom.ts";

export interface Listed { id: string; title: string; pinned: boolean; updated_at: number }
interface Page { items: Listed[]; next: string | null }

export class Sidebar {
  current: string | null = null;
  readonly titles = new Map<string, string>();
  private next: string | null = null;
  private busy = false;
  private asked = 0;

  constructor(private readonly open: (id: string) => void, private readonly options: (item: Listed) => void) {
    let timer = 0;
    $("find").addEventListener("input", () => { clearTimeout(timer); timer = window.setTimeout(() => void this.load(), 150); });
    const list = $("conversations").parentElement!;
    list.addEventListener("scroll", () => {
      if (list.scrollTop + list.clientHeight > list.scrollHeight - 200 && this.next && !this.busy) void this.load(true);
    });
    $("open-menu").onclick = () => this.menu(true);
    $("close-menu").onclick = $("veil").onclick = () => this.menu(false);
    matchMedia("(max-width: 760px)").addEventListener("change", () => this.menu(false));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !$("main").inert || $<HTMLDialogElement>("dialog").open) return;
      event.stopImmediatePropagation(); // it closes the list, and stops no answer
      this.menu(false);
    });
    $("sidebar").addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") this.step(event);
    });
  }

  /** Shows the list over the page, on a phone, or hides it; what lies below is out of reach meanwhile. */
  menu(on: boolean): void {
    if (on === $("main").inert) return;
    document.body.classList.toggle("menu", on);
    $("open-menu").setAttribute("aria-expanded", String(on));
    $("veil").hidden = !on;
    $("main").inert = on;
    (on ? $("close-menu") : $("open-menu")).focus();
  }

  /** Reads the list anew, or its next page. */
  async load(more = false): Promise<void> {
    const query = new URLSearchParams({ limit: "50" }), sought = $<HTMLInputElement>("find").value.trim();
    if (sought) query.set("search", sought);
    if (more && this.next) query.set("before", this.next);
    const turn = ++this.asked;
    this.busy = true;
    try {
      const page = await api<Page>("GET", `conversations?${query}`);
      if (turn !== this.asked) return; // a later search has been asked for
      this.next = page.next;
      this.show(page.items, more);
      $("none").textContent = sought ? "Nothing was found." : "Conversations are kept here.";
      $("none").hidden = more || page.items.length > 0;
    } catch (error) {
      if (error instanceof Refused && error.status !== 401) notice(error.message, true);
    } finally {
      this.busy = false;
    }
  }

  mark(id: string | null): void {
    this.current = id;
    for (const link of $("conversations").querySelectorAll("a"))
      if (link.dataset.id === String(id)) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
  }

  private show(items: Listed[], more: boolean): void {
    const list = $("conversations");
    if (!more) list.replaceChildren();
    let group = list.querySelector("li.group:last-of-type")?.textContent ?? "";
    for (const item of items) {
      this.titles.set(String(item.id), item.title);
      const name = item.pinned ? "Pinned" : day(item.updated_at);
      if (name !== group) list.append(el("li", { class: "group" }, group = name));
      const link = el("a", { href: `/c/${item.id}`, title: item.title }, item.title || "New chat");
      link.dataset.id = String(item.id);
      link.addEventListener("click", (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        this.menu(false);
        this.open(item.id);
      });
      list.append(el("li", {}, link, iconButton("dots", `Options of ${item.title || "New chat"}`, () => this.options(item))));
    }
    this.mark(this.current);
  }

  private step(event: KeyboardEvent): void {
    const links = [...$("conversations").querySelectorAll("a")];
    const at = links.indexOf(document.activeElement as HTMLAnchorElement);
    const to = links[event.key === "ArrowDown" ? at + 1 : at - 1];
    if (to) { event.preventDefault(); to.focus(); }
  }
}

function day(seconds: number): string {
  const start = new Date();
  start.setHours(0, 0, 0, 0);
  const days = (start.getTime() / 1000 - seconds) / 86400;
  return days <= 0 ? "Today" : days <= 1 ? "Yesterday" : days <= 7 ? "This week" : days <= 30 ? "This month" : "Earlier";
}
