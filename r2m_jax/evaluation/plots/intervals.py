"""Bars with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.evaluation.plots.canvas import (
    INK,
    SMALL,
    SOFT,
    checked,
    limits,
    new_figure,
    number,
    places,
    set_title,
    show_headings,
    styled,
    widest,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def bars(
    rows: Sequence[str],
    values: Float[np.ndarray, " rows"] | Sequence[float],
    *,
    title: str,
    label: str = "AUC",
    intervals: tuple[Sequence[float], Sequence[float]] | None = None,
    groups: Sequence[str] | None = None,
    start: float = 0.0,
    high: float | None = None,
    reference: float | None = None,
    decimals: int = 3,
) -> Figure:
    """A bar per row with its interval and its number (ablations, comparisons with intervals); an SVG element.

    Args:
        rows: labels, from top to bottom.
        values: lengths; NaN leaves a row empty.
        title: above the figure, and the picture's text for screen readers.
        label: of the axis.
        intervals: low and high ends of every row.
        groups: group of every row; neighbours of one group share a heading.
        start: where the bars begin, e.g. 0.5 for an AUC.
        high: end of the axis; by default that of the numbers with a margin.
        reference: a value to draw across.
        decimals: of the written numbers.

    Raises:
        InputError: the shapes do not fit, a number is infinite, or an interval is upside down.
    """
    numbers = checked(values, "values", shape=(len(rows),), missing=True)
    ends = [checked(end, "ends of intervals", shape=(len(rows),), missing=True) for end in intervals or ()]
    if ends and (ends[0] > ends[1]).any():
        row = rows[int(np.argmax(ends[0] > ends[1]))]
        raise InputError(f"the interval of {row!r} ends below its beginning; give (low, high).")
    y, headings, height = places(len(rows), groups)
    labels = wrapped(rows)
    texts = [number(value, decimals) for value in numbers]
    pitch = 0.29 + 0.1 * max((each.count("\n") for each in labels), default=0)
    figure, axes = new_figure(widest(labels) + widest(texts, SMALL) + 3.2, pitch * height + 0.95)
    axes.barh(y, numbers - start, left=start, height=0.62, color="#8fbfe0", edgecolor="#0072B2", lw=0.8, zorder=2)
    if ends:
        axes.hlines(y, ends[0], ends[1], color=INK, lw=1.4, zorder=4)
        for end in ends:
            axes.plot(end, y, "|", color=INK, ms=7, mew=1.4, zorder=4)
    if reference is not None:
        axes.axvline(reference, color=SOFT, lw=1, ls=(0, (2, 2)), zorder=3)
    shown = [numbers, *ends]
    least = np.nanmin(np.concatenate([np.ravel(v) for v in shown])) if np.isfinite(numbers).any() else start
    left, right = limits([*shown, np.asarray([start])], None if least < start else start, high)
    axes.set(xlim=(left, right), ylim=(height - 0.4, -0.6), xlabel=label)
    axes.axvline(start, color=SOFT, lw=0.8)
    axes.set_yticks(y, labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    edge = axes.secondary_yaxis("right")
    edge.set_yticks(y, texts, fontsize=SMALL)
    edge.tick_params(length=0)
    edge.spines[:].set_visible(False)
    show_headings(axes, headings)
    set_title(figure, title)
    return figure
