// Small helpers. Text only ever goes through textContent; `cleaned` is the one place that makes HTML.
export const $ = <T extends HTMLElement = HTMLElement>(id: string): T => document.getElementById(id) as T;

export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K, properties: Record<string, unknown> = {}, ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") node.className = String(value);
    else if (key.includes("-") || key === "role") node.setAttribute(key, String(value));
    else (node as unknown as Record<string, unknown>)[key] = value;
  }
  node.append(...children);
  return node;
}

interface Policy { createHTML(html: string): string }
const policy: Policy = (
  window as { trustedTypes?: { createPolicy(name: string, rules: object): Policy } }
).trustedTypes?.createPolicy("gaia-cleaned", { createHTML: (html: string) => html }) ?? { createHTML: (html) => html };

/** Shows HTML that the server made and cleaned. Nothing else may be passed here. */
export function cleaned(node: Element, html: string): void {
  node.innerHTML = policy.createHTML(html);
}

const SVG = "http://www.w3.org/2000/svg";
export function svg(tag: string, attributes: Record<string, string | number>, ...children: Node[]): SVGElement {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  node.append(...children);
  return node;
}

export const PATHS = {
  copy: "M7 7V4h9v9h-3M4 7h9v9H4Z", edit: "M4 16l1-4 8-8 3 3-8 8ZM11 6l3 3", again: "M16 10a6 6 0 1 1-2-4.5L16 7.5M16 3.5v4h-4",
  up: "M4 9h3v8H4ZM7 9l3-6c2 0 2 2 1.500 4H16l-1.500 9-1 1H7", down: "M4 11h3V3H4ZM7 11l3 6c2 0 2-2 1.500-4H16L14.500 4l-1-1H7",
  left: "M12 5l-5 5 5 5", right: "M8 5l5 5-5 5", pin: "M7 3h6l-1 5 3 3H5l3-3ZM10 11v6", dots: "M4.500 10h.01M10 10h.01M15.500 10h.01",
};

export function iconButton(path: keyof typeof PATHS, label: string, act: (event: MouseEvent) => void): HTMLButtonElement {
  const button = el("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick: act });
  button.append(svg("svg", { class: "icon", viewBox: "0 0 20 20", "aria-hidden": "true" }, svg("path", { d: PATHS[path] })));
  return button;
}

let timer = 0;
/** Says something that went well or wrong, for some seconds; screen readers hear it. */
export function notice(text: string, bad = false): void {
  const box = $("notices");
  box.replaceChildren(el("p", { class: bad ? "notice bad" : "notice" }, text));
  clearTimeout(timer);
  timer = window.setTimeout(() => box.replaceChildren(), bad ? 9000 : 3500);
}

export async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission, or a page without TLS
    const area = el("textarea", { value: text, class: "unseen" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  notice("Copied");
}

export function when(seconds: number | null | undefined): string {
  if (!seconds) return "–";
  const date = new Date(seconds * 1000);
  const today = new Date().toDateString() === date.toDateString();
  return today ? date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })
    : date.toLocaleDateString([], { day: "numeric", month: "short", year: "numeric" });
}

export function count(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  return Intl.NumberFormat("en", { notation: value >= 1e4 ? "compact" : "standard", maximumFractionDigits: value >= 100 ? 0 : 1 }).format(value);
}
