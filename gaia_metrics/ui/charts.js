// Charts by section. What is fetched is kept by metric AND run: an answer to an older selection is
// as good as a newer one, so a chart is never without a run that is selected.
import { chosen, label, stampOf, state, writeAddress } from "./state.js";
import { $, element, get, ink, number, save, say } from "./util.js";

const POINTS = 800, AT_ONCE = 12, SECTION = 60, OPEN = 40;
const FIRST = ["train/loss", "eval/val_bpb", "train/lr", "train/grad_norm", "perf/tokens_per_s",
  "perf/mfu"];
export const charts = new Map(); // metric -> chart
export const cache = new Map(); // metric -> Map(run -> { stamp, line })
const sections = new Map(); // prefix -> { node, grid, metrics, whole }
let generation = 0; // of the x axis
let filter = ""; // the metrics' filter when the sections were last arranged

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.target.inView = entry.isIntersecting;
  load();
}, { rootMargin: "300px" });

// ---- sections ---------------------------------------------------------------------------------

export async function draw() {
  const runs = chosen();
  if (!runs.length) {
    arrange([]);
    say(state.runs.length ? "Select runs on the left."
      : "No runs here yet; this page looks again every two seconds.");
    return;
  }
  const all = await get("metrics", { run: runs });
  const words = $("metrics").value.toLowerCase().split(/\s+/);
  const rank = (m) => (FIRST.includes(m) ? FIRST.indexOf(m) : FIRST.length);
  const metrics = all.filter((m) => words.every((w) => m.toLowerCase().includes(w)))
    .sort((a, b) => rank(a) - rank(b) || a.localeCompare(b, "en", { numeric: true }));
  say(metrics.length ? "" : "No metric matches.");
  arrange(metrics);
}

function arrange(metrics) {
  const wanted = new Set(metrics), groups = new Map();
  for (const metric of metrics) {
    const prefix = metric.includes("/") ? metric.slice(0, metric.indexOf("/")) : "other";
    if (!groups.has(prefix)) groups.set(prefix, []);
    groups.get(prefix).push(metric);
  }
  for (const metric of [...charts.keys()]) if (!wanted.has(metric)) drop(metric);
  for (const prefix of [...sections.keys()])
    if (!groups.has(prefix)) { sections.get(prefix).node.remove(); sections.delete(prefix); }
  // What a new filter finds is shown, also where its section was closed.
  const found = $("metrics").value && $("metrics").value !== filter && metrics.length <= SECTION;
  filter = $("metrics").value;
  let open = 0;
  for (const [prefix, names] of groups) {
    if (!sections.has(prefix)) sections.set(prefix, newSection(prefix, open < OPEN));
    open += Math.min(names.length, SECTION);
    const section = sections.get(prefix);
    section.metrics = names;
    if (found) section.node.open = true;
    section.title.textContent = `${prefix} (${names.length})`;
    fill(section);
  }
  const order = [...groups.keys()].map((prefix) => sections.get(prefix).node);
  order.forEach((node, i) => {
    if ($("charts").children[i] !== node) $("charts").insertBefore(node, $("charts").children[i]);
  });
}

function newSection(prefix, open) {
  const title = element("summary"), grid = element("div", { className: "grid" });
  const more = element("button", { className: "more" });
  const node = element("details", { open }, title, grid, more);
  node.dataset.section = prefix;
  const section = { node, title, grid, more, metrics: [], whole: false };
  node.addEventListener("toggle", () => fill(section));
  more.addEventListener("click", () => { section.whole = true; fill(section); });
  return section;
}

function fill(section) {
  const shown = !section.node.open ? [] : section.metrics.slice(0, section.whole ? Infinity : SECTION);
  const left = section.metrics.length - shown.length;
  section.more.hidden = !section.node.open || !left;
  section.more.textContent = `Show ${left} more`;
  const kept = new Set(shown);
  for (const figure of [...section.grid.children])
    if (!kept.has(figure.dataset.metric)) drop(figure.dataset.metric);
  shown.forEach((metric, i) => {
    if (!charts.has(metric)) charts.set(metric, newChart(metric, section.grid));
    const { figure } = charts.get(metric);
    if (section.grid.children[i] !== figure) section.grid.insertBefore(figure, section.grid.children[i]);
    seen.observe(figure);
    render(charts.get(metric));
  });
  load();
}

function drop(metric) {
  const chart = charts.get(metric);
  if (!chart) return;
  seen.unobserve(chart.figure);
  chart.plot?.destroy();
  chart.figure.remove();
  charts.delete(metric);
}

