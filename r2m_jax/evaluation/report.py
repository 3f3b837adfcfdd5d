"""A self-contained HTML page: sections of text, tables and pictures, readable on a phone, light and dark."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --paper: #fff; --line: #d9d9e0; --band: #f4f4f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #edeef0; --soft: #b0b4ba; --paper: #111113; --line: #3a3f42; --band: #1c1d20; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
p, li { max-width: 46rem; } .soft, caption, figcaption { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th[scope=row], thead th:first-child, .group th { text-align: left; font-weight: 500; }
.group th { background: var(--band); color: var(--soft); font-size: .9rem; }
figure { margin: 1rem 0; } figure img, figure svg { max-width: 100%; height: auto; }
figure svg { background: #fff; border-radius: 4px; } pre { overflow-x: auto; background: var(--band); padding: .8rem; }
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


def picture(png: bytes, alt: str, caption: str) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(png).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}">'
    return f"<figure>{scrolling(image)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def drawing(svg: str, caption: str) -> str:
    """An SVG inside the page."""
    return f"<figure>{scrolling(svg)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def preformatted(text: str) -> str:
    """Text as it is, in a fixed-width font."""
    return f"<pre>{html.escape(text)}</pre>"


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    body = "".join(f"<section><h2>{html.escape(s.title)}</h2>{s.body}</section>" for s in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body><main><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{body}</main></body></html>\n"
    )
