// The other tabs: compare, one run, samples, system. Each is drawn again when its runs changed.
import { newChart, plot } from "./charts.js";
import { chosen, find, label, state } from "./state.js";
import { $, element, get, ink, number, say, when } from "./util.js";

const text = (v) => (typeof v === "number" ? number(v) : v ?? "–");

const TEXTS = 20; // of a run's page; the samples tab has more, and a filter

const article = (head, body) => element("article", {},
  element("h3", { textContent: head }), element("pre", { textContent: body }));

function table(head, rows) {
  return element("table", {}, element("tr", {}, ...head.map((h) => element("th", { textContent: h }))),
    ...rows.map(([name, ...cells]) => element("tr", { className: name.startsWith("config.") ? "differs" : "" },
      element("td", { textContent: name }), ...cells.map((c) => element("td", { textContent: text(c) })))));
}

export async function compare() {
  const runs = chosen();
  if (!runs.length) { $("compare").replaceChildren(); say("Select runs on the left."); return; }
  const rows = await get("compare", { run: runs });
  const fields = [...new Set(rows.flatMap(Object.keys))].filter((key) => key !== "run");
  $("compare").replaceChildren(element("div", { className: "wide" },
    table(["", ...runs.map(label)], fields.map((field) => [field, ...rows.map((row) => row[field])]))));
  say("");
}

export async function run() {
  const id = state.run || chosen()[0];
  if (!id) { $("run").replaceChildren(); say("Select a run on the left."); return; }
  const [facts, alerts, histograms, texts] = await Promise.all([get("run", { run: id }),
    get("texts", { run: id, kind: "alert" }), get("histograms", { run: id }), get("texts", { run: id })]);
  const row = find(id) || {}, attempts = facts.attempts || [];
  const last = attempts.length ? attempts[attempts.length - 1] : {};
  const known = [["id", facts.id], ["project", facts.project], ["status", row.status],
    ["tags", (facts.tags || []).join(", ")], ["notes", facts.notes], ["folder", facts.path],
    ["host", last.host || row.host], ["started", when(row.started)], ["updated", when(row.updated)],
    ["attempts", attempts.length || row.attempts], ["commit", facts.git?.commit],
    ["branch", facts.git?.branch], ["changes", facts.git?.dirty === undefined ? undefined : facts.git.dirty ? "uncommitted" : "none"], ["program", facts.program]].filter(([, v]) => v !== undefined && v !== "");
  const block = (title, ...content) => element("section", {}, element("h2", { textContent: title }), ...content);
  const parts = [block(`${row.name || facts.name}`, table(["", ""], known.map(([k, v]) => [k, String(v)]))),
    block("Config", table(["", ""], Object.entries(facts.config))),
    block("Last values", table(["metric", "last", "step", "least", "greatest"],
      facts.metrics.map((m) => [m.metric, m.last, m.last_step, m.min, m.max])))];
  if (alerts.length) parts.push(block("Alerts", table(["alert", "level", "step", "text"],
    alerts.map((a) => [a.name, a.level, a.step, a.text]))));
  const names = [...new Set(histograms.map((h) => h.name))];
  if (names.length) parts.push(block("Histograms over steps",
    ...names.map((name) => heatmap(name, histograms.filter((h) => h.name === name)))));
  if (texts.length) parts.push(block(texts.length > TEXTS ? `Newest ${TEXTS} of ${texts.length} texts` : "Texts",
    ...texts.slice(-TEXTS).reverse().map((t) => article(`step ${t.step} · ${t.name}`, t.text))));
  if (facts.versions) parts.push(block("Versions", table(["", ""], Object.entries(facts.versions))));
  $("run").replaceChildren(...parts);
  say("");
}

// Values of a bucket lie in (2^(i/2^scale), 2^((i+1)/2^scale)], negated on the negative side.
function spread(record, low, high, bins) {
  const counts = new Array(bins).fill(0);
  const put = (value, count) => {
    const at = high > low ? Math.floor(((value - low) / (high - low)) * bins) : 0;
    counts[Math.min(bins - 1, Math.max(0, at))] += count;
  };
  for (const [side, sign] of [["positive", 1], ["negative", -1]])
    record[side][1].forEach((count, i) => {
      if (count) put(sign * 2 ** ((record[side][0] + i + 0.5) / 2 ** record.scale), count);
    });
  if (record.zero_count) put(0, record.zero_count);
  return counts.map((count) => count / Math.max(1, record.count));
}

function heatmap(name, records) {
  const low = Math.min(...records.map((r) => r.min)), high = Math.max(...records.map((r) => r.max));
  const bins = 40, width = 640, height = 160, shown = records.slice(-width);
  const canvas = element("canvas", { width, height });
  canvas.setAttribute("aria-label", `${name} over steps`);
  const context = canvas.getContext("2d"), wide = width / shown.length, tall = height / bins;
  context.fillStyle = ink("--accent");
  shown.forEach((record, i) => spread(record, low, high, bins).forEach((share, bin) => {
    context.globalAlpha = Math.sqrt(share);
    context.fillRect(i * wide, height - (bin + 1) * tall, Math.ceil(wide), Math.ceil(tall));
  }));
  const steps = `steps ${shown[0].step} to ${shown[shown.length - 1].step}`;
  return element("figure", { className: "heat" }, element("h3", { textContent: name }), canvas,
    element("p", { textContent: `${number(low)} (bottom) to ${number(high)} (top), ${steps}` }));
}

export async function samples() {
  const words = $("metrics").value.toLowerCase(), blocks = [];
  for (const id of chosen())
    for (const kind of ["alert", "text"])
      for (const item of (await get("texts", { run: id, kind })).reverse())
        if (`${item.name} ${item.text}`.toLowerCase().includes(words) && blocks.length < 200)
          blocks.push(article(`${label(id)} · step ${item.step} · ${item.name}${kind === "alert" ? ` · ${item.level}` : ""}`,
            item.text));
  $("samples").replaceChildren(...blocks);
  say(blocks.length ? "" : words ? "No sample matches." : "The selected runs have logged no samples.");
}

const systemCharts = new Map();

export async function system() {
  const runs = chosen(), data = runs.length ? await get("system", { run: runs }) : {};
  const metrics = [...new Set(Object.values(data).flatMap(Object.keys))].sort();
  for (const [metric, chart] of systemCharts)
    if (!metrics.includes(metric)) { chart.figure.remove(); systemCharts.delete(metric); }
  for (const metric of metrics) {
    if (!systemCharts.has(metric)) systemCharts.set(metric, newChart(metric, $("system")));
    const chart = systemCharts.get(metric);
    const lines = runs.filter((id) => data[id]?.[metric])
      .map((id) => ({ name: label(id), color: state.selected.get(id), ...data[id][metric] }));
    chart.again = () => plot(chart, lines, { seconds: true, sync: "system" });
    chart.again();
  }
  say(!runs.length ? "Select a run on the left." : metrics.length ? "" : "The selected runs have no system metrics.");
}