export function newChart(title, parent) {
  const large = element("button", { textContent: "⤢", title: "Full screen (Esc closes)" });
  const png = element("button", { textContent: "PNG", title: "Save this chart" });
  const holder = element("div", { className: "holder" });
  const figure = element("figure", {}, element("header", {},
    element("h2", { textContent: title, title }), element("span", {}, large, png)), holder);
  figure.dataset.metric = title;
  parent.append(figure);
  const chart = { title, figure, holder, plot: null, drawn: "" };
  png.addEventListener("click", () => savePng(chart));
  large.addEventListener("click", () => enlarge(chart));
  return chart;
}

function enlarge(chart) {
  chart.figure.classList.toggle("large");
  chart.drawn = "";
  chart.again?.();
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape")
    for (const figure of document.querySelectorAll("figure.large")) figure.querySelector("button").click();
});

// ---- loading ----------------------------------------------------------------------------------

const missing = (metric) => chosen().filter((run) => cache.get(metric)?.get(run)?.stamp !== stampOf(run));

export function newAxis() {
  generation += 1;
  state.zoom = null;
  cache.clear();
  load();
}

export async function load() {
  if (state.loading || state.tab !== "charts") return;
  const metrics = [...charts.values()]
    .filter((c) => c.figure.inView && missing(c.title).length).map((c) => c.title).slice(0, AT_ONCE);
  if (!metrics.length) return;
  const runs = [...new Set(metrics.flatMap(missing))];
  const stamps = new Map(runs.map((run) => [run, stampOf(run)])), asked = generation;
  state.loading = true;
  let failed = false;
  try {
    const got = await get("series", { run: runs, metric: metrics, x: $("x").value, points: POINTS });
    if (asked === generation)
      for (const metric of metrics) {
        if (!cache.has(metric)) cache.set(metric, new Map());
        for (const run of runs)
          cache.get(metric).set(run, { stamp: stamps.get(run), line: got[metric]?.[run] });
        if (charts.has(metric)) render(charts.get(metric));
      }
  } catch (error) {
    failed = true; // the next refresh tries again
    say(error.message);
  } finally {
    state.loading = false;
  }
  if (!failed) load();
}

// ---- drawing ----------------------------------------------------------------------------------

// Exponential moving average with bias correction, as TensorBoard's slider does it.
export function smoothed(values, weight) {
  if (!weight) return values;
  let last = 0, count = 0;
  return values.map((value) => {
    if (value === null) return null;
    last = last * weight + (1 - weight) * value;
    count += 1;
    return last / (1 - weight ** count);
  });
}

function render(chart) {
  const lines = chosen().map((run) => ({ run, ...cache.get(chart.title)?.get(run) }))
    .filter((item) => item.line);
  const settings = ["smooth", "logx", "logy", "x"].map((id) => `${$(id).value}${$(id).checked}`);
  const signature = JSON.stringify([settings, state.zoom, chart.figure.clientWidth, innerHeight,
    lines.map((item) => [item.run, item.stamp, label(item.run), state.selected.get(item.run)])]);
  if (signature === chart.drawn) return;
  chart.drawn = signature;
  chart.again = () => render(chart);
  plot(chart, lines.map((item) => ({ name: label(item.run), color: state.selected.get(item.run), ...item.line })),
    { weight: +$("smooth").value, logX: $("logx").checked, logY: $("logy").checked,
      seconds: $("x").value === "time", sync: "charts", zoom: state.zoom });
}

export const redraw = () => { for (const chart of charts.values()) render(chart); };

function axes(seconds) {
  const common = { stroke: ink("--soft"), grid: { stroke: ink("--line"), width: 1 },
    ticks: { show: false }, font: "11px system-ui" };
  const time = (u, ticks) => ticks.map((t) => (t === null ? "" : t >= 7200 ? `${+(t / 3600).toFixed(1)} h`
    : t >= 120 ? `${+(t / 60).toFixed(1)} min` : `${t} s`));
  const plain = (u, ticks) => ticks.map((t) => (t === null ? "" : number(t)));
  return [{ ...common, size: 30, values: seconds ? time : plain }, { ...common, size: 56, values: plain }];
}

