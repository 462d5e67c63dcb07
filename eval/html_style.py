"""The style sheet of report.html: system fonts, light or dark as the reader's system is."""

CSS = """
:root { color-scheme: light dark; --page: #fbfbf9; --card: #ffffff; --ink: #1c1d1f; --muted: #64676d; --line: #e3e3de;
  --c1: #2459c2; --c2: #c4501b; --c3: #12805f; --good: #12805f; --bad: #b3261e; --shade: #b3261e1f; --well: #f3f3ef; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16171a; --card: #1e2024; --ink: #e8e8e6; --muted: #9b9fa7; --line: #33363c;
    --c1: #7ba5f7; --c2: #f0935f; --c3: #57c7a1; --good: #57c7a1; --bad: #f28b82; --shade: #f28b8226; --well: #26282d; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .8rem; font-size: 1.25rem; }
h3 { margin: 0; font-size: .95rem; }
p { margin: .4rem 0; max-width: 46rem; }
.muted, figcaption, dt, th { color: var(--muted); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1.5rem 0 0; }
.tiles div { padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
.tiles dt { font-size: .82rem; }
.tiles dd { margin: .1rem 0 0; font-size: 1.5rem; font-weight: 600; line-height: 1.3; }
.tiles dd small { display: block; font-size: .82rem; font-weight: 400; color: var(--muted); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: .75rem; }
figure { margin: 0; padding: .9rem 1rem .5rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }
figcaption { font-size: .82rem; }
.key { margin-right: .9rem; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: .9rem; height: .2rem; margin-right: .35rem;
  vertical-align: middle; border-radius: 1px; background: var(--ink); }
.key.c1::before { background: var(--c1); } .key.c2::before { background: var(--c2); }
.key.c3::before { background: var(--c3); }
svg { display: block; width: 100%; height: auto; margin-top: .4rem; }
svg text { fill: var(--muted); font-size: 11px; }
svg .y { text-anchor: end; } svg .x { text-anchor: middle; }
svg .grid { stroke: var(--line); } svg .divider { stroke: var(--muted); stroke-dasharray: 2 3; }
svg .shade { fill: var(--shade); }
svg polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
svg .interval { stroke-width: 1.4; opacity: .55; }
svg .c1 { stroke: var(--c1); } svg circle.c1 { fill: var(--c1); }
svg .c2 { stroke: var(--c2); } svg circle.c2 { fill: var(--c2); }
svg .c3 { stroke: var(--c3); } svg circle.c3 { fill: var(--c3); }
svg .ink { stroke: var(--ink); } svg circle.ink { fill: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 500; white-space: nowrap; }
.numbers th + th, .numbers td + td { text-align: right; white-space: nowrap; }
.bar { display: flex; height: 1.5rem; margin: .3rem 0 .9rem; border-radius: .25rem; overflow: hidden;
  max-width: 46rem; }
.bar span { overflow: hidden; padding: 0 .4rem; font-size: .75rem; line-height: 1.5rem; white-space: nowrap;
  color: var(--page); background: var(--c1); border-right: 2px solid var(--page); }
.bar span:nth-child(even) { background: var(--c3); } .bar .rest { background: var(--muted); }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
summary { padding: .55rem 1rem; cursor: pointer; font-weight: 500; }
details > .inside { padding: 0 1rem 1rem; }
.pair + .pair { margin-top: 1.5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.sides > div { min-width: 0; }
.verdict { display: flex; flex-wrap: wrap; gap: .2rem 1rem; align-items: baseline; margin-bottom: .4rem;
  font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .bad { color: var(--bad); }
pre { margin: .3rem 0; padding: .7rem .9rem; background: var(--well); border-radius: .35rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre.judged { color: var(--muted); background: none; border-left: 3px solid var(--line); border-radius: 0;
  max-height: 16rem; overflow-y: auto; }
pre .tag { color: var(--c1); }
.label { margin: .6rem 0 0; font-size: .8rem; color: var(--muted); }
footer { margin-top: 3rem; font-size: .85rem; color: var(--muted); }
""".strip()
