// The dashboard: a list of runs on the left, what is selected on the right.
import * as charts from "./charts.js";
import * as runs from "./runs.js";
import { choose, chosen, readAddress, stampOf, state, TABS, writeAddress } from "./state.js";
import * as tabs from "./tabs.js";
import { $, get, say } from "./util.js";

const REFRESH_MS = 2000;
const DRAW = { charts: charts.draw, compare: tabs.compare, run: tabs.run, samples: tabs.samples,
  system: tabs.system };
let drawing = null; // one drawing at a time; `again` asks for another one behind it
let again = false;

async function drawTab() {
  again = true;
  if (drawing) return drawing;
  drawing = (async () => {
    while (again) {
      again = false;
      document.body.dataset.tab = state.tab;
      for (const id of TABS) $(id).hidden = id !== state.tab;
      for (const button of document.querySelectorAll("[role=tab]"))
        button.setAttribute("aria-selected", String(button.dataset.tab === state.tab));
      try { await DRAW[state.tab](); } catch (error) { say(error.message); }
    }
    drawing = null;
  })();
  return drawing;
}

function show(tab) {
  state.tab = tab;
  writeAddress();
  drawTab();
}

const stamps = () => [state.run, ...chosen()].map(stampOf).join();

async function refresh() {
  try {
    const before = stamps();
    state.runs = await get("runs");
    $("live").classList.toggle("on", state.runs.some((run) => run.status === "running"));
    runs.draw();
    await runs.loadFields();
    if (before !== stamps()) await drawTab();
  } catch (error) {
    $("live").classList.remove("on");
    say(`The server does not answer (${error.message}).`);
  }
}

// The next look comes after this one's end: on a slow server nothing piles up.
async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, REFRESH_MS);
}

runs.setUp(() => { writeAddress(); drawTab(); charts.redraw(); },
  (id) => { state.run = id; show("run"); });
for (const id of ["filter", "status", "sort", "group"])
  $(id).addEventListener("input", () => { writeAddress(); runs.draw(); runs.loadFields(); });
for (const id of ["smooth", "logy", "logx"])
  $(id).addEventListener("input", () => { writeAddress(); charts.redraw(); });
$("x").addEventListener("input", () => { charts.newAxis(); writeAddress(); });
$("metrics").addEventListener("input", () => { writeAddress(); drawTab(); });
$("csv").addEventListener("click", () => charts.saveCsv().catch((error) => say(error.message)));
for (const button of document.querySelectorAll("[role=tab]"))
  button.addEventListener("click", () => {
    if (button.dataset.tab === "run") state.run = "";
    show(button.dataset.tab);
  });
addEventListener("resize", charts.redraw);
addEventListener("hashchange", () => { readAddress(); runs.draw(); drawTab(); });

window.gaia = { state, charts: charts.charts, cache: charts.cache, smoothed: charts.smoothed, choose };

const asked = readAddress();
await refresh();
if (!asked) for (const run of state.runs.filter((r) => r.last_step >= 0).slice(0, 3)) choose(run.run, true);
runs.draw();
await drawTab();
setTimeout(poll, REFRESH_MS);