// Draw lines { name, color, x, y, low?, high? } into a chart.
export function plot(chart, lines, { weight = 0, logX = false, logY = false, seconds = false, sync, zoom }) {
  const series = [{}], data = [], bands = [];
  for (const line of lines) {
    const columns = [smoothed(line.y, weight)], at = series.length;
    series.push({ label: line.name, stroke: line.color, width: 1.5, spanGaps: true,
      points: { show: line.x.length < 2 }, value: (u, v) => number(v) });
    if (line.low && !weight && line.low.some((v, i) => v !== line.high[i])) {
      for (const side of [line.high, line.low]) {
        series.push({ stroke: "transparent", points: { show: false }, spanGaps: true, hidden: true });
        columns.push(side);
      }
      bands.push({ series: [at + 1, at + 2], fill: `${line.color}22` });
    }
    data.push(positive(line.x, columns, logX, logY));
  }
  chart.plot?.destroy();
  chart.plot = null;
  if (!data.length) return;
  const large = chart.figure.classList.contains("large");
  chart.plot = new uPlot({
    width: Math.max(240, chart.figure.clientWidth - 22),
    height: large ? 240 : 190, series, bands,
    scales: { x: { time: false, distr: logX ? 3 : 1 }, y: { distr: logY ? 3 : 1 } },
    axes: axes(seconds), cursor: { sync: { key: sync }, points: { size: 5 } }, legend: { live: true },
    hooks: { ready: [hideRows(series)], setSelect: sync === "charts" ? [zoomed] : [] },
  }, uPlot.join(data), chart.holder);
  if (large) requestAnimationFrame(() => fillScreen(chart.plot));
  if (sync === "charts") chart.plot.over.addEventListener("dblclick", () => setZoom(null));
  if (zoom) chart.plot.setScale("x", { min: zoom[0], max: zoom[1] });
}

// The height that the legend leaves, once it is laid out.
function fillScreen(u) {
  if (!u?.root.isConnected) return;
  const legend = u.root.querySelector(".u-legend").offsetHeight;
  u.setSize({ width: u.width, height: Math.max(240, innerHeight - legend - 60) });
}

const hideRows = (series) => (u) => u.root.querySelectorAll(".u-series").forEach((row, i) => {
  if (i === 0 || series[i].hidden) row.style.display = "none";
});

function zoomed(u) {
  if (u.select.width > 0)
    setZoom([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
}

function setZoom(zoom) {
  state.zoom = zoom;
  writeAddress();
  setTimeout(redraw); // once uPlot has done its own
}

// A logarithmic axis has no place for zero and below.
function positive(x, columns, logX, logY) {
  const keep = x.map((v) => !logX || v > 0);
  const clean = (column) =>
    column.filter((_, i) => keep[i]).map((v) => (logY && v !== null && v <= 0 ? null : v));
  return [x.filter((_, i) => keep[i]), ...columns.map(clean)];
}

// ---- export -----------------------------------------------------------------------------------

function savePng(chart) {
  if (!chart.plot) return;
  const source = chart.plot.ctx.canvas, names = [...chart.plot.series].filter((s) => s.label && !s.hidden).slice(1);
  const scale = devicePixelRatio, head = (24 + 18 * names.length) * scale;
  const canvas = element("canvas", { width: source.width, height: source.height + head });
  const context = canvas.getContext("2d");
  context.fillStyle = ink("--panel");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = `${13 * scale}px system-ui`;
  context.fillStyle = ink("--ink");
  context.fillText(chart.title, 10 * scale, 17 * scale);
  names.forEach((series, i) => {
    context.fillStyle = typeof series.stroke === "function" ? series.stroke() : series.stroke;
    context.fillText(series.label, 10 * scale, (35 + 18 * i) * scale);
  });
  context.drawImage(source, 0, head);
  save(`${chart.title.replaceAll("/", "-")}.png`, canvas.toDataURL("image/png"));
}

// Every metric that is open in the sections, of the selected runs, in full.
export async function saveCsv() {
  const quote = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const rows = ["run,metric,x,value,low,high"], metrics = [...charts.keys()];
  say("Collecting the values…");
  for (let i = 0; i < metrics.length; i += AT_ONCE) {
    const part = metrics.slice(i, i + AT_ONCE);
    const got = await get("series", { run: chosen(), metric: part, x: $("x").value, points: 0 });
    for (const [metric, byRun] of Object.entries(got))
      for (const [run, line] of Object.entries(byRun))
        line.x.forEach((x, j) => rows.push(
          [quote(run), quote(metric), x, line.y[j], line.low[j], line.high[j]].join(",")));
  }
  say("");
  save("metrics.csv", URL.createObjectURL(new Blob([rows.join("\n")], { type: "text/csv" })));
}
