// The chat page: what is open, what is being written, and what the reader does.
import { answer, api, Refused } from "./api.ts";
import { CommandList, type Command } from "./commands.ts";
import { $, count, el, notice } from "./dom.ts";
import { Blocks, editor, messageItem, sourceList, type Acts } from "./message.ts";
import { confirm, conversationOptions, help, reveal } from "./options.ts";
import { Sidebar, type Listed } from "./sidebar.ts";
import { switchTheme } from "./page.ts";
import type { Conversation, Context, Me, Message, Model } from "./types.ts";

const fresh = (): Conversation => ({ id: "", title: "", pinned: false, updated_at: 0, leaf: null, messages: [], context: null });

export class Chat {
  private conversation = fresh();
  private models: Model[] = [];
  private me: Me | null = null;
  private running: string | null = null; // id of the answer that is being written
  private turn = 0; // of what is open: events of a conversation that was left are not shown
  private searching = false;
  private stopWanted = false;
  private readonly input = $<HTMLTextAreaElement>("input");
  private readonly scroll = $("scroll");
  private readonly sidebar = new Sidebar((id) => void this.open(id), (item) => void this.options(item));
  private readonly commands = new CommandList(this.commandList(), this.input);

  private readonly acts: Acts = {
    edit: (message, text) => void this.ask({ content: text, parent: message.parent }, message),
    regenerate: (message) => void this.ask({ regenerate: message.id }, message),
    rate: (message, value) => void api("POST", `messages/${message.id}/rating`, { value }).catch(this.say),
    branch: (id) => void this.patch({ leaf: id }).then(() => this.open(this.conversation.id)).catch(this.say),
  };

  private readonly say = (error: unknown) => { if (!(error instanceof Refused && error.status === 401)) notice((error as Error).message, true); };

  async start(): Promise<void> {
    this.listen();
    const id = /^\/c\/([^/]+)$/.exec(location.pathname)?.[1];
    const first = id ? this.open(id, false) : Promise.resolve(this.show(fresh()));
    void this.sidebar.load();
    try {
      const [me, models] = await Promise.all([api<Me>("GET", "me"), api<Model[] | { items: Model[] }>("GET", "models")]);
      this.me = me;
      this.models = Array.isArray(models) ? models : models.items;
    } catch (error) {
      this.say(error);
    }
    await first;
    this.showModels();
  }

  async open(id: string, push = true): Promise<void> {
    const turn = ++this.turn;
    try {
      const conversation = await api<Conversation>("GET", `conversations/${id}`);
      if (turn !== this.turn) return;
      if (push && location.pathname !== `/c/${id}`) history.pushState(null, "", `/c/${id}`);
      this.show(conversation);
      const last = conversation.messages.at(-1);
      if (last?.status === "streaming") await this.follow(answer(null, last.id), turn, last);
    } catch (error) {
      if (turn === this.turn) this.say(error);
    }
  }

  private fresh(keep = false): void {
    const { system, sampling, model } = this.conversation;
    ++this.turn;
    history.pushState(null, "", "/");
    this.show({ ...fresh(), ...(keep ? { system, sampling, model } : {}) });
    this.input.focus();
  }

  private show(conversation: Conversation): void {
    this.conversation = conversation;
    this.running = null;
    $("messages").replaceChildren(...conversation.messages.flatMap((message) => {
      const item = messageItem(message, this.acts);
      const cut = conversation.context?.dropped_before;
      return cut && String(cut) === String(message.id) ? [this.mark(), item] : [item];
    }));
    $("welcome").hidden = conversation.messages.length > 0;
    this.title(conversation.title);
    this.sidebar.mark(conversation.id || null);
    this.meter(conversation.context);
    this.showModels();
    this.state();
    this.toEnd(true);
  }

  private mark(): HTMLElement {
    return el("li", { class: "cut" }, "What stands above is too long for the model, which no longer sees it.");
  }

  private title(text: string): void {
    $("title").textContent = text || "New chat";
    document.title = text || $("title").dataset.site || document.title;
  }

  private meter(context: Context | null | undefined): void {
    const box = $("meter");
    box.hidden = !context?.limit;
    if (!context?.limit) return;
    box.querySelector("progress")!.value = Math.min(1, context.used / context.limit);
    box.querySelector("span")!.textContent = `${count(context.used)} / ${count(context.limit)}`;
    box.title = `${context.used} of ${context.limit} tokens that the model can see`;
  }

