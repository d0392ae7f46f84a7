"""How a page looks: one style sheet, inline, with system fonts and no reference to anything outside.

Light and dark follow the reader's system, print is always light. The series colours keep a contrast of at least 3:1 to the
background in both, text at least 4.5:1 (a test computes it), and every series has a dash of its own.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f7f7f5; --card: #ffffff; --ink: #1b2126; --muted: #59636d; --rule: #e1e3e6; --axis: #9aa3ab;
  --accent: #0b62a4; --track: #e9ebee; --mark: #59636d; --code: #f1f2f4;
  --series-0: #0b62a4; --series-1: #c04a00; --series-2: #00795c; --series-3: #97467f; --series-4: #846000; --series-5: #4d5a66;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #101417; --card: #181d21; --ink: #e6e9ec; --muted: #9ba6b0; --rule: #2b3238; --axis: #5d6871;
    --accent: #79bdf5; --track: #262d33; --mark: #9ba6b0; --code: #20262b;
    --series-0: #6db7f2; --series-1: #ff9a5c; --series-2: #4fd1a8; --series-3: #e39bd0; --series-4: #e8c25a; --series-5: #b4c0cb;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55; overflow-wrap: break-word;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
.wrap { max-width: 58rem; margin: 0 auto; padding: 2.75rem 1.5rem 4rem; }
h1 { font-size: 2.1rem; line-height: 1.15; letter-spacing: -0.02em; font-weight: 680; margin: 0 0 0.4rem; text-wrap: balance; }
h2 { font-size: 1.3rem; line-height: 1.25; letter-spacing: -0.01em; font-weight: 650; margin: 0 0 0.9rem; text-wrap: balance; }
h3 { font-size: 1rem; margin: 1.6rem 0 0.5rem; }
p { margin: 0 0 0.9rem; max-width: 44rem; }
a { color: var(--accent); text-underline-offset: 0.18em; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 4px; }
.muted { color: var(--muted); }
.subtitle { color: var(--muted); font-size: 1.05rem; margin: 0; }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; top: 1rem; background: var(--card); padding: 0.5rem 0.9rem; z-index: 1; }
nav { margin: 1.4rem 0 0; padding: 0.8rem 0 0; border-top: 1px solid var(--rule); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.3rem; list-style: none; margin: 0; padding: 0; font-size: 0.92rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { margin: 3rem 0 0; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0.9rem; margin: 0 0 1.2rem; }
.tiles > div { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 0.95rem 1.1rem; }
.tiles dt { color: var(--muted); font-size: 0.86rem; }
.tiles dd { margin: 0; }
.tiles .figure { font-size: 1.65rem; font-weight: 650; letter-spacing: -0.02em; line-height: 1.3; }
.tiles .note { color: var(--muted); font-size: 0.84rem; line-height: 1.4; }

.chart, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 1.2rem 1.3rem; margin: 0 0 1.2rem; }
figcaption { font-weight: 620; margin: 0 0 0.7rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; list-style: none; margin: 0 0 0.7rem; padding: 0; font-size: 0.88rem; }
.legend li { display: flex; align-items: center; gap: 0.5rem; }
.axis-name { color: var(--muted); font-size: 0.8rem; margin: 0 0 0.5rem; }
.axis-name.x { text-align: right; margin: 0; padding: 0 1.1rem 0 0; max-width: none; }
.plot { height: 18rem; padding: 0.4rem 1.1rem 1.9rem 3.4rem; }
.canvas, .canvas .stretched { overflow: visible; }
.canvas { display: block; }
.canvas text, .scale text { fill: var(--muted); font-size: 12px; }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--axis); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; vector-effect: non-scaling-stroke; }
.canvas .mark { stroke: var(--mark); stroke-width: 1; stroke-dasharray: 2 4; }
.canvas .mark-name { fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
.series-0 { --hue: var(--series-0); }
.series-1 { --hue: var(--series-1); stroke-dasharray: 8 5; }
.series-2 { --hue: var(--series-2); stroke-dasharray: 1.5 4.5; }
.series-3 { --hue: var(--series-3); stroke-dasharray: 10 4 1.5 4; }
.series-4 { --hue: var(--series-4); stroke-dasharray: 16 5; }
.series-5 { --hue: var(--series-5); stroke-dasharray: 4 4; }
.line { stroke: var(--hue); }
.band { fill: var(--hue); fill-opacity: 0.16; stroke: none; }
.dot { fill: var(--hue, var(--series-0)); stroke: var(--card); stroke-width: 1; stroke-dasharray: none; }

.rows { list-style: none; margin: 0; padding: 0; }
.rows li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0.1rem 1rem; align-items: baseline; padding: 0.4rem 0; }
.rows .label { font-size: 0.94rem; }
.rows .value { font-size: 0.94rem; }
.rows .muted { font-size: 0.84rem; }
.rows .strip, .rows li > .muted { flex-basis: 100%; }
.rows .main .label { font-weight: 650; }
.strip, .scale { display: block; overflow: visible; }
.track { fill: var(--track); }
.bar { fill: var(--series-5); opacity: 0.75; }
.main .bar { fill: var(--series-0); opacity: 1; }
.interval { stroke: var(--series-0); stroke-width: 4; stroke-linecap: round; opacity: 0.45; }
.strip .baseline { stroke: var(--series-1); stroke-width: 2; stroke-dasharray: 3 2; }
p.legend { align-items: center; color: var(--muted); gap: 0.2rem 0.5rem; margin: 0.9rem 0 0; }
.key { display: inline-block; width: 1.6rem; height: 4px; border-radius: 2px; background: var(--series-0); opacity: 0.6; }
.key.baseline { width: 0; height: 1rem; border-left: 2px dashed var(--series-1); background: none; opacity: 1; margin-left: 0.9rem; }

.grid-of-charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1.2rem; margin: 0 0 1.2rem; }
.grid-of-charts .chart { margin: 0; min-width: 0; }
.grid-of-charts .plot { height: 10.5rem; }

.scroll { overflow-x: auto; margin: 0 0 1.2rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem; }
caption { text-align: left; font-weight: 620; padding: 0 0 0.6rem; }
th, td { text-align: left; padding: 0.5rem 0.9rem 0.5rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 560; font-size: 0.86rem; vertical-align: bottom; }
tbody th { font-weight: 400; }
.number, .numbers th, .numbers td { text-align: right; overflow-wrap: normal; white-space: nowrap; }
.numbers { width: auto; font-size: 0.86rem; }
.numbers th, .numbers td { padding: 0.25rem 1.4rem 0.25rem 0; }
details { margin: 0.6rem 0 0; }
section > details { margin-bottom: 1.2rem; }
details > :not(summary) { margin-top: 0.7rem; }
summary { cursor: pointer; color: var(--muted); font-size: 0.88rem; width: fit-content; }
summary:hover { color: var(--ink); }

.facts { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: 0.45rem 1.6rem; margin: 0 0 1.2rem; font-size: 0.95rem; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 1.2rem; }
.text.mono {
  background: var(--code); border-radius: 10px; padding: 0.9rem 1.1rem; font-size: 0.86rem; line-height: 1.5;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
.quote { border-left: 3px solid var(--accent); padding: 0.1rem 0 0.1rem 1.1rem; margin: 0 0 1.2rem; }
.quote .asked { color: var(--muted); white-space: pre-wrap; margin: 0 0 0.25rem; }
.quote .text { margin: 0; }
.quote .note { color: var(--muted); font-size: 0.84rem; margin: 0.3rem 0 0; }
.quote .columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); gap: 0.2rem 1.4rem; }
footer { margin: 3.5rem 0 0; padding: 1rem 0 0; border-top: 1px solid var(--rule); color: var(--muted); font-size: 0.88rem; }

@media (max-width: 34rem) {
  .wrap { padding: 1.6rem 1rem 3rem; }
  h1 { font-size: 1.65rem; }
  section { margin-top: 2.3rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 0.6rem; }
  .tiles > div { padding: 0.75rem 0.85rem; }
  .tiles .figure { font-size: 1.35rem; }
  .chart, .card { padding: 1rem; }
  .plot { height: 14.5rem; padding-left: 2.6rem; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin: 0 0 0.7rem; }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print {
  :root {
    --paper: #ffffff; --card: #ffffff; --ink: #000000; --muted: #474f57; --rule: #d0d4d8; --axis: #8a939b;
    --accent: #0b4a7c; --track: #e9ebee; --mark: #474f57; --code: #f4f5f6;
    --series-0: #0b62a4; --series-1: #c04a00; --series-2: #00795c; --series-3: #97467f; --series-4: #846000; --series-5: #4d5a66;
  }
  @page { margin: 16mm 15mm; }
  body { font-size: 10pt; background: none; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .wrap { max-width: none; padding: 0; }
  h1 { font-size: 20pt; }
  h2 { font-size: 13.5pt; }
  p { max-width: none; orphans: 3; widows: 3; }
  nav, .chart details, .skip { display: none; }
  section { margin-top: 1.6rem; }
  h2, h3, figcaption, caption { break-after: avoid; }
  h2 + p, .tiles { break-before: avoid; }
  .chart, .tiles > div, .quote, tr, .rows li, .facts dd { break-inside: avoid; }
  .chart, .card { padding: 0.8rem 0.9rem; }
  .plot { height: 12rem; }
  .grid-of-charts { grid-template-columns: 1fr 1fr; }
  .grid-of-charts .plot { height: 8rem; }
  .scroll { overflow: visible; }
  thead { display: table-header-group; }
  table, .numbers { font-size: 8.5pt; }
  th, td { padding: 0.3rem 0.5rem 0.3rem 0; white-space: normal; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""
