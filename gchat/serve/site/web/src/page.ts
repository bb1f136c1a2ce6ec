// What all pages have: the theme, logging out, and noticing that a session has ended.
import { api } from "./api.ts";

export function switchTheme(): void {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* kept for this page only */ }
}

export function watchPage(): void {
  document.querySelectorAll("[data-theme-switch]").forEach((node) => node.addEventListener("click", switchTheme));
  document.querySelectorAll("[data-logout]").forEach((node) => node.addEventListener("click", () => {
    void api("POST", "logout", {}).finally(() => location.assign("/login"));
  }));
}

/** Asks now and then whether the session lives; a 401 leads to the login page (api.ts). */
export function watchSession(): void {
  const ask = () => { if (!document.hidden) void api("GET", "me").catch(() => undefined); };
  setInterval(ask, 10_000);
  addEventListener("focus", ask);
}

/** The page to go to after logging in: one of this site, whatever the address says. */
export function nextPage(): string {
  const wanted = new URLSearchParams(location.search).get("next") ?? "/";
  const url = new URL(wanted, location.origin);
  return url.origin === location.origin && /^\/(?![/\\])/.test(wanted) ? url.pathname : "/";
}
