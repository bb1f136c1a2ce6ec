// The list of runs: filter, sort, group. Rows are kept and changed in place, so that the keyboard's
// focus and the scroll position survive a refresh.
import { chosen, choose, state } from "./state.js";
import { $, element, get, number } from "./util.js";

const SHOWN = 300; // rows; a filter finds the others
const rows = new Map(); // run id -> { node, signature }
const fields = new Map(); // config field -> { run id: value }
let changed = () => {}; // called when the selection changes
let opened = () => {};

export function setUp(onChange, onOpen) {
  changed = onChange;
  opened = onOpen;
  $("all").addEventListener("click", () => pick(shownRuns().slice(0, SHOWN).map((r) => r.run), true));
  $("none").addEventListener("click", () => pick(chosen(), false));
  $("group").addEventListener("focus", offerFields);
}

function pick(ids, on) {
  for (const id of ids) choose(id, on);
  draw();
  changed();
}

async function offerFields() {
  const known = new Set([...$("group").options].map((option) => option.value));
  const some = state.runs.filter((r) => r.status !== "damaged").slice(0, 50).map((r) => r.run);
  if (!some.length) return;
  for (const name of await get("fields", { run: some }))
    if (!known.has(`config.${name}`)) $("group").append(new Option(name, `config.${name}`));
}

// Values of a config field; asked for once, and again when there are other runs.
export async function loadFields() {
  const wanted = words().filter((w) => w.includes("=")).map((w) => w.split("=")[0]);
  if ($("group").value.startsWith("config.")) wanted.push($("group").value.slice(7));
  let news = false;
  for (const name of wanted)
    if (fields.get(name)?.runs !== state.runs.length) {
      fields.set(name, { runs: state.runs.length, values: await get("field", { name }) });
      news = true;
    }
  if (news) draw();
}

const words = () => $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);

function matches(run, word) {
  const [name, value] = word.split("=");
  if (value !== undefined)
    return String(fields.get(name)?.values[run.run] ?? "").toLowerCase() === value;
  return [run.name, run.run, run.project, run.host, run.status, run.notes, ...(run.tags || [])]
    .join(" ").toLowerCase().includes(word);
}

const numeric = (value) => (value === null || value === undefined ? Infinity : value);
const ORDER = {
  newest: (a, b) => b.started - a.started,
  name: (a, b) => a.name.localeCompare(b.name, "en", { numeric: true }),
  loss: (a, b) => numeric(a.loss) - numeric(b.loss),
  bpb: (a, b) => numeric(a.bpb) - numeric(b.bpb),
  step: (a, b) => b.last_step - a.last_step,
};

export function shownRuns() {
  const wanted = words(), status = $("status").value;
  return state.runs
    .filter((run) => (!status || run.status === status) && wanted.every((w) => matches(run, w)))
    .sort(ORDER[$("sort").value] || ORDER.newest);
}

function groupOf(run) {
  const by = $("group").value;
  if (!by) return "";
  if (by === "tags") return (run.tags || []).join(", ") || "no tag";
  if (by.startsWith("config.")) return fields.get(by.slice(7))?.values[run.run] ?? "–";
  return run[by] || "–";
}

export function draw() {
  const shown = shownRuns(), part = shown.slice(0, SHOWN), nodes = [];
  const groups = Map.groupBy ? Map.groupBy(part, groupOf) : byGroup(part);
  const names = [...groups.keys()].sort((a, b) => String(a).localeCompare(b, "en", { numeric: true }));
  for (const name of names) {
    if (name !== "") nodes.push(heading(name, groups.get(name)));
    for (const run of groups.get(name)) nodes.push(row(run));
  }
  const list = $("runs"), kept = new Set(nodes);
  for (const node of [...list.children]) if (!kept.has(node)) node.remove();
  nodes.forEach((node, i) => { if (list.children[i] !== node) list.insertBefore(node, list.children[i]); });
  const more = shown.length > part.length ? `, first ${part.length} shown` : "";
  $("count").textContent =
    `${shown.length} of ${state.runs.length} runs${more}, ${state.selected.size} selected`;
  const known = new Set([...$("status").options].map((option) => option.value));
  for (const status of new Set(state.runs.map((run) => run.status)))
    if (!known.has(status)) $("status").append(new Option(status, status));
}

function byGroup(runs) {
  const groups = new Map();
  for (const run of runs) groups.set(groupOf(run), [...(groups.get(groupOf(run)) || []), run]);
  return groups;
}

function heading(name, runs) {
  const ids = runs.map((run) => run.run), all = ids.every((id) => state.selected.has(id));
  const button = element("button", { textContent: all ? "none" : "all" });
  button.addEventListener("click", () => pick(ids, !all));
  return element("li", { className: "group" },
    element("span", { textContent: `${name} (${runs.length})` }), button);
}

function row(run) {
  let known = rows.get(run.run);
  if (!known) {
    const box = element("input", { type: "checkbox" });
    box.addEventListener("change", () => pick([run.run], box.checked));
    const open = element("button", { className: "open", textContent: "›", title: "Open this run" });
    open.setAttribute("aria-label", `Open ${run.name}`);
    open.addEventListener("click", () => opened(run.run));
    const name = element("span", { className: "name" }), facts = element("span", { className: "facts" });
    const status = element("span");
    known = { node: element("li", {}, element("label", { title: run.run }, box, name, status, facts), open),
      box, name, status, facts };
    rows.set(run.run, known);
  }
  const color = state.selected.get(run.run);
  known.box.checked = color !== undefined;
  known.box.style.accentColor = color || "";
  const facts = [`step ${number(run.last_step)}`];
  if (run.loss !== null && run.loss !== undefined) facts.push(`loss ${number(run.loss)}`);
  if (run.bpb !== null && run.bpb !== undefined) facts.push(`bpb ${number(run.bpb)}`);
  facts.push(...(run.tags || []).map((tag) => `#${tag}`));
  if (run.refused) facts.push(`${run.refused} batches refused`);
  if (run.problem) facts.push(run.problem);
  for (const [part, text] of [["name", run.name], ["status", run.status], ["facts", facts.join(" · ")]])
    if (known[part].textContent !== text) known[part].textContent = text;
  known.status.className = `state ${run.status}`;
  return known.node;
}
