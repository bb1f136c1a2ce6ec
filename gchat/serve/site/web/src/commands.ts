// Slash commands: a list that filters as one types, and what each does.
import { $, el } from "./dom.ts";

export interface Command { name: string; takes?: string; text: string; run(argument: string): void | Promise<void> }

export class CommandList {
  private at = 0;
  private shown: Command[] = [];

  constructor(private readonly commands: Command[], private readonly input: HTMLTextAreaElement) {
    input.setAttribute("aria-autocomplete", "list");
    input.setAttribute("aria-controls", "commands");
  }

  /** Tells whether a text is a command, and runs it. */
  async run(text: string): Promise<boolean> {
    if (!/^\/[a-z]/.test(text)) return false;
    const [name, ...rest] = text.slice(1).split(/\s+/);
    const command = this.commands.find((one) => one.name === name);
    if (!command) throw new Error(`There is no command /${name}; /help lists them.`);
    const argument = text.slice(1 + name.length).trim();
    if (command.takes && !command.takes.endsWith("?") && !rest.length) throw new Error(`/${name} needs ${command.takes}: /${name} ${command.takes.toUpperCase()}`);
    await command.run(argument);
    return true;
  }

  update(): void {
    const typed = this.input.value;
    this.shown = /^\/[a-z]*$/.test(typed) ? this.commands.filter((one) => one.name.startsWith(typed.slice(1))) : [];
    this.at = 0;
    this.draw();
  }

  /** Takes a key that moves in the list; tells whether it was one. */
  key(event: KeyboardEvent): boolean {
    if (!this.shown.length) return false;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      this.at = (this.at + (event.key === "ArrowDown" ? 1 : this.shown.length - 1)) % this.shown.length;
      this.draw();
    } else if (event.key === "Tab" || (event.key === "Enter" && this.input.value.slice(1) !== this.shown[this.at].name)) {
      this.choose(this.shown[this.at]);
    } else if (event.key === "Escape") {
      this.shown = [];
      this.draw();
    } else return false;
    event.preventDefault();
    return true;
  }

  private choose(command: Command): void {
    this.input.value = `/${command.name}${command.takes ? " " : ""}`;
    this.shown = [];
    this.draw();
    this.input.focus();
  }

  private draw(): void {
    const list = $("commands");
    list.replaceChildren(...this.shown.map((command, i) => el("li", {
      id: `command-${i}`, role: "option", "aria-selected": i === this.at, onmousedown: (event: Event) => { event.preventDefault(); this.choose(command); },
    }, el("b", {}, `/${command.name}`), ...(command.takes ? [el("i", {}, ` ${command.takes.replace("?", "")}`)] : []), el("span", { class: "soft" }, command.text))));
    list.hidden = !this.shown.length;
    if (this.shown.length) this.input.setAttribute("aria-activedescendant", `command-${this.at}`);
    else this.input.removeAttribute("aria-activedescendant");
    list.children[this.at]?.scrollIntoView({ block: "nearest" });
  }
}
