// Builds src/ into one file, src/paragator/report/built/page.html: script and style inline, allowed by their hashes alone.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, mkdirSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const here = new URL(".", import.meta.url).pathname;
const hash = (text) => createHash("sha256").update(text).digest("base64");
const bundled = async (entry, options) => {
  const { outputFiles } = await build({
    entryPoints: [here + entry], bundle: true, minify: true, write: false, charset: "utf8", legalComments: "none",
    target: "es2022", ...options,
  });
  return outputFiles[0].text.trim();
};
const script = (await bundled("src/main.tsx", { format: "iife", jsx: "automatic", jsxImportSource: "preact" }))
  .replaceAll("</script", "<\\/script").replaceAll("<!--", "<\\!--");
const style = await bundled("src/style.css", {});
const policy = [
  "default-src 'none'", `script-src 'sha256-${hash(script)}'`, `style-src 'sha256-${hash(style)}'`,
  "connect-src 'self'", "base-uri 'none'", "form-action 'none'",
].join("; ");
// What the page was built from; tests/unit/test_page.py computes it again.
const sources = ["build.mjs", "package-lock.json", "tsconfig.json", ...readdirSync(here + "src").sort().map((f) => "src/" + f)];
const digest = createHash("sha256");
for (const name of sources) digest.update(name).update("\0").update(readFileSync(here + name)).update("\0");
const html = `<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="built-from" content="${digest.digest("hex")}">
<title>paragator</title>
<style>${style}</style></head>
<body><div id="app"><noscript>This page needs JavaScript, which is in the file itself.</noscript></div>
<script type="application/json" id="data">{}</script>
<script>${script}</script>
</body></html>
`;
const out = here + "../src/paragator/report/built/";
mkdirSync(out, { recursive: true });
writeFileSync(out + "page.html", html);
console.log(`src/paragator/report/built/page.html: ${(html.length / 1024).toFixed(0)} KB`);
