// The dashboard: a list of runs on the left, what is selected on the right. Text from runs only
// ever goes through textContent. Charts load when they come into view.
"use strict";

const REFRESH_MS = 2000;
const POINTS = 800;
const COLORS = ["#2f6f4f", "#c4622d", "#3f6fb5", "#9a4f96", "#b3902c", "#4a9aa3", "#a83e4e",
  "#6b7f2a", "#7a5c45", "#5b5fc7"];
const FIRST = ["train/loss", "eval/val_bpb", "train/lr", "train/grad_norm", "perf/tokens_per_s",
  "perf/mfu"];
const $ = (id) => document.getElementById(id);
const state = { runs: [], selected: new Map(), metrics: [], charts: new Map(), data: {}, tab: "charts",
  loading: false, stamp: "" };

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

async function get(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters))
    for (const item of [value].flat()) query.append(key, item);
  const response = await fetch(`api/${path}?${query}`);
  const data = await response.json();
  if (!response.ok) throw new Error(data.error || response.statusText);
  return data;
}

const say = (text) => { $("message").textContent = text; };
const chosen = () => [...state.selected.keys()];
const nameOf = (id) => (state.runs.find((r) => r.run === id) || { name: id }).name;
const label = (id) =>
  state.runs.filter((r) => r.name === nameOf(id)).length > 1 ? `${nameOf(id)} ${id.slice(-4)}` : nameOf(id);

function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e4) return Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 }).format(value);
  return size !== 0 && size < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(5));
}

// ---- the list of runs -------------------------------------------------------------------------

function visibleRuns() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = $("status").value;
  return state.runs.filter((run) => {
    const text = `${run.name} ${run.run} ${run.project} ${run.host} ${run.status}`.toLowerCase();
    return (!status || run.status === status) && words.every((word) => text.includes(word));
  });
}

function drawRuns() {
  const shown = visibleRuns();
  $("runs").replaceChildren(...shown.map((run) => {
    const box = element("input", { type: "checkbox", checked: state.selected.has(run.run) });
    const color = state.selected.get(run.run);
    if (color) box.style.accentColor = color;
    box.addEventListener("change", () => select(run.run, box.checked));
    const facts = [`step ${number(run.last_step)}`];
    if (run.loss !== null && run.loss !== undefined) facts.push(`loss ${number(run.loss)}`);
    if (run.bpb !== null && run.bpb !== undefined) facts.push(`bpb ${number(run.bpb)}`);
    if (run.problem) facts.push(run.problem);
    return element("li", {}, element("label", { title: run.run }, box,
      element("span", { className: "name", textContent: run.name }),
      element("span", { className: `state ${run.status}`, textContent: run.status }),
      element("span", { className: "facts", textContent: facts.join(" · ") })));
  }));
  $("count").textContent = `${shown.length} of ${state.runs.length} runs, ${state.selected.size} selected`;
  const known = new Set([...$("status").options].map((option) => option.value));
  for (const status of new Set(state.runs.map((run) => run.status)))
    if (!known.has(status)) $("status").append(element("option", { value: status, textContent: status }));
}

function select(run, on) {
  if (on) {
    const used = new Set(state.selected.values());
    state.selected.set(run, COLORS.find((c) => !used.has(c)) || COLORS[state.selected.size % COLORS.length]);
  } else {
    state.selected.delete(run);
  }
  state.data = {};
  drawRuns();
  refreshTab();
}

// ---- charts -----------------------------------------------------------------------------------

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.target.inView = entry.isIntersecting;
  loadCharts();
}, { rootMargin: "300px" });

async function drawCharts() {
  const runs = chosen();
  if (!runs.length) {
    clearCharts();
    say(state.runs.length ? "Select runs on the left." : "No runs here yet; this page looks again every two seconds.");
    return;
  }
  const all = await get("metrics", { run: runs });
  const rank = (m) => (FIRST.includes(m) ? FIRST.indexOf(m) : FIRST.length);
  const words = $("metrics").value.toLowerCase();
  state.metrics = all.filter((m) => m.toLowerCase().includes(words))
    .sort((a, b) => rank(a) - rank(b) || a.localeCompare(b, "en", { numeric: true }));
  say(state.metrics.length ? "" : "No metric matches.");
  for (const [metric, chart] of state.charts)
    if (!state.metrics.includes(metric)) { seen.unobserve(chart.figure); chart.figure.remove(); state.charts.delete(metric); }
  for (const metric of state.metrics)
    if (!state.charts.has(metric)) state.charts.set(metric, newChart(metric, $("charts")));
  $("charts").append(...state.metrics.map((m) => state.charts.get(m).figure));
  for (const chart of state.charts.values()) { seen.unobserve(chart.figure); seen.observe(chart.figure); }
}

