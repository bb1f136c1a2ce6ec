// Builds static/ from src/: `npm ci && npm run build`. The first line of what is made carries a hash
// of its sources, by which a test tells a build that was forgotten.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { build } from "esbuild";

const hash = createHash("sha256");
for (const name of readdirSync("src").sort()) hash.update(name + "\0").update(readFileSync(`src/${name}`)).update("\0");
const banner = `/* built from src/ ${hash.digest("hex").slice(0, 16)} */`;

await build({
  entryPoints: ["src/app.ts", "src/theme.ts", "src/app.css"],
  outdir: "static",
  bundle: true,
  minify: true,
  format: "iife",
  target: ["es2022", "chrome111", "firefox128", "safari16.4"],
  banner: { js: banner, css: banner },
  legalComments: "none",
  logLevel: "warning",
});
