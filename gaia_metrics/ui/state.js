// What the page shows, kept in the address: a reload or a shared link shows the same.
import { $ } from "./util.js";

const COLORS = ["#2f6f4f", "#c4622d", "#3f6fb5", "#9a4f96", "#b3902c", "#4a9aa3", "#a83e4e",
  "#6b7f2a", "#7a5c45", "#5b5fc7"];
const FIELDS = ["filter", "status", "sort", "group", "x", "smooth", "metrics"];
const BOXES = ["logy", "logx"];
export const TABS = ["charts", "compare", "run", "samples", "system"];

export const state = {
  runs: [], selected: new Map(), tab: "charts", run: "", zoom: null, loading: false,
};

export const chosen = () => [...state.selected.keys()];
export const find = (id) => state.runs.find((run) => run.run === id);
export const stampOf = (id) => { const run = find(id); return run ? `${run.updated} ${run.last_step}` : ""; };

export function label(id) {
  const name = find(id)?.name ?? id;
  return state.runs.filter((run) => run.name === name).length > 1 ? `${name} ${id.slice(-4)}` : name;
}

export function choose(id, on) {
  if (!on) return state.selected.delete(id);
  const used = new Set(state.selected.values());
  const color = COLORS.find((c) => !used.has(c)) || COLORS[state.selected.size % COLORS.length];
  return state.selected.set(id, state.selected.get(id) || color);
}

export function writeAddress() {
  const query = new URLSearchParams();
  if (state.selected.size) query.set("runs", chosen().join(","));
  if (state.tab !== "charts") query.set("tab", state.tab);
  if (state.run) query.set("run", state.run);
  if (state.zoom) query.set("zoom", state.zoom.map((v) => +v.toPrecision(7)).join(","));
  for (const id of FIELDS) if ($(id).value !== $(id).dataset.default) query.set(id, $(id).value);
  for (const id of BOXES) if ($(id).checked) query.set(id, "1");
  history.replaceState(null, "", `#${query}`);
}

export function readAddress() {
  const query = new URLSearchParams(location.hash.slice(1));
  for (const id of FIELDS) {
    $(id).dataset.default ??= $(id).value;
    const value = query.get(id) ?? $(id).dataset.default;
    if ($(id).tagName === "SELECT" && ![...$(id).options].some((o) => o.value === value))
      $(id).append(new Option(value, value));
    $(id).value = value;
  }
  for (const id of BOXES) $(id).checked = query.get(id) === "1";
  state.tab = TABS.includes(query.get("tab")) ? query.get("tab") : "charts";
  state.run = query.get("run") || "";
  const zoom = (query.get("zoom") || "").split(",").map(Number);
  state.zoom = zoom.length === 2 && zoom.every(Number.isFinite) && zoom[0] < zoom[1] ? zoom : null;
  state.selected.clear();
  for (const id of (query.get("runs") || "").split(",").filter(Boolean)) choose(id, true);
  return query.has("runs");
}
