"""The page's style sheet."""

from __future__ import annotations

__all__ = ["CSS"]

CSS = """
:root { --ink: #1b2330; --muted: #667085; --line: #e4e7ec; --paper: #ffffff; --ground: #f5f6f8; --blue: #2456c8;
        --green: #18794e; --red: #b42318; --amber: #93640a; --track: #edeff3; --warned: #fdf8ec; --noted: #f4f6fb; --code: #f3f4f7;
        --edge: #b9c8ee; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --muted: #98a2b3; --line: #333b4a; --paper: #1a1f29; --ground: #12161e;
        --blue: #7fa2f5; --green: #4cc38a; --red: #f2736a; --amber: #e0ac5a; --track: #2a3140; --warned: #2b2518; --noted: #1f2736;
        --code: #232a37; --edge: #3d538f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;

          font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 36px 28px 56px; }
header .over { color: var(--muted); font-size: 12px; letter-spacing: .09em; text-transform: uppercase; margin: 0; }
h1 { font-size: 27px; line-height: 1.2; margin: 4px 0 10px; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 0 0 4px; }
h3 { font-size: 14px; margin: 18px 0 4px; }
p { margin: 0 0 10px; } .lead { font-size: 16px; max-width: 78ch; } .muted { color: var(--muted); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 20px 24px;
    margin-top: 18px; }
.cards { display: grid; grid-template-columns: 1.35fr 1.35fr 1fr; gap: 18px; margin-top: 18px; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px; }
.card .what { color: var(--muted); font-size: 13px; }
.card .big { font-size: 36px; font-weight: 650; line-height: 1.15; letter-spacing: -.02em;
    font-variant-numeric: tabular-nums; }
.card .big.small { font-size: 24px; line-height: 1.9; } .card.main { border-color: var(--edge); }
.card .ci { font-size: 13px; color: var(--muted); font-variant-numeric: tabular-nums; }
.scale { position: relative; height: 8px; border-radius: 4px; background: var(--track); margin: 12px 0 6px; }
.scale .fill { position: absolute; inset: 0 auto 0 0; border-radius: 4px; opacity: .3; }
.scale .band { position: absolute; top: 0; bottom: 0; border-radius: 4px; opacity: .75; }
.scale .dot { position: absolute; top: -3px; width: 3px; height: 14px; margin-left: -1px; background: var(--ink);
    border-radius: 2px; }
.robust .fill, .robust .band { background: var(--blue); } .clean .fill, .clean .band { background: var(--green); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: 12.5px; }
th, td { padding: 7px 10px 7px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
tr:last-child td, tr:last-child th { border-bottom: 0; } td.n, th.n { text-align: right; padding-right: 18px; white-space: nowrap; }
td.muted { white-space: nowrap; } tr.total td { font-weight: 650; } td .scale { width: 150px; margin: 0; }
.flag { border-left: 4px solid var(--amber); background: var(--warned); border-radius: 0 8px 8px 0; padding: 10px 16px;
    margin-top: 10px; }
.flag.note { border-color: #8da2c8; background: var(--noted); }
.flag .name { font-weight: 650; }
.flag .evidence { color: var(--muted); }
.flag p { margin: 2px 0 0; font-size: 14px; }
.tag { font-size: 11px; letter-spacing: .05em; text-transform: uppercase; color: var(--amber); margin-right: 8px;
    font-weight: 650; }
.note .tag { color: var(--muted); }
.pictures { display: grid; grid-auto-flow: column; grid-template-rows: repeat(var(--lines), auto); margin-top: 8px;
    grid-template-columns: 92px repeat(var(--images), minmax(0, 1fr)); }
.pictures > div { padding: 6px 3px; border-top: 1px solid var(--line); font-size: 12px; line-height: 1.3; text-align: center;
    overflow-wrap: anywhere; }
.pictures > .name { text-align: left; font-weight: 600; color: var(--muted); align-content: center; }
.pictures > .first, .pictures > .name:first-child { border-top: 0; }
.pictures img { width: 96px; max-width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; border-radius: 4px;
    border: 1px solid var(--line); display: block; margin: 3px auto; }
.right { color: var(--green); } .wrong { color: var(--red); font-weight: 600; }
img.plot { width: 100%; height: auto; display: block; margin-top: 6px; }
dl { display: grid; grid-template-columns: 190px 1fr; gap: 5px 14px; margin: 8px 0 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--code); border-radius: 8px; padding: 12px 14px; white-space: pre-wrap; overflow-wrap: anywhere;
    font-size: 13px; margin: 8px 0 0; }
footer { color: var(--muted); font-size: 13px; margin-top: 22px; }
a { color: var(--blue); }
@media (max-width: 760px) { .cards { grid-template-columns: 1fr; } dl { grid-template-columns: 1fr; } dt { margin-top: 6px; } }
@media (max-width: 620px) {
main { padding: 20px 10px 36px; } section, .card { padding: 14px 14px; } h1 { font-size: 22px; overflow-wrap: anywhere; }
.flag { padding: 8px 12px; overflow-wrap: anywhere; }
.figures, .figures tbody, .figures tr { display: block; } .figures tr.head { display: none; }
.figures tr { border-bottom: 1px solid var(--line); padding: 8px 0; } .figures tr:last-child { border-bottom: 0; }
.figures td { display: inline-block; border: 0; padding: 0 12px 0 0; text-align: left; white-space: nowrap; }
.figures td.name { display: block; font-weight: 600; white-space: normal; overflow-wrap: anywhere; padding: 0; }
.figures td.bar { display: block; padding: 5px 0; } .figures td.bar .scale { width: 100%; } .figures td:empty { display: none; }
.figures td.n:not(:empty)::before { content: attr(data-label) " "; color: var(--muted); font-weight: 400; font-size: 12.5px; }
.figures td[data-label=""]::before, .figures td.strong::before { content: none !important; }
.pictures { grid-auto-flow: row; grid-template-rows: none;
    grid-template-columns: minmax(62px, 1.1fr) repeat(calc(var(--lines) - 1), minmax(0, 1fr)); }
.pictures > div { padding: 6px 2px; font-size: 11px; border-top: 1px solid var(--line) !important; }
.pictures > .name { text-align: center; font-size: 9.5px; border-top: 0 !important; overflow-wrap: normal; }
.pictures > .first { text-align: left; align-content: center; }
.pictures img { width: 64px; } }
@media print { body { background: #fff; } section, .card { break-inside: avoid; } }
"""
