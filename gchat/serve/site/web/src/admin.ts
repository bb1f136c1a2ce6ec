// The administrator's page: what runs, what it costs, who may use it.
import { api } from "./api.ts";
import { Chart, type Line } from "./charts.ts";
import { $, count, el, notice, when } from "./dom.ts";
import { confirm, reveal } from "./options.ts";

interface User { id: string; name: string; role: string; disabled: boolean; quota: number | null; used: number; created_at: number; last_seen: number | null }
interface Status { models: { id: string; context: number | null; state: string }[]; queue: number; running: number; disk: { used: number | null; total: number | null; database: number | null }; unsaved_s: number | null; uptime_s: number; users: number; version: string }
interface Series { at: number[]; series: Record<string, (number | null)[]> }
interface Invitation { id: string; created_at: number; expires_at: number; left: number; made_by: string }
interface Entry { at: number; actor: string; action: string; target: string; detail: unknown }

const CHARTS: [string, [string, string, string][]][] = [
  ["Tokens per second", [["tokens_per_s", "", ""]]],
  ["Answers", [["running", "running", ""], ["queue", "waiting", ""]]],
  ["Latency", [["latency_p50_ms", "median", "ms"], ["latency_p95_ms", "95 %", "ms"]]],
  ["Errors", [["errors", "", ""]]],
];
const charts = CHARTS.map(([title]) => new Chart(title));

const bytes = (value: number) => value >= 1e12 ? `${(value / 1e12).toFixed(1)} TB` : value >= 1e9 ? `${(value / 1e9).toFixed(1)} GB` : `${(value / 1e6).toFixed(1)} MB`;
const lasting = (seconds: number) => seconds >= 86400 ? `${Math.floor(seconds / 86400)} d` : seconds >= 3600 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 60)} min`;

function tile(name: string, value: string, note = ""): HTMLElement {
  return el("div", {}, el("dt", {}, name), el("dd", {}, value, ...(note ? [el("small", { class: "soft" }, note)] : [])));
}

/** Nothing of a database on another machine: its disk is not seen from here. */
function disk({ disk: { used, total, database } }: Status): HTMLElement[] {
  if (used === null || total === null || database === null) return [];
  return [tile("Disk", `${Math.round((100 * used) / total)} %`, `database ${bytes(database)} of ${bytes(total)}`)];
}

async function showNow(): Promise<void> {
  const [status, series] = await Promise.all([api<Status>("GET", "admin/status"), api<Series>("GET", "admin/series")]);
  $("status").replaceChildren(
    ...status.models.map((model) => tile(model.id, model.state, model.context ? `${count(model.context)} tokens of context` : "length of context not known")),
    tile("Answers", `${status.running} running`, `${status.queue} waiting`), tile("Users", count(status.users)),
    ...disk(status), ...(status.unsaved_s === null ? [] : [tile("Unsaved for", `${Math.round(status.unsaved_s)} s`, "the database takes no writes")]),
    tile("Up for", lasting(status.uptime_s), `version ${status.version}`));
  CHARTS.forEach(([, lines], i) => charts[i].draw(series.at,
    lines.map(([key, name, unit]): Line => ({ name, unit, values: series.series[key] ?? [] }))));
}

async function change(user: User, values: Partial<User>): Promise<void> {
  await api("PATCH", `admin/users/${user.id}`, values);
  await showUsers();
}

const tell = (work: Promise<unknown>) => void work.catch((error) => notice((error as Error).message, true));

function userRow(user: User): HTMLElement {
  const role = el("select", { "aria-label": `Role of ${user.name}`, onchange: () => tell(change(user, { role: role.value })) },
    ...["user", "admin"].map((name) => el("option", { selected: name === user.role }, name)));
  const quota = el("input", { type: "number", min: "0", step: "1000", value: user.quota ?? "", placeholder: "none", "aria-label": `Quota of ${user.name}`,
    onchange: () => tell(change(user, { quota: quota.value === "" ? null : Number(quota.value) })) });
  const state = async () => {
    if (!user.disabled && !await confirm(`Disable ${user.name}?`, "All sessions of this user end at once. Conversations are kept.", "Disable")) return;
    await change(user, { disabled: !user.disabled });
    $<HTMLDialogElement>("dialog").close();
  };
  const reset = async () => {
    if (!await confirm(`Reset the password of ${user.name}?`, "The password and all sessions end; a new password is shown once.", "Reset")) return;
    const made = await api<{ password: string }>("POST", `admin/users/${user.id}/reset-password`, {});
    reveal(`New password of ${user.name}`, made.password, "Hand it over; it is not shown again.");
  };
  return el("tr", { class: user.disabled ? "off" : "" }, el("td", {}, user.name), el("td", {}, role), el("td", { class: "right" }, count(user.used)), el("td", {}, quota),
    el("td", {}, when(user.last_seen)), el("td", {}, user.disabled ? "disabled" : "active"),
    el("td", { class: "acts" }, el("button", { type: "button", class: user.disabled ? "" : "danger", onclick: () => tell(state()) }, user.disabled ? "Enable" : "Disable"),
      el("button", { type: "button", onclick: () => tell(reset()) }, "Reset password")));
}

async function showUsers(): Promise<void> {
  const { items } = await api<{ items: User[] }>("GET", "admin/users");
  $("users").querySelector("tbody")!.replaceChildren(...items.map(userRow));
}

async function showInvitations(): Promise<void> {
  const { items } = await api<{ items: Invitation[] }>("GET", "admin/invitations");
  const row = (one: Invitation) => el("tr", {}, el("td", {}, when(one.created_at)), el("td", {}, when(one.expires_at)), el("td", { class: "right" }, String(one.left)), el("td", {}, one.made_by),
    el("td", {}, el("button", { type: "button", class: "danger", onclick: () => tell(api("DELETE", `admin/invitations/${one.id}`).then(showInvitations)) }, "Withdraw")));
  $("invitations").querySelector("tbody")!.replaceChildren(...(items.length ? items.map(row) : [el("tr", {}, el("td", { colSpan: 5, class: "soft" }, "There are no invitations."))]));
}

let next: string | null = null;
async function showAudit(more = false): Promise<void> {
  const page = await api<{ items: Entry[]; next: string | null }>("GET", `admin/audit${more && next ? `?before=${next}` : ""}`);
  next = page.next;
  $("more-audit").hidden = !next;
  const text = (value: unknown) => value === null || value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value);
  const rows = page.items.map((entry) => el("tr", {}, el("td", { title: new Date(entry.at * 1000).toLocaleString() }, when(entry.at)), el("td", {}, text(entry.actor)),
    el("td", {}, text(entry.action)), el("td", {}, text(entry.target)), el("td", {}, text(entry.detail))));
  const body = $("audit").querySelector("tbody")!;
  if (more) body.append(...rows); else body.replaceChildren(...rows);
}

export async function startAdmin(): Promise<void> {
  $("charts").append(...charts.map((chart) => chart.figure));
  $("invite").onclick = () => tell((async () => {
    const { url } = await api<{ url: string }>("POST", "admin/invitations", {});
    reveal("Invitation", new URL(url, location.href).href, "Whoever has this link can register once.");
    await showInvitations();
  })());
  $("more-audit").onclick = () => tell(showAudit(true));
  await Promise.all([showNow(), showUsers(), showInvitations(), showAudit()].map((work) => work.catch((error) => notice(error.message, true))));
  setInterval(() => { if (!document.hidden) void showNow().catch(() => undefined); }, 2000);
}