function clearCharts() {
  for (const chart of state.charts.values()) { seen.unobserve(chart.figure); chart.figure.remove(); }
  state.charts.clear();
}

function newChart(title, parent) {
  const png = element("button", { textContent: "PNG", title: "Save this chart" });
  const holder = element("div");
  const figure = element("figure", {}, element("header", {}, element("h2", { textContent: title }), png), holder);
  figure.dataset.metric = title;
  parent.append(figure);
  const chart = { title, figure, holder, plot: null };
  png.addEventListener("click", () => savePng(chart));
  return chart;
}

async function loadCharts() {
  if (state.loading) return;
  const wanted = state.metrics.filter((m) => state.charts.get(m)?.figure.inView && !(m in state.data));
  if (!wanted.length) return;
  state.loading = true;
  try {
    const got = await get("series", { run: chosen(), metric: wanted, x: $("x").value, points: POINTS });
    for (const metric of wanted) {
      state.data[metric] = got[metric] || {};
      if (state.charts.has(metric)) drawChart(state.charts.get(metric), state.data[metric]);
    }
  } catch (error) {
    say(error.message);
    for (const metric of wanted) state.data[metric] = {};
  } finally {
    state.loading = false;
  }
  loadCharts();
}

// Exponential moving average with bias correction, as TensorBoard's slider does it.
function smoothed(values, weight) {
  if (!weight) return values;
  let last = 0, count = 0;
  return values.map((value) => {
    if (value === null) return null;
    last = last * weight + (1 - weight) * value;
    count += 1;
    return last / (1 - weight ** count);
  });
}

function aligned(lines) {
  return uPlot.join(lines.map((line) => [line.x, ...line.columns]));
}

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function axes(seconds) {
  const common = { stroke: ink("--soft"), grid: { stroke: ink("--line"), width: 1 }, ticks: { show: false },
    font: "11px system-ui" };
  const time = (u, ticks) => ticks.map((t) => (t === null ? "" : t >= 7200 ? `${+(t / 3600).toFixed(1)} h`
    : t >= 120 ? `${+(t / 60).toFixed(1)} min` : `${t} s`));
  const plain = (u, ticks) => ticks.map((t) => (t === null ? "" : number(t)));
  return [{ ...common, size: 30, values: seconds ? time : plain }, { ...common, size: 56, values: plain }];
}

function drawChart(chart, byRun, single) {
  const weight = +$("smooth").value;
  const series = [{}], lines = [], bands = [];
  for (const [run, line] of Object.entries(byRun)) {
    const color = single || state.selected.get(run);
    if (!color) continue;
    const columns = [smoothed(line.y, weight)];
    const at = series.length;
    series.push({ label: single ? "value" : label(run), stroke: color, width: 1.5, spanGaps: true, points: { show: line.x.length < 2 },
      value: (u, v) => number(v) });
    if (line.low && !weight && line.low.some((v, i) => v !== line.high[i])) {
      for (const side of [line.high, line.low]) {
        series.push({ stroke: "transparent", points: { show: false }, spanGaps: true, legendOff: true });
        columns.push(side);
      }
      bands.push({ series: [at + 1, at + 2], fill: `${color}22` });
    }
    lines.push({ x: line.x, columns });
  }
  if (chart.plot) chart.plot.destroy();
  chart.plot = null;
  if (!lines.length) return;
  const log = (id) => ($(id).checked && !single ? 3 : 1);
  chart.plot = new uPlot({
    width: Math.max(280, chart.figure.clientWidth - 22), height: 190, series, bands,
    scales: { x: { time: false, distr: log("logx") }, y: { distr: log("logy") } },
    axes: axes(single || $("x").value === "time"),
    cursor: { sync: { key: single ? "system" : "charts" }, points: { size: 5 } },
    legend: { live: true },
    hooks: { ready: [(u) => u.root.querySelectorAll(".u-series").forEach((row, i) => {
      if (i === 0 || series[i].legendOff) row.style.display = "none";
    })] },
  }, aligned(positive(lines, log("logx") === 3, log("logy") === 3)), chart.holder);
}

// A logarithmic axis has no place for zero and below.
function positive(lines, logX, logY) {
  if (!logX && !logY) return lines;
  return lines.map((line) => {
    const keep = line.x.map((x) => !logX || x > 0);
    const clean = (column) => column.filter((_, i) => keep[i]).map((v) => (logY && v !== null && v <= 0 ? null : v));
    return { x: line.x.filter((_, i) => keep[i]), columns: line.columns.map(clean) };
  });
}

const redraw = () => { for (const [m, c] of state.charts) if (m in state.data) drawChart(c, state.data[m]); };