  private showModels(): void {
    const chosen = this.conversation.model || this.me?.settings.default_model || this.models.find((one) => one.default)?.id;
    const select = $<HTMLSelectElement>("model");
    select.replaceChildren(...this.models.map((one) => el("option", { value: one.id, selected: one.id === chosen }, one.id)));
    select.hidden = this.models.length < 2;
  }

  private state(): void {
    $("send").hidden = this.running !== null;
    $("stop").hidden = this.running === null;
    $("messages").setAttribute("aria-busy", String(this.running !== null));
  }

  private async patch(values: Partial<Conversation>): Promise<void> {
    if (this.conversation.id) await api("PATCH", `conversations/${this.conversation.id}`, values);
    Object.assign(this.conversation, values);
  }

  /** Asks and shows the answer as it comes. `instead`: the message from which a new branch goes. */
  private async ask(ask: { content?: string; parent?: string | null; regenerate?: string }, instead?: Message): Promise<void> {
    if (this.running !== null) return notice("An answer is being written; stop it first.", true); // "": asked, not begun
    let turn = this.turn;
    this.running = "";
    this.stopWanted = false;
    this.state();
    try {
      if (!this.conversation.id) {
        const { system, sampling, model } = this.conversation;
        const made = await api<Conversation>("POST", "conversations", Object.fromEntries(
          Object.entries({ system, sampling, model }).filter(([, value]) => value)));
        this.conversation = { ...made, messages: [] };
        history.replaceState(null, "", `/c/${made.id}`);
        turn = ++this.turn;
      }
      const body = { conversationId: this.conversation.id, ...ask, ...(this.searching ? { search: true } : {}) };
      await this.follow(answer(body), turn, undefined, instead);
    } catch (error) {
      if (turn === this.turn) { this.running = null; this.state(); }
      this.say(error);
      if (ask.content && !this.input.value && turn === this.turn) { this.input.value = ask.content; this.grow(); }
    }
  }

  private async follow(events: ReturnType<typeof answer>, turn: number, message?: Message, instead?: Message): Promise<void> {
    try {
      await this.showAll(events, turn, message, instead);
    } catch (error) {
      if (turn === this.turn) { this.running = null; this.state(); } // given up: one can ask again
      throw error;
    }
    if (turn !== this.turn) return;
    this.running = null;
    this.state();
    void this.refresh();
  }

  private async showAll(events: ReturnType<typeof answer>, turn: number, message?: Message, instead?: Message): Promise<void> {
    let item = message && this.item(message.id);
    let blocks: Blocks | undefined;
    const begin = (made: Message) => {
      message = made;
      this.running = made.id;
      this.state();
      if (this.stopWanted) void this.stop();
      $("live").textContent = "The answer is being written.";
    };
    if (message) begin(message);
    for await (const event of events) {
      if (turn !== this.turn) return; // another conversation is open; the server writes on
      if (event.event === "start") {
        this.cutFrom(instead, event.data.userMessage);
        $("welcome").hidden = true;
        for (const one of [event.data.userMessage, event.data.message])
          if (one) {
            this.conversation.messages.push(one); // ↑ and /again know it before all is read anew
            $("messages").append(item = messageItem(one, this.acts));
          }
        begin(event.data.message);
        this.toEnd(true);
        void this.sidebar.load().then(() => {
          if (turn === this.turn) this.title(this.sidebar.titles.get(String(this.conversation.id)) || this.conversation.title);
        });
      } else if (event.event === "sources" && item) {
        item.append(sourceList(event.data));
      } else if (event.event === "delta" && item) {
        blocks ??= new Blocks(item.querySelector<HTMLElement>(".body")!);
        blocks.apply(event.data);
        this.toEnd();
      } else if (event.event === "end") {
        this.finish(event.data.message, event.data.context);
      } else if (event.event === "error") {
        if (event.data.saved) this.finish(event.data.saved);
        else item?.append(el("p", { class: "problem" }, event.data.message));
        notice(event.data.message, true);
      }
    }
  }

  private finish(message: Message, context?: Context): void {
    this.item(message.id)?.replaceWith(messageItem(message, this.acts));
    if (context) this.meter(context);
    $("live").textContent = message.status === "done" ? "The answer is finished." : "The answer was ended early.";
    this.toEnd();
  }

