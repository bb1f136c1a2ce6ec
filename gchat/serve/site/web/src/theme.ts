// Runs before the page is painted, so that a dark page never flashes white.
const kept = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