// ---- other tabs -------------------------------------------------------------------------------

async function drawCompare() {
  const runs = chosen();
  if (!runs.length) { $("compare").replaceChildren(); say("Select runs on the left."); return; }
  const rows = await get("compare", { run: runs });
  const fields = [...new Set(rows.flatMap(Object.keys))].filter((key) => key !== "run");
  const text = (v) => (typeof v === "number" ? number(v) : v ?? "–");
  $("compare").replaceChildren(element("table", {},
    element("tr", {}, element("th"), ...runs.map((run) => element("th", { textContent: label(run) }))),
    ...fields.map((field) => element("tr", {}, element("td", { textContent: field }),
      ...rows.map((row) => element("td", { textContent: text(row[field]), className: field.startsWith("config.") ? "differs" : "" }))))));
  say("");
}

async function drawSamples() {
  const blocks = [];
  for (const run of chosen())
    for (const kind of ["alert", "text"])
      for (const item of (await get("texts", { run, kind })).reverse().slice(0, 50))
        blocks.push(element("article", {},
          element("h3", { textContent: `${label(run)} · step ${item.step} · ${item.name}${kind === "alert" ? ` · ${item.level}` : ""}` }),
          element("pre", { textContent: item.text })));
  $("samples").replaceChildren(...blocks);
  say(blocks.length ? "" : "The selected runs have logged no samples.");
}

async function drawSystem() {
  const run = chosen()[0];
  const data = run ? await get("system", { run }) : {};
  $("system").replaceChildren();
  for (const [metric, line] of Object.entries(data))
    drawChart(newChart(metric, $("system")), { [run]: line }, state.selected.get(run));
  say(!run ? "Select a run on the left." : Object.keys(data).length ? label(run) : `${label(run)} has no system metrics.`);
}

const TABS = { charts: drawCharts, compare: drawCompare, samples: drawSamples, system: drawSystem };

async function refreshTab() {
  for (const id of Object.keys(TABS)) $(id).hidden = id !== state.tab;
  for (const button of document.querySelectorAll("[role=tab]"))
    button.setAttribute("aria-selected", String(button.dataset.tab === state.tab));
  try { await TABS[state.tab](); } catch (error) { say(error.message); }
}

// ---- export -----------------------------------------------------------------------------------

function save(name, url) {
  const link = element("a", { href: url, download: name });
  link.click();
}

function savePng(chart) {
  if (!chart.plot) return;
  const source = chart.plot.ctx.canvas;
  const canvas = element("canvas", { width: source.width, height: source.height });
  const context = canvas.getContext("2d");
  context.fillStyle = ink("--panel");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0);
  save(`${chart.title.replaceAll("/", "-")}.png`, canvas.toDataURL("image/png"));
}

function saveCsv() {
  const quote = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const rows = ["run,metric,x,value,low,high"];
  for (const [metric, byRun] of Object.entries(state.data))
    for (const [run, line] of Object.entries(byRun))
      line.x.forEach((x, i) => rows.push([quote(run), quote(metric), x, line.y[i], line.low[i], line.high[i]].join(",")));
  save("metrics.csv", `data:text/csv;charset=utf-8,${encodeURIComponent(rows.join("\n"))}`);
}

// ---- start ------------------------------------------------------------------------------------

async function refresh() {
  try {
    state.runs = await get("runs");
    $("live").classList.toggle("on", state.runs.some((run) => run.status === "running"));
    const stamp = state.runs.filter((r) => state.selected.has(r.run)).map((r) => `${r.run} ${r.updated} ${r.last_step}`).join();
    drawRuns();
    if (stamp !== state.stamp && state.stamp !== "" && state.tab === "charts" && !state.loading) {
      state.data = {};
      await drawCharts();
    }
    state.stamp = stamp;
  } catch (error) {
    $("live").classList.remove("on");
    say(`The server does not answer (${error.message}).`);
  }
}

for (const id of ["filter", "status"]) $(id).addEventListener("input", drawRuns);
for (const id of ["smooth", "logy", "logx"]) $(id).addEventListener("input", redraw);
$("x").addEventListener("input", () => { state.data = {}; loadCharts(); });
$("metrics").addEventListener("input", refreshTab);
$("csv").addEventListener("click", saveCsv);
for (const button of document.querySelectorAll("[role=tab]"))
  button.addEventListener("click", () => { state.tab = button.dataset.tab; refreshTab(); });
addEventListener("resize", redraw);

(async () => {
  await refresh();
  for (const run of state.runs.filter((r) => r.last_step >= 0).slice(0, 3)) select(run.run, true);
  if (!state.selected.size) refreshTab();
  setInterval(refresh, REFRESH_MS);
})();
