"""What all figures share: colours and markers, sizes from the text they hold, and the way to SVG."""

from __future__ import annotations

import hashlib
import html
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

import numpy as np

from r2m_jax.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

INK, SOFT, LINE = "#1c2024", "#60646c", "#d9d9e0"
SIZE, SMALL = 10.0, 9.0
"""Points: 13 and 12 CSS pixels; a figure is not shrunk below 0.7 of its size (``report.drawing``)."""

# Okabe and Ito's colours for all kinds of colour vision (https://jfly.uni-koeln.de/color/), less the yellow, which is
# too faint on white, and darkest first. Markers and line styles tell the series apart without colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

_STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": SIZE,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold dollar signs
    "axes.facecolor": "white",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.labelsize": SIZE,
    "axes.titlesize": SIZE + 1,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SIZE,
    "ytick.labelsize": SIZE,
    "legend.frameon": False,
    "legend.fontsize": SIZE,
    "lines.markersize": 6.0,
    "hatch.linewidth": 0.7,
    "figure.facecolor": "white",
    "figure.dpi": 72.0,  # that of SVG, so that a pixel is a point
    "savefig.facecolor": "white",
    "savefig.bbox": None,
    "svg.fonttype": "none",  # text stays text: searchable, scalable
    "svg.hashsalt": "r2m",  # the same file from run to run
}


class Style(NamedTuple):
    """Colour, marker and line style of one series."""

    colour: str
    marker: str
    dashes: Any


def series_style(index: int) -> Style:
    """Style of a figure's ``index``-th series; the first 28 are distinct even in grey."""
    return Style(
        _COLOURS[index % len(_COLOURS)],
        _MARKERS[index % len(_MARKERS)],
        _DASHES[index % len(_DASHES)],
    )


def styled(draw: Callable[P, Figure]) -> Callable[P, str]:
    """Turn a function that draws a figure (keyword ``title``) into one that returns it as the text of an SVG element.

    The reader's own matplotlib settings do not matter, and the same arguments give the same text.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        import matplotlib as mpl

        with mpl.rc_context(_STYLE):
            return _svg(draw(*args, **kwargs), str(kwargs["title"]))

    return drawn


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    # Figures share a page, where an id may occur once only.
    token = hashlib.sha256(f"{title}\n{svg}".encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>r2m-{token}-", svg)
    name = html.escape(title)
    head, rest = svg.split(">", 1)
    return f'{head} role="img" aria-label="{name}">\n <title>{name}</title>{rest}'


def new_figure(width: float, height: float, projection: str | None = None) -> tuple[Figure, Any]:
    """A figure of so many inches, with one pair of axes that leaves room for its labels."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1))
    return figure, figure.add_subplot(projection=projection)


def set_title(figure: Figure, title: str) -> None:
    """The title above everything, wrapped to the figure's width."""
    characters = int(figure.get_size_inches()[0] * 72 / (0.62 * (SIZE + 1)))
    figure.suptitle("\n".join(textwrap.wrap(title, max(characters, 12))), fontsize=SIZE + 1)


