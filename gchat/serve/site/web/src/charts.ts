// Line charts in SVG: a few hundred points, an axis from zero, the value under the pointer.
import { count, el, svg } from "./dom.ts";

const WIDTH = 320, HEIGHT = 96;
export interface Line { name: string; unit: string; values: (number | null)[] }

/** A figure of one or two lines over the same times (unix seconds). */
export class Chart {
  readonly figure: HTMLElement;
  private readonly picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  private readonly now = el("span", { class: "now" });
  private readonly top = el("span", { class: "soft small" });
  private readonly foot = el("p", { class: "soft small span" });
  private at: number[] = [];
  private lines: Line[] = [];

  constructor(private readonly title: string) {
    this.figure = el("figure", {}, el("figcaption", {}, el("span", {}, title), this.now), this.top, this.picture as unknown as HTMLElement, this.foot);
    this.figure.addEventListener("pointermove", (event) => this.point(event));
    this.figure.addEventListener("pointerleave", () => this.draw(this.at, this.lines));
  }

  draw(at: number[], lines: Line[]): void {
    [this.at, this.lines] = [at, lines];
    const most = nice(Math.max(0, ...lines.flatMap((line) => line.values.map((value) => value ?? 0))));
    const x = (i: number) => at.length > 1 ? (i / (at.length - 1)) * WIDTH : WIDTH;
    const y = (value: number) => HEIGHT - 2 - (value / most) * (HEIGHT - 6);
    const grid = [0.5, 1].map((part) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y(most * part), y2: y(most * part) }));
    const drawn = lines.flatMap((line, k) => {
      let path = "", area = "", open = false, begin = 0, last = 0;
      line.values.forEach((value, i) => {
        if (value === null) { if (open) area += `L${last} ${HEIGHT}L${begin} ${HEIGHT}Z`; open = false; return; }
        const point = `${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
        if (!open) begin = +x(i).toFixed(1);
        path += `${open ? "L" : "M"}${point}`;
        area += `${open ? "L" : "M"}${point}`;
        last = +x(i).toFixed(1);
        open = true;
      });
      if (open) area += `L${last} ${HEIGHT}L${begin} ${HEIGHT}Z`;
      return [...(k ? [] : [svg("path", { class: "area", d: area })]), svg("path", { class: `line l${k}`, d: path, "vector-effect": "non-scaling-stroke" })];
    });
    this.picture.replaceChildren(...grid, ...drawn);
    this.top.textContent = count(most);
    const minutes = at.length > 1 ? Math.round((at[at.length - 1] - at[0]) / 60) : 0;
    this.foot.textContent = at.length < 2 ? "no measurements yet" : minutes > 1 ? `last ${minutes} minutes` : "last minute";
    this.say(at.length - 1);
    this.picture.setAttribute("aria-label", `${this.title}: ${this.now.textContent}, at most ${count(most)}`);
  }

  private say(i: number, when = ""): void {
    this.now.textContent = this.lines.map((line) => `${line.name ? `${line.name} ` : ""}${count(line.values[i])}${line.unit && line.values[i] !== null ? ` ${line.unit}` : ""}`).join(" · ") + when;
  }

  private point(event: PointerEvent): void {
    if (this.at.length < 2) return;
    const box = this.picture.getBoundingClientRect();
    const i = Math.max(0, Math.min(this.at.length - 1, Math.round(((event.clientX - box.left) / box.width) * (this.at.length - 1))));
    this.picture.querySelector(".pointer")?.remove();
    const x = (i / (this.at.length - 1)) * WIDTH;
    this.picture.append(svg("line", { class: "pointer", x1: x, x2: x, y1: 0, y2: HEIGHT, "vector-effect": "non-scaling-stroke" }));
    this.say(i, ` at ${new Date(this.at[i] * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" })}`);
  }
}

/** The next of 1, 2, 5 times a power of ten. */
export function nice(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value)!;
}
