// Begins the page that the server named.
import { startAdmin } from "./admin.ts";
import { api } from "./api.ts";
import { Chat } from "./chat.ts";
import { notice } from "./dom.ts";
import { formOf } from "./forms.ts";
import { watchCopyButtons } from "./message.ts";
import { nextPage, watchPage, watchSession } from "./page.ts";
import { startSettings } from "./settings.ts";

function door(path: "login" | "register"): void {
  const form = document.getElementById(path) as HTMLFormElement | null;
  if (!form) return;
  const invitation = form.elements.namedItem("invitation") as HTMLInputElement | null;
  if (invitation) invitation.value = new URLSearchParams(location.search).get("invitation") ?? "";
  formOf(form, async (values) => {
    await api("POST", path, values);
    location.assign(nextPage());
  });
}

const PAGES: Record<string, () => unknown> = {
  chat: () => new Chat().start(),
  login: () => door("login"),
  register: () => door("register"),
  settings: startSettings,
  admin: startAdmin,
};

const page = document.body.dataset.page ?? "";
watchPage();
watchCopyButtons();
if (["chat", "settings", "admin"].includes(page)) watchSession();
void Promise.resolve(PAGES[page]?.()).catch((error) => notice((error as Error).message, true));
