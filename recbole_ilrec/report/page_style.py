"""How a page of results looks, on a screen, a telephone, in the dark and on paper; and the script that sorts tables."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1c1e21; --soft: #5b6068; --line: #d9dad6; --raised: #f3f3ef; --link: #1a4f94;
  --warn: #8a4b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --ink: #e7e7e4; --soft: #a2a7ae; --line: #383c42; --raised: #1f2226; --link: #8fbcff;
    --warn: #f0b35a;
    --c-a87400: #e0a83a; --c-8a8a8a: #a3a3a3; --c-1f4e8c: #7fb0f5; --c-c9a227: #e6cb6a; --c-555555: #c4c4c4;
    --c-6f9fd8: #a9cbf5; --c-b8b8b8: #8d8d8d; --c-f4ecd0: #b8ad85; --c-dddddd: #9b9b9b;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
.page { max-width: 86rem; margin: 0 auto; padding: 2rem clamp(1rem, 3vw, 3rem) 4rem; }
header { border-bottom: 2px solid var(--ink); margin-bottom: 2rem; }
h1 { font-size: clamp(1.5rem, 1.1rem + 1.8vw, 2.2rem); line-height: 1.2; margin: 0 0 .4rem; text-wrap: balance; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 .6rem; }
h3 { font-size: 1.08rem; margin: 2.4rem 0 .4rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h1, h2, h3, dd, p, li { overflow-wrap: anywhere; }
p, li, figcaption { max-width: 46rem; }
p { margin: .4rem 0 .8rem; }
a { color: var(--link); text-underline-offset: .15em; }
a:focus-visible, .scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav li { margin: .3rem 0; }
nav ul ul { padding-left: .9rem; font-size: .9em; }
.soft, figcaption, .note { color: var(--soft); font-size: .9rem; line-height: 1.45; }
.warn { color: var(--warn); }
@media (min-width: 72rem) {
  .columns { display: grid; grid-template-columns: 13rem minmax(0, 1fr); gap: 3rem; }
  nav { position: sticky; top: 1.5rem; align-self: start; max-height: calc(100vh - 3rem); overflow: auto; }
  main > section:first-child > h2 { margin-top: 0; }
}
@media (max-width: 71.99rem) {
  nav { background: var(--raised); border-radius: .4rem; padding: .6rem 1rem; }
}
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 24rem; }
th, td { padding: .32rem .75rem; text-align: left; vertical-align: top; white-space: nowrap; }
thead th { font-weight: 600; border-bottom: 1px solid var(--ink); vertical-align: bottom; }
thead th[scope="colgroup"] { text-align: center; border-bottom: 1px solid var(--line); }
tbody th { font-weight: 400; white-space: normal; min-width: 9rem; max-width: 24rem; overflow-wrap: break-word; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody + tbody tr:first-child > * { border-top: 1px solid var(--ink); }
tr.block th { color: var(--soft); font-style: italic; background: var(--raised); }
tr.block span { position: sticky; left: .75rem; display: inline-block; max-width: min(60rem, 100vw - 4rem); }
thead th.number, td.number { text-align: right; }
th[aria-sort] { cursor: pointer; }
th[aria-sort]::after { content: " \\2195"; color: var(--soft); }
th[aria-sort="ascending"]::after { content: " \\2191"; color: inherit; }
th[aria-sort="descending"]::after { content: " \\2193"; color: inherit; }
figure { margin: 1rem 0 1.6rem; }
figcaption { overflow-wrap: anywhere; }
figure svg { display: block; max-width: 100%; height: auto; fill: currentColor; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif !important; }
dl { display: grid; gap: .3rem 1.4rem; margin: .8rem 0; font-size: .92rem; }
dl div { display: grid; grid-template-columns: minmax(6rem, 11rem) minmax(0, 1fr); gap: 1rem; }
dt { color: var(--soft); }
dd { margin: 0; }
code, pre { font: .86em/1.5 ui-monospace, "SF Mono", Consolas, "Liberation Mono", monospace; }
pre {
  background: var(--raised); border: 1px solid var(--line); border-radius: .3rem; padding: .6rem .8rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--link); }
@media (max-width: 40rem) {
  dl div { grid-template-columns: 1fr; gap: 0; }
  dl { gap: .6rem; }
  th, td { padding: .3rem .55rem; }
  tbody th { min-width: 7rem; }
  .drawn { overflow-x: auto; }
  figure svg { min-width: 34rem; max-width: none; }
}
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #333; --line: #bbb; --raised: #fff; --link: #000; }
  body { font-size: 9.5pt; }
  .page { max-width: none; padding: 0; }
  .columns { display: block; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { white-space: normal; padding: .2rem .35rem; }
  svg, tr { break-inside: avoid; }
  h2, h3, figcaption { break-after: avoid; }
  th[aria-sort]::after { content: ""; }
}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const value = (row, at) => {
    const text = row.cells[at].textContent.replaceAll(",", "");
    return Number.isNaN(parseFloat(text)) || /^\\d{4}-/.test(text) ? text : parseFloat(text);
  };
  const sort = (head, at) => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => {
      const [x, y] = [value(a, at), value(b, at)];
      return typeof x === typeof y ? (x > y) - (x < y) : typeof x === "number" ? -1 : 1;
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -1 : 1) * order(a, b));
    table.tBodies[0].append(...rows);
  };
  heads.forEach((head, at) => {
    head.setAttribute("aria-sort", "none");
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(head, at));
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort(head, at));
  });
}
"""
