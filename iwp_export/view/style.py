"""The style sheet of every page: light and dark, readable at 360 pixels, printable."""

from __future__ import annotations

from iwp_export.view.svg import PALETTE

DARK_PALETTE = ("#6cb8f0", "#ff9a5c", "#3cc9a0", "#e79bcb", "#e0b44c", "#9aa4b2")
"""The charts' colours on a dark page, in the order of `PALETTE`."""


def _variables(palette: tuple[str, ...]) -> str:
    return " ".join(f"--c{number}: {colour};" for number, colour in enumerate(palette))


LIGHT = f"--ink: #1b1f24; --quiet: #5b6470; --line: #d5dae0; --wash: #f3f5f7; --paper: #fff; {_variables(PALETTE)}"
DARK = (
    f"--ink: #e8ebef; --quiet: #a3adba; --line: #39424e; --wash: #1c222a; --paper: #12161b; {_variables(DARK_PALETTE)}"
)

CSS = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
* {{ box-sizing: border-box; }}
html {{ background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%; }}
body {{ margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 62rem; overflow-wrap: anywhere;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }}
h1, h2, h3 {{ line-height: 1.25; text-wrap: balance; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .25rem; }}
h2 {{ font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }}
h3 {{ font-size: 1.05rem; margin: 1.75rem 0 .5rem; }}
p, ul {{ margin: .5rem 0; max-width: 44rem; }}
.quiet, figcaption {{ color: var(--quiet); font-size: .9rem; }}
.verdict {{ margin: 1rem 0; padding: .85rem 1rem; background: var(--wash); border-left: .3rem solid var(--c0); }}
.verdict p {{ margin: .35rem 0; }}
.verdict p:first-child {{ font-size: 1.15rem; font-weight: 600; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; min-width: 3.5rem; max-width: 24rem; overflow-wrap: break-word; }}
th {{ font-weight: 600; vertical-align: bottom; }}
tbody th {{ font-weight: inherit; vertical-align: top; }}
td.number, th.number {{ text-align: right; }}
.number {{ white-space: nowrap; }}
tr.strong {{ background: var(--wash); font-weight: 600; }}
tr > :first-child {{ padding-left: .5rem; }}
dl {{ display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .3rem 1rem; margin: .75rem 0; }}
dt {{ color: var(--quiet); }}
dd {{ margin: 0; min-width: 0; justify-self: start; max-width: 100%;
  white-space: pre-wrap; max-height: 14rem; overflow-y: auto; }}
code, pre {{ font: .88rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
pre {{ background: var(--wash); padding: .7rem .9rem; white-space: pre-wrap; }}
figure {{ margin: 1rem 0; }}
figcaption {{ max-width: 44rem; margin: .35rem 0; }}
svg.chart {{ display: block; width: 100%; max-width: 34rem; height: auto; }}
img {{ display: block; max-width: 100%; height: auto; }}
.beside {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }}
.beside > * {{ margin: 0; min-width: 0; }}
details {{ margin: .75rem 0; }}
summary {{ cursor: pointer; padding: .3rem 0; }}
:focus-visible {{ outline: 2px solid var(--c0); outline-offset: 2px; }}
@media print {{
  :root {{ color-scheme: light; {LIGHT} }}
  body {{ max-width: none; padding: 0; font-size: 10pt; }}
  .scroll, dd {{ overflow: visible; max-height: none; }}
  figure, tr, .verdict {{ break-inside: avoid; }}
  figure:has(table) {{ break-inside: auto; }}
  img {{ max-height: 9cm; width: auto; }}
  h2, h3 {{ break-after: avoid; }}
  details::details-content {{ content-visibility: visible; block-size: auto; }}
}}
"""
