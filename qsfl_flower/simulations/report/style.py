"""The page's style: one column on a phone, a grid on a desk, light, dark and print."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f3f4f6; --card: #fff; --text: #1c2128; --soft: #57606a; --line: #d6dbe1;
  --link: #0a5fb4; --good: #116329; --warn: #7a4500; --bad: #a8201a; --bar: #0072b2;
  --shade: rgb(0 0 0 / .22);
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d1117; --card: #161b22; --text: #e6edf3; --soft: #9da7b3; --line: #323a44;
    --link: #7cb7ff; --good: #56d364; --warn: #e3b341; --bad: #ff8a80; --bar: #56b4e9;
    --shade: rgb(255 255 255 / .28);
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 12px; }
header { padding: 8px 4px 4px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; max-width: 72ch; overflow-wrap: anywhere; }
a { color: var(--link); }
nav ul {
  display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .5rem 0; padding: 0; list-style: none;
}
nav a { display: inline-block; padding: .3rem 0; }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px;
  margin: 12px 0;
}
.soft { color: var(--soft); }
.badge {
  display: inline-block; border: 1.5px solid currentColor; border-radius: 99px; padding: 0 .6rem;
  font-size: .85rem; font-weight: 600;
}
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 14px 16px;
  margin: 14px 0 6px;
}
.tiles > div { border-left: 3px solid var(--line); padding-left: 10px; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd {
  margin: 0; font-size: 1.45rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums;
}
.tiles dd + dd { font-size: .85rem; font-weight: 400; color: var(--soft); }
.row {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 14px;
}
figure { margin: 0; max-width: 560px; background: #fff; border-radius: 6px; overflow: hidden; }
figure img { display: block; width: 100%; max-width: 540px; height: auto; margin: 0 auto; }
.scroll {
  overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0;
  background:
    linear-gradient(to right, var(--card) 30%, transparent) left / 40px 100% no-repeat local,
    linear-gradient(to left, var(--card) 30%, transparent) right / 40px 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) left / 14px 100% no-repeat scroll,
    linear-gradient(to left, var(--shade), transparent) right / 14px 100% no-repeat scroll;
}
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td {
  padding: .35rem .6rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line);
}
thead th {
  border-top: 0; color: var(--soft); font-weight: 600; vertical-align: bottom;
}
tbody th {
  position: sticky; left: 0; background: var(--card); font-weight: 600; max-width: 12rem;
  overflow-wrap: break-word;
}
td code { white-space: nowrap; }
td:last-child:not(.number) { min-width: 13rem; overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
thead .number { white-space: normal; }
details { margin: .5rem 0; }
summary { cursor: pointer; padding: .3rem 0; color: var(--link); }
pre {
  margin: 0; padding: 12px; overflow-x: auto; border: 1px solid var(--line); border-radius: 6px;
  font: .85rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
code {
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .9em;
  overflow-wrap: anywhere;
}
.facts { margin: 0; padding-left: 1.2rem; }
.row li { margin: .3rem 0; overflow-wrap: anywhere; }
.note ul { margin: .2rem 0; padding-left: 1.2rem; }
.note { border-left: 4px solid var(--warn); padding: .1rem 0 .1rem .8rem; margin: .9rem 0; }
.note.bad { border-color: var(--bad); color: inherit; }
.spark { display: block; width: 110px; height: 22px; color: var(--bar); }
footer { color: var(--soft); font-size: .85rem; padding: 4px; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media (max-width: 480px) {
  main { padding: 8px; } section { padding: 12px 10px; } th, td { padding: .3rem .45rem; }
  figure { margin: 0 -6px; }
}
@media screen and (prefers-color-scheme: dark) {
  figure { background: none; }
  figure img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}
@media print {
  :root {
    color-scheme: light; --page: #fff; --card: #fff; --text: #000; --soft: #444; --line: #bbb;
    --link: #000; --good: #116329; --warn: #7a4500; --bad: #a8201a; --bar: #0072b2;
  }
  body { font-size: 10pt; } nav { display: none; } main { max-width: none; padding: 0; }
  section { border: 0; padding: 6px 0; }
  .row { grid-template-columns: 1fr 1fr; }
  figure, .tiles, tr { break-inside: avoid; } h2, h3, thead { break-after: avoid; }
  .scroll, pre { overflow: visible; border: 0; background: none; }
  pre { white-space: pre-wrap; padding: 0; }
}
"""
