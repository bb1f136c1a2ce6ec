// The page of settings: defaults, import, API keys, password.
import { api } from "./api.ts";
import { $, count, el, notice, when } from "./dom.ts";
import { formOf, numbers } from "./forms.ts";
import { confirm, reveal } from "./options.ts";
import type { Me, Model } from "./types.ts";

interface Key { id: string; name: string; created_at: number; last_used?: number | null }
const NUMBERS = ["temperature", "top_p", "max_tokens"];

async function showKeys(): Promise<void> {
  const { items } = await api<{ items: Key[] }>("GET", "keys");
  const rows = items.map((key) => el("tr", {}, el("td", {}, key.name), el("td", {}, when(key.created_at)), el("td", {}, when(key.last_used)),
    el("td", {}, el("button", { type: "button", class: "danger", onclick: () => void drop(key) }, "Revoke"))));
  $("keys").querySelector("tbody")!.replaceChildren(...(rows.length ? rows : [el("tr", {}, el("td", { colSpan: 4, class: "soft" }, "You have no keys."))]));
}

async function drop(key: Key): Promise<void> {
  if (!await confirm("Revoke this key?", `Programs that use “${key.name}” are refused from now on.`, "Revoke")) return;
  await api("DELETE", `keys/${key.id}`).catch((error) => notice(error.message, true));
  await showKeys();
}

export async function startSettings(): Promise<void> {
  const form = (id: string) => document.getElementById(id) as HTMLFormElement | null;
  const defaults = form("defaults")!;
  formOf(defaults, async (values) => {
    await api("PATCH", "me", { settings: { default_model: values.default_model || null, system: values.system, sampling: numbers(values, NUMBERS) } });
    notice("Saved");
  });
  formOf(form("import")!, async () => {
    const file = (defaults.ownerDocument.querySelector("#import input") as HTMLInputElement).files![0];
    let data: unknown;
    try { data = JSON.parse(await file.text()); } catch { throw new Error(`${file.name} is not JSON: choose a file that was exported here.`); }
    location.assign(`/c/${(await api<{ id: string }>("POST", "import", data)).id}`);
  });
  formOf(form("new-key")!, async (values) => {
    const made = await api<{ key: string }>("POST", "keys", { name: values.name });
    form("new-key")!.reset();
    reveal(`Key “${values.name}”`, made.key, "Copy it now: it is not shown again.");
    await showKeys();
  });
  const password = form("password");
  if (password) {
    formOf(password, async (values) => {
      await api("POST", "password", { old: values.old, new: values.new });
      location.reload(); // the session and its token are new
    });
    $("everywhere").onclick = async () => {
      if (!await confirm("Log out everywhere?", "All your sessions end, this one too.", "Log out everywhere")) return;
      await api("POST", "logout-everywhere", {}).catch((error) => notice(error.message, true));
      location.assign("/login");
    };
  }
  const [me, models] = await Promise.all([api<Me>("GET", "me"), api<Model[] | { items: Model[] }>("GET", "models")]);
  const select = defaults.elements.namedItem("default_model") as HTMLSelectElement;
  select.append(...(Array.isArray(models) ? models : models.items).map((model) => el("option", { value: model.id }, model.id)));
  select.value = me.settings.default_model ?? "";
  (defaults.elements.namedItem("system") as HTMLTextAreaElement).value = me.settings.system ?? "";
  for (const name of NUMBERS)
    (defaults.elements.namedItem(name) as HTMLInputElement).value = String((me.settings.sampling as Record<string, number> | undefined)?.[name] ?? "");
  const quota = document.getElementById("quota");
  if (quota && me.quota) quota.textContent = `${count(me.used ?? 0)} of ${count(me.quota)} tokens are used.`;
  await showKeys();
}
