"""Dumbbells: two numbers of every row, joined by a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from r2m_jax.evaluation.plots.canvas import (
    SMALL,
    SOFT,
    checked,
    legend_below,
    limits,
    new_figure,
    number,
    places,
    series_style,
    set_title,
    show_headings,
    styled,
    widest,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def dumbbell(
    rows: Sequence[str],
    first: Float[np.ndarray, " rows"] | Sequence[float],
    second: Float[np.ndarray, " rows"] | Sequence[float],
    *,
    title: str,
    names: tuple[str, str],
    label: str = "AUC",
    groups: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    decimals: int = 3,
) -> Figure:
    """How every row moves from one setting to another (R²M Fig. 6: N = 3 to N = 6); an SVG element.

    Circle and square mark the two settings; the change, second minus first, is written at the right edge.

    Args:
        rows: labels, from top to bottom.
        first, second: numbers of the two settings; NaN where a row has none.
        title: above the figure, and the picture's text for screen readers.
        names: of the two settings.
        label: of the axis.
        groups: group of every row; neighbours of one group share a heading.
        low, high: ends of the axis; by default those of the numbers with a margin.
        decimals: of the written changes.

    Raises:
        InputError: the shapes do not fit, a number is infinite, or none is given.
    """
    a = checked(first, f"numbers of {names[0]}", shape=(len(rows),), missing=True)
    b = checked(second, f"numbers of {names[1]}", shape=(len(rows),), missing=True)
    y, headings, height = places(len(rows), groups)
    labels = wrapped(rows)
    changes = [number(change, decimals, signed=True) for change in b - a]
    left, right = widest(labels), widest([*changes, "change"], SMALL)
    pitch = 0.27 + 0.12 * max((each.count("\n") for each in labels), default=0)
    figure, axes = new_figure(left + right + 3.2, pitch * (height + 1) + 1.25)
    axes.hlines(y, np.fmin(a, b), np.fmax(a, b), color="#a0a4ac", lw=2.5, zorder=2)
    # Where both are in one place, the circle shows through the square.
    axes.plot(a, y, "o", color=series_style(0).colour, ms=6, label=names[0], zorder=3)
    axes.plot(b, y, "s", color=series_style(1).colour, ms=8, mfc="none", mew=1.8, label=names[1], zorder=4)
    axes.set(xlim=limits([a, b], low, high), ylim=(height - 0.4, -1.5), xlabel=label)
    axes.set_yticks(y, labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    edge = axes.secondary_yaxis("right")
    edge.set_yticks([-1.0, *y], ["change", *changes], fontsize=SMALL)
    edge.tick_params(length=0, labelcolor=SOFT)
    edge.spines[:].set_visible(False)
    show_headings(axes, headings)
    set_title(figure, title)
    legend_below(figure, axes)
    return figure
