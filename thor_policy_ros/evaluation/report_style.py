"""The style sheet of a report: light, dark and paper; colours that most people tell apart."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --soft: #57606a; --rule: #d4d9df; --box: #f4f6f8;
  --c0: #0072b2; --c1: #d98200; --c2: #00805d; --c3: #c03b00; --c4: #a8558a; --c5: #2f93c4;
  --well: #12703f; --look: #8a5300; --trouble: #b3261e; --nothing: #57606a; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171a; --ink: #e8eaed; --soft: #a2abb4; --rule: #363c43; --box: #1e2327;
  --c0: #56b4e9; --c1: #f0ab33; --c2: #35c79a; --c3: #ff7d4d; --c4: #dd94bf; --c5: #8fd0f2;
  --well: #1c8a52; --look: #a86a08; --trouble: #cc3b31; --nothing: #68727c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 1100px; background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.15rem; margin: 0 0 .7rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; border-bottom: 1px solid var(--rule); }
p { margin: .4rem 0; } .soft, figcaption, caption { color: var(--soft); }
.verdict { border-radius: 8px; padding: .9rem 1.2rem; color: #fff; }
.verdict.well { background: var(--well); } .verdict.look { background: var(--look); }
.verdict.trouble { background: var(--trouble); } .verdict.nothing { background: var(--nothing); }
.verdict .word { font-size: 1.9rem; font-weight: 700; line-height: 1.2; }
.verdict .head { font-size: 1.1rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: .5rem;
  margin: .8rem 0; }
.tile { background: var(--box); border-radius: 6px; padding: .5rem .7rem; }
.tile b { display: block; font-size: 1rem; } .tile span { color: var(--soft); font-size: .85rem; }
ul.reasons { padding-left: 1.2rem; } ul.reasons li { overflow-wrap: anywhere; margin: .2rem 0; }
.tag { font-weight: 700; } .tag.trouble, .tag.error { color: var(--trouble); }
.tag.look, .tag.warning { color: var(--look); } .tag.stale { color: var(--nothing); }
@media (prefers-color-scheme: dark) { .tag.trouble, .tag.error { color: #ff8a80; }
  .tag.look, .tag.warning { color: #ffc258; } .tag.stale { color: var(--soft); } }
figure { margin: .9rem 0; break-inside: avoid; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 11px; fill: var(--soft); } .end { text-anchor: end; }
.middle { text-anchor: middle; } .start { text-anchor: start; }
.grid { stroke: var(--rule); stroke-width: 1; } .axis { stroke: var(--soft); }
.limit { stroke: var(--c3); stroke-width: 1.4; stroke-dasharray: 6 4; }
.mark { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 2 3; }
polyline { fill: none !important; stroke-width: 1.8; stroke-linejoin: round; }
.c0 { fill: var(--c0); stroke: var(--c0); } .c1 { fill: var(--c1); stroke: var(--c1); }
.c2 { fill: var(--c2); stroke: var(--c2); } .c3 { fill: var(--c3); stroke: var(--c3); }
.c4 { fill: var(--c4); stroke: var(--c4); } .c5 { fill: var(--c5); stroke: var(--c5); }
rect { stroke: none !important; }
.fine { fill: var(--c2); } .warning { fill: var(--c1); } .error { fill: var(--c3); }
.stale { fill: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem;
  color: var(--soft); }
.key { display: inline-block; width: .9rem; height: .7rem; margin-right: .35rem; }
.key.c0 { background: var(--c0); } .key.c1 { background: var(--c1); }
.key.c2, .key.fine { background: var(--c2); } .key.c3, .key.error { background: var(--c3); }
.key.c4 { background: var(--c4); } .key.c5 { background: var(--c5); }
.key.warning { background: var(--c1); } .key.stale { background: var(--soft); }
.key.limit { height: 0; border-top: 2px dashed var(--c3); vertical-align: middle; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0; }
caption { text-align: left; font-weight: 600; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; overflow-wrap: break-word; max-width: 40rem; }
thead th, .tag { white-space: nowrap; } tbody th { font-weight: 400; }
.moments { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1rem; }
.moment { background: var(--box); border-radius: 6px; padding: .7rem .9rem; break-inside: avoid;
  overflow-wrap: anywhere; }
.moment .images { display: flex; flex-wrap: wrap; gap: .5rem; }
.moment figure { margin: .4rem 0; flex: 1 1 40%; max-width: 320px; }
.moment figcaption { font-weight: 400; font-size: .8rem; }
.moment img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --box: #f4f4f4;
    --c0: #0072b2; --c1: #d98200; --c2: #00805d; --c3: #c03b00; --c4: #a8558a; --c5: #2f93c4; }
  body { max-width: none; padding: 0; font-size: 11px; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2 { break-after: avoid; } }
"""