  /** Reads what the server holds now: titles, versions and marks may be new. */
  private async refresh(): Promise<void> {
    const turn = this.turn;
    await this.sidebar.load();
    if (!this.conversation.id || this.running) return;
    const conversation = await api<Conversation>("GET", `conversations/${this.conversation.id}`).catch(() => null);
    const editing = document.querySelector(".editor") !== null;
    const same = conversation && JSON.stringify(conversation) === JSON.stringify(this.conversation);
    if (conversation && !same && turn === this.turn && !this.running && !editing) {
      const top = this.scroll.scrollTop, at = document.activeElement, within = $("messages").contains(at);
      this.show(conversation);
      this.scroll.scrollTop = top;
      if (within) this.scroll.focus({ preventScroll: true });
      const last = conversation.messages.at(-1);
      if (last?.status === "streaming") await this.follow(answer(null, last.id), turn, last).catch(this.say);
    }
  }

  private cutFrom(instead: Message | undefined, user: Message | null): void {
    if (!instead) return;
    let node: Element | null = this.item(instead.id);
    if (node && !user && instead.role === "user") node = node.nextElementSibling;
    while (node) { const next: Element | null = node.nextElementSibling; node.remove(); node = next; }
  }

  private item(id: string): HTMLLIElement | null {
    return $("messages").querySelector<HTMLLIElement>(`li[data-id="${CSS.escape(String(id))}"]`);
  }

  private async submit(): Promise<void> {
    const text = this.input.value;
    if (!text.trim() || this.running !== null) return;
    this.input.value = "";
    this.grow();
    this.commands.update();
    try {
      if (!await this.commands.run(text.trim())) await this.ask({ content: text });
    } catch (error) {
      if (!this.input.value) { this.input.value = text; this.grow(); }
      this.say(error);
    }
  }

  private async stop(): Promise<void> {
    this.stopWanted = this.running === ""; // the answer has no name yet: it is stopped when it has
    if (this.running) await api("POST", "stop", { message: this.running }).catch(this.say);
  }

