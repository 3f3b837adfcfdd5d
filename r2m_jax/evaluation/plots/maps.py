"""Heat maps: numbers in coloured cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.evaluation.plots.canvas import (
    SMALL,
    SOFT,
    checked,
    new_figure,
    number,
    places,
    runs,
    set_title,
    show_headings,
    styled,
    text_width,
    widest,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _GAP = 0.32, 0.16  # inches; and the gap between groups of columns, in columns


@styled
def heat_map(
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    low: float | None = None,
    high: float | None = None,
    better: Literal["higher", "lower"] | None = None,
    row_groups: Sequence[str] | None = None,
    column_groups: Sequence[str] | None = None,
    decimals: int = 3,
) -> Figure:
    """Numbers as coloured cells with the number written in each (R²M Fig. 4); an SVG element.

    Args:
        values: one number per cell; NaN leaves a hatched cell with a dash.
        rows, columns: labels.
        title: above the figure, and the picture's text for screen readers.
        low, high: ends of the colour scale; by default those of the values.
        better: for differences such as DROP and GAIN: a scale of two colours around 0, blue on the side named here and
            orange on the other, with signed numbers. Without it the scale is viridis, which stays ordered in grey.
        row_groups, column_groups: group of every row and column; neighbours of one group share a heading.
        decimals: of the numbers.

    Raises:
        InputError: the shapes do not fit, a number is infinite, or the scale has no extent.
    """
    import matplotlib as mpl
    from matplotlib.patches import Rectangle

    values = checked(values, "values", shape=(len(rows), len(columns)), missing=True)
    mappable = _scale(values, low, high, better)
    cells = [[number(v, decimals, signed=better is not None) for v in row] for row in values]
    y, headings, height = places(len(rows), row_groups)
    x, spans = _across(len(columns), column_groups)

    names = wrapped(rows)
    width = max(0.62, widest([text for row in cells for text in row], SMALL) + 0.2)
    heads = ["\n".join(name.split(" ")) if text_width(name, SMALL) > width else name for name in columns]
    turned = widest(heads, SMALL) > width - 0.06
    heads = list(columns) if turned else heads
    extent = float(x[-1] + 1) if len(x) else 1.0
    for span, first, last in spans:
        width = max(width, (text_width(span, SMALL) + 0.1) / (last - first + 1))
    deep = 0.75 * widest(heads, SMALL) if turned else 0.2 * max((head.count("\n") + 1 for head in heads), default=0)
    pitch = _ROW + 0.1 * max((name.count("\n") for name in names), default=0)
    figure, axes = new_figure(
        max(widest(names) + width * extent + 1.1, 3.2), pitch * height + deep + 0.85 + 0.25 * bool(spans)
    )
    for row, column in np.ndindex(*values.shape):
        value, across, down = values[row, column], float(x[column]), float(y[row])
        corner = (across - 0.48, down - 0.47)
        if np.isnan(value):
            axes.add_patch(Rectangle(corner, 0.96, 0.94, facecolor="#f4f4f7", edgecolor="#c8c8d0", hatch="////", lw=0))
            ink = SOFT
        else:
            colour = mappable.to_rgba(value)
            axes.add_patch(Rectangle(corner, 0.96, 0.94, facecolor=colour, lw=0))
            ink = "white" if _luminance(colour) < 0.18 else "black"
        axes.text(across, down, cells[row][column], ha="center", va="center", fontsize=SMALL, color=ink)
    axes.set(xlim=(-0.52, extent - 0.48), ylim=(height - 0.48, -0.52))
    axes.set_yticks(y, names)
    axes.set_xticks(x, heads, fontsize=SMALL)
    if turned:
        axes.tick_params(axis="x", rotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _span_headings(axes, spans)
    show_headings(axes, headings)
    set_title(figure, title)
    bar = figure.colorbar(mappable, ax=axes, fraction=0.05, aspect=max(8.0, 2.2 * height), pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL)
    bar.ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
    if bar.solids is not None:
        bar.solids.set_rasterized(True)  # one small picture instead of 256 shapes
    return figure


def _scale(values: np.ndarray, low: float | None, high: float | None, better: str | None) -> Any:
    import matplotlib as mpl

    numbers = values[np.isfinite(values)]
    if not numbers.size and (low is None or high is None):
        raise InputError("every cell is missing, so there is no scale; give low and high or leave the figure out.")
    if better is not None:
        ends = [abs(end) for end in (low, high) if end is not None]
        reach = max(ends, default=0.0) or float(np.abs(numbers).max(initial=0.0)) or 1e-3
        norm = mpl.colors.Normalize(-reach, reach)
        return mpl.cm.ScalarMappable(norm, "PuOr" if better == "higher" else "PuOr_r")
    low = float(numbers.min()) if low is None else low
    high = max(float(numbers.max()), low + 1e-3) if high is None else high
    if not low < high:
        raise InputError(f"the colour scale would go from {low:g} to {high:g}; give low and high in rising order.")
    return mpl.cm.ScalarMappable(mpl.colors.Normalize(low, high), "viridis")


def _across(count: int, groups: Sequence[str] | None) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    if groups is None:
        return np.arange(count, dtype=np.float64), []
    if len(groups) != count:
        raise InputError(f"there are {count} columns and {len(groups)} groups of columns; name the group of each.")
    x, spans = np.arange(count, dtype=np.float64), []
    for place, (name, first, last) in enumerate(runs(groups)):
        x[first:last] += _GAP * place
        spans.append((name, float(x[first]), float(x[last - 1])))
    return x, spans


def _span_headings(axes: Axes, spans: Sequence[tuple[str, float, float]]) -> None:
    for name, first, last in spans:
        axes.plot(
            [first - 0.46, last + 0.46], [1.0, 1.0], transform=axes.get_xaxis_transform(), color=SOFT, lw=1,
            clip_on=False,
        )  # fmt: skip
        axes.annotate(
            name, ((first + last) / 2, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 4),
            textcoords="offset points", ha="center", va="bottom", fontsize=SMALL, color=SOFT, fontstyle="italic",
        )  # fmt: skip


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance of WCAG 2 (https://www.w3.org/TR/WCAG22/#dfn-relative-luminance); text turns at 0.18."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