def text_width(text: str, size: float = SIZE) -> float:
    """Width of the widest line of a text in inches, in the widest of the fonts it may be shown in."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size)
    lines = text.split("\n")
    return max(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in lines) / 72


def widest(texts: Sequence[str], size: float = SIZE) -> float:
    """Width of the widest of some texts in inches; 0 without any."""
    return max((text_width(text, size) for text in texts), default=0.0)


def wrapped(names: Sequence[str], characters: int = 26) -> list[str]:
    """Long names on several lines of about one length; "α = 0.5" stays together."""

    def wrap(name: str) -> str:
        text = name.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
        lines = textwrap.wrap(text, characters)
        if len(lines) < 2:
            return name
        # The narrowest column that needs no more lines.
        least = max(max(map(len, text.split())), characters // 2)
        fits = (textwrap.wrap(text, width) for width in range(least, characters))
        lines = next((each for each in fits if len(each) <= len(lines)), lines)
        return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")

    return [wrap(name) for name in names]


def runs(groups: Sequence[str]) -> list[tuple[str, int, int]]:
    """Neighbours of one group as (group, first, one past the last)."""
    edges = [0, *(i for i in range(1, len(groups)) if groups[i] != groups[i - 1]), len(groups)]
    return [(groups[a], a, b) for a, b in pairwise(edges) if b > a]


def places(count: int, groups: Sequence[str] | None) -> tuple[np.ndarray, list[tuple[str, float]], float]:
    """Heights of rows that go down, with a line for each group's heading.

    Args:
        count: rows.
        groups: group of every row; None for none.

    Returns:
        The rows' centres [count], (heading, its centre) of every group, and the height of all; a row is 1 high.
    """
    if groups is None:
        return np.arange(count, dtype=np.float64), [], float(count)
    if len(groups) != count:
        raise InputError(f"there are {count} rows and {len(groups)} groups of rows; name the group of every row.")
    centres, headings, below = np.zeros(count), [], -0.5
    for heading, first, last in runs(groups):
        headings.append((heading, below + 0.5))
        centres[first:last] = below + 1.4 + np.arange(last - first)
        below = float(centres[last - 1]) + 0.6
    return centres, headings, below + 0.5


def show_headings(axes: Axes, headings: Sequence[tuple[str, float]]) -> None:
    """Headings of groups of rows, flush with the left edge of the axes."""
    for heading, centre in headings:
        axes.annotate(
            heading, (0, centre), xycoords=("axes fraction", "data"), xytext=(2, 0), textcoords="offset points",
            ha="left", va="center", fontsize=SMALL, color=SOFT, fontstyle="italic", zorder=6,
        )  # fmt: skip


def legend_below(figure: Figure, axes: Axes, *, least: int = 2) -> None:
    """A legend under the axes in as many columns as fit; left out where there is nothing to tell apart."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) < least:
        return
    names = wrapped(names, 34)
    column = widest(names) + 0.62
    columns = int(max(1, min(len(names), (figure.get_size_inches()[0] - 0.3) // column)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=2.6, columnspacing=1.4)


def checked(values: Any, what: str, *, shape: tuple[int, ...] | None = None, missing: bool = False) -> np.ndarray:
    """Numbers that can be drawn, as float64.

    Args:
        values: numbers.
        what: they are, for the message.
        shape: they must have.
        missing: NaN stands for a missing number.

    Raises:
        InputError: they have another shape, or one is infinite or (unless ``missing``) NaN.
    """
    numbers = np.asarray(values, np.float64)
    if shape is not None and numbers.shape != shape:
        raise InputError(f"{what} have the shape {numbers.shape}, not {shape}; give one number for every name.")
    bad = int((np.isinf(numbers) if missing else ~np.isfinite(numbers)).sum())
    if bad:
        raise InputError(f"{bad} of {numbers.size} {what} are {'infinite' if missing else 'NaN or infinite'}.")
    return numbers


def limits(values: Sequence[np.ndarray], low: float | None, high: float | None) -> tuple[float, float]:
    """Ends of an axis that shows all values, with a margin where an end is not given.

    Raises:
        InputError: the ends are in the wrong order, or there is no number to find them from.
    """
    numbers = np.concatenate([np.ravel(v) for v in values]) if values else np.empty(0)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size and (low is None or high is None):
        raise InputError("there is no number to draw; give the limits of the axis or leave the figure out.")
    first = float(numbers.min()) if low is None else low
    last = float(numbers.max()) if high is None else high
    margin = max(0.06 * (last - first), 1e-3 if last == first else 0.0)
    first, last = first - (margin if low is None else 0.0), last + (margin if high is None else 0.0)
    if not first < last:
        raise InputError(f"the axis would go from {first:g} to {last:g}; give limits in rising order.")
    return first, last


def number(value: float, decimals: int = 3, *, signed: bool = False) -> str:
    """A number for a figure: a true minus sign, an en dash for a missing one."""
    if np.isnan(value):
        return "–"
    value = round(float(value), decimals) + 0.0  # no minus before a zero
    return f"{value:{'+' if signed and value else ''}.{decimals}f}".replace("-", "−")
