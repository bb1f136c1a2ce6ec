// Small helpers. Text from runs only ever goes through textContent.
export const $ = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export async function get(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters))
    for (const item of [value].flat()) query.append(key, item);
  const response = await fetch(`api/${path}?${query}`);
  const data = await response.json();
  if (!response.ok) throw new Error(data.error || response.statusText);
  return data;
}

export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e15) return value.toExponential(2); // FLOPs: no letter stands for them
  if (size >= 1e4)
    return Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 }).format(value);
  return size !== 0 && size < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(5));
}

export const say = (text) => { if ($("message").textContent !== text) $("message").textContent = text; };

export const ink = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function save(name, url) {
  element("a", { href: url, download: name }).click();
}

export const when = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "–");
