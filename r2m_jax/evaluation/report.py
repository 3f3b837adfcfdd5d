"""A self-contained HTML page: sections of text, tables and pictures, readable on a phone, light and dark."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from r2m_jax.evaluation.tables import Table

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --paper: #fff; --line: #d9d9e0; --band: #f4f4f7;
  --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #edeef0; --soft: #b0b4ba; --paper: #111113; --line: #3a3f42; --band: #1c1d20; --link: #70b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
a { color: var(--link); } p, li, figcaption { max-width: 46rem; }
.soft, caption, figcaption { color: var(--soft); font-size: .9rem; }
nav ul { margin: 1rem 0; padding: .6rem 1rem; list-style: none; background: var(--band); border-radius: 4px;
  display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; } nav li { min-width: 0; }
nav a { display: inline-block; padding: .15rem 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; white-space: nowrap; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
td small { display: block; color: var(--soft); font-size: .75rem; line-height: 1.2; }
th[scope=row], thead th:first-child, .group th { text-align: left; font-weight: 500; }
th[scope=row], thead th:first-child { position: sticky; left: 0; background: var(--paper); }
.group th { background: var(--band); color: var(--soft); font-size: .9rem; }
thead th { vertical-align: bottom; } thead button { all: unset; cursor: pointer; white-space: nowrap; }
thead button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
thead button::after { content: "↕"; padding-left: .3em; color: var(--soft); font-size: .8em; }
th[aria-sort=ascending] button::after { content: "▲"; color: var(--ink); }
th[aria-sort=descending] button::after { content: "▼"; color: var(--ink); }
figure { margin: 1rem 0; } figure img, figure svg { max-width: 100%; height: auto; }
figure svg { background: #fff; border-radius: 4px; } pre { overflow-x: auto; background: var(--band); padding: .8rem; }
@media (max-width: 40rem) { th, td { padding: .3rem .45rem; }
  th[scope=row] { white-space: normal; min-width: 6.5rem; max-width: 9rem; line-height: 1.25; } }
@media print { nav { display: none; } .wide { overflow: visible; } }
"""

# Rows are sorted within their group, missing numbers last; the third press brings the order of the page back.
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const bodies = [...table.tBodies].map(body => [body, [...body.rows].filter(row => !row.matches(".group"))]);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const first = head.dataset.first, second = first === "ascending" ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const order = now === "none" ? first : now === first ? second : "none";
      heads.forEach(other => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const text = row => row.cells[column].textContent.trim();
      const value = row => column ? parseFloat(row.cells[column].dataset.value ?? "NaN") : text(row);
      const compare = (a, b) => {
        const x = value(a), y = value(b);
        if (!column) return sign * x.localeCompare(y, undefined, { numeric: true });
        return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
      };
      for (const [body, rows] of bodies) body.append(...(order === "none" ? rows : [...rows].sort(compare)));
    });
  });
}
"""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, as HTML."""

    title: str
    body: str


def paragraphs(texts: Sequence[str]) -> str:
    """Plain sentences, escaped, one paragraph each."""
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)


def bullets(texts: Sequence[str]) -> str:
    """Plain sentences as a list."""
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def scrolling(element: str) -> str:
    """An element that may be wider than a phone scrolls by itself instead of widening the page."""
    return f'<div class="wide" tabindex="0">{element}</div>'


def tabulated(table: Table) -> str:
    """A table with its caption and a link to the scores it was computed from."""
    notes = [html.escape(table.caption)] if table.caption else []
    if table.source:
        link = html.escape(quote(table.source), quote=True)
        notes.append(f'Computed from <a href="{link}">{html.escape(table.source)}</a>.')
    below = f"<figcaption>{' '.join(notes)}</figcaption>" if notes else ""
    return f"<figure>{scrolling(table.html())}{below}</figure>"


def picture(png: bytes, alt: str, caption: str) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(png).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}">'
    return f"<figure>{scrolling(image)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def drawing(svg: str, caption: str) -> str:
    """An SVG inside the page, shrunk to a phone's width as far as its text stays readable, then scrolling."""
    width = re.match(r'<svg [^>]*?\bwidth="([\d.]+)pt"', svg)
    if width:
        pixels = round(float(width.group(1)) * 96 / 72 * 0.7)
        svg = svg.replace("<svg ", f'<svg style="min-width:{pixels}px" ', 1)
    return f"<figure>{scrolling(svg)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def preformatted(text: str) -> str:
    """Text as it is, in a fixed-width font."""
    return f"<pre>{html.escape(text)}</pre>"


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document, with a table of contents from three sections on."""
    names = _anchors([section.title for section in sections])
    body = "".join(
        f'<section id="{name}"><h2>{html.escape(s.title)}</h2>{s.body}</section>'
        for name, s in zip(names, sections, strict=True)
    )
    entries = "".join(
        f'<li><a href="#{name}">{html.escape(s.title)}</a></li>' for name, s in zip(names, sections, strict=True)
    )
    contents = f'<nav aria-label="Contents"><ul>{entries}</ul></nav>' if len(sections) > 2 else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body><main><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{contents}{body}</main>"
        f'<script type="module">{_SCRIPT}</script></body></html>\n'
    )


def _anchors(titles: Sequence[str]) -> list[str]:
    """An id for every section, from its title and unlike the others."""
    found: list[str] = []
    for title in titles:
        base = "section-" + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        name, count = base, 1
        while name in found:
            count += 1
            name = f"{base}-{count}"
        found.append(name)
    return found