  private grow(): void {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight, innerHeight * 0.4)}px`;
    $<HTMLButtonElement>("send").disabled = !this.input.value.trim();
  }

  private stuck = true;
  private toEnd(force = false): void {
    if (force) this.stuck = true;
    if (this.stuck) this.scroll.scrollTop = this.scroll.scrollHeight;
    $("to-end").hidden = this.stuck;
  }

  private async options(item?: Listed): Promise<void> {
    const other = item && String(item.id) !== String(this.conversation.id);
    try {
      const conversation = other ? await api<Conversation>("GET", `conversations/${item.id}`) : this.conversation;
      await conversationOptions(conversation, this.models,
        async (values) => { if (other) await api("PATCH", `conversations/${item.id}`, values); else await this.patch(values); },
        {
          renamed: () => { if (!other) this.conversation.pinned = !this.conversation.pinned; void this.sidebar.load(); },
          deleted: (id) => { if (String(id) === String(this.conversation.id)) this.fresh(); void this.sidebar.load(); notice("Deleted"); },
          saved: () => { if (!other) { this.title(this.conversation.title); this.showModels(); } void this.sidebar.load(); notice("Saved"); },
        });
    } catch (error) { this.say(error); }
  }

  private async sample(name: string, text: string, low: number, high: number): Promise<void> {
    const value = Number(text);
    if (!Number.isFinite(value) || value < low || value > high) throw new Error(`/${name} takes a number from ${low} to ${high}, not “${text}”.`);
    await this.patch({ sampling: { ...this.conversation.sampling, [name]: value } });
    notice(`${name} is ${value} in this conversation.`);
  }

  private needsOne(): string {
    if (!this.conversation.id) throw new Error("This conversation has not begun.");
    return `conversations/${this.conversation.id}`;
  }

  private commandList(): Command[] {
    const last = () => this.conversation.messages.findLast((message) => message.role === "assistant");
    const list: Command[] = [
      { name: "new", text: "Begin a new conversation", run: () => this.fresh() },
      { name: "clear", text: "Begin anew with the same system prompt and options", run: () => this.fresh(true) },
      { name: "system", takes: "text", text: "Set the system prompt of this conversation", run: async (text) => { await this.patch({ system: text }); notice("The system prompt is set."); } },
      { name: "temperature", takes: "number", text: "Set the temperature: 0 always takes the likeliest token", run: (text) => this.sample("temperature", text, 0, 2) },
      { name: "topk", takes: "number", text: "Sample from so many of the likeliest tokens", run: (text) => this.sample("top_k", text, 1, 1e6) },
      { name: "topp", takes: "number", text: "Sample from so much of the probability", run: (text) => this.sample("top_p", text, 0, 1) },
      { name: "tokens", takes: "number", text: "Set the longest answer, in tokens", run: (text) => this.sample("max_tokens", text, 1, 1e6) },
      { name: "model", takes: "name", text: "Choose the model", run: async (name) => {
        if (!this.models.some((one) => one.id === name)) throw new Error(`There is no model “${name}”; there are ${this.models.map((one) => one.id).join(", ")}.`);
        await this.patch({ model: name });
        this.showModels();
      } },
      { name: "again", text: "Answer the last question again", run: () => { const message = last(); if (!message) throw new Error("There is no answer yet."); void this.ask({ regenerate: message.id }, message); } },
      { name: "title", takes: "text", text: "Rename this conversation", run: async (title) => { this.needsOne(); await this.patch({ title }); this.title(title); await this.sidebar.load(); } },
      { name: "share", text: "Make a link by which others can read this", run: async () => reveal("Link to this conversation", new URL((await api<{ url: string }>("POST", `${this.needsOne()}/share`)).url, location.href).href, "Whoever has the link can read the conversation as it is now.") },
      { name: "export", takes: "format?", text: "Save as a file: markdown or json", run: (format) => { el("a", { href: `/api/${this.needsOne()}/export?format=${format === "json" ? "json" : "markdown"}`, download: "" }).click(); } },
      { name: "delete", text: "Delete this conversation", run: async () => {
        const path = this.needsOne();
        if (!await confirm("Delete this conversation?", `“${this.conversation.title}” is removed for good.`, "Delete")) return;
        await api("DELETE", path);
        $<HTMLDialogElement>("dialog").close();
        this.fresh();
        await this.sidebar.load();
      } },
      { name: "theme", text: "Switch between light and dark", run: () => switchTheme() },
      { name: "help", text: "List commands and keys", run: () => help([...list.map((one): [string, string] => [`/${one.name}${one.takes ? ` ${one.takes.replace("?", "")}` : ""}`, one.text]),
        ["Enter", "Send"], ["Shift+Enter", "Begin a new line"], ["Esc", "Stop the answer"], ["↑", "Edit your last message, in an empty field"], ["Ctrl+K", "Search conversations"]]) },
    ];
    return list;
  }

  private listen(): void {
    $("title").dataset.site = document.title;
    $("composer").addEventListener("submit", (event) => { event.preventDefault(); void this.submit(); });
    $("stop").onclick = () => void this.stop();
    $("new").addEventListener("click", (event) => { event.preventDefault(); this.sidebar.menu(false); this.fresh(); });
    $("options").onclick = () => void this.options();
    $<HTMLSelectElement>("model").onchange = (event) => void this.patch({ model: (event.target as HTMLSelectElement).value }).catch(this.say);
    document.getElementById("search")?.addEventListener("click", (event) => {
      this.searching = !this.searching;
      (event.currentTarget as Element).setAttribute("aria-pressed", String(this.searching));
    });
    this.input.addEventListener("input", () => { this.grow(); this.commands.update(); });
    this.input.addEventListener("keydown", (event) => {
      if (event.isComposing || this.commands.key(event)) return;
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); void this.submit(); }
      if (event.key === "ArrowUp" && !this.input.value) {
        const mine = this.conversation.messages.findLast((message) => message.role === "user");
        const item = mine && this.item(mine.id);
        if (mine && item) { event.preventDefault(); editor(item, mine, this.acts); }
      }
    });
    this.scroll.addEventListener("scroll", () => {
      this.stuck = this.scroll.scrollTop + this.scroll.clientHeight > this.scroll.scrollHeight - 60;
      $("to-end").hidden = this.stuck;
    });
    $("to-end").onclick = () => this.toEnd(true);
    document.addEventListener("keydown", (event) => {
      const dialog = $<HTMLDialogElement>("dialog").open;
      if (event.key === "Escape" && !dialog) void this.stop();
      if (event.key === "k" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); $("find").focus(); }
      if (event.key === "/" && document.activeElement === document.body && !dialog) { event.preventDefault(); this.input.focus(); }
    });
    addEventListener("popstate", () => {
      const id = /^\/c\/([^/]+)$/.exec(location.pathname)?.[1];
      if (id) void this.open(id, false);
      else { ++this.turn; this.show(fresh()); }
    });
    document.addEventListener("visibilitychange", () => { if (!document.hidden && !this.running) void this.refresh(); });
    this.grow();
  }
}
