"""Distributions side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.evaluation.plots.canvas import (
    INK,
    checked,
    legend_below,
    limits,
    new_figure,
    series_style,
    set_title,
    styled,
    widest,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def violins(
    samples: Mapping[str, Mapping[str, Float[np.ndarray, " _"]]],
    *,
    title: str,
    label: str,
    low: float | None = None,
    high: float | None = None,
) -> Figure:
    """Groups of distributions (R²M Fig. 2: per specialist Real, Own-Fake and Other-Fake); an SVG element.

    A violin is the distribution's outline where there are enough different numbers for one; the bar inside goes from
    the first to the third quartile, the line from the 5th to the 95th percentile, and the marker sits at the mean.

    Args:
        samples: group to kind to its numbers; an empty kind leaves a gap.
        title: above the figure, and the picture's text for screen readers.
        label: of the axis.
        low, high: ends of the axis; by default those of the numbers with a margin.

    Raises:
        InputError: nothing to draw, or a number is NaN or infinite.
    """
    groups = {
        group: {kind: checked(v, f"numbers of {group}, {kind}") for kind, v in kinds.items()}
        for group, kinds in samples.items()
    }
    kinds = list(dict.fromkeys(kind for found in groups.values() for kind in found))
    if not any(v.size for found in groups.values() for v in found.values()):
        raise InputError("there is no number to draw a distribution of.")
    labels = wrapped(list(groups), 16)
    across = max(0.34 * len(kinds) + 0.35, widest(labels) + 0.15)
    figure, axes = new_figure(max(across * len(groups) + 0.9, 4.2), 4.0)
    axes.set_ylim(limits([v for found in groups.values() for v in found.values()], low, high))
    for place, found in enumerate(groups.values()):
        for index, kind in enumerate(kinds):
            numbers = found.get(kind, np.empty(0))
            if numbers.size:
                _one(axes, place + 0.26 * (index - (len(kinds) - 1) / 2), numbers, index)
    for index, kind in enumerate(kinds):
        style = series_style(index)
        axes.plot([], [], style.marker, color=style.colour, mec=INK, mew=0.8, label=kind)
    axes.set_xticks(range(len(groups)), labels)
    axes.set(xlim=(-0.55, len(groups) - 0.45), ylabel=label)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    set_title(figure, title)
    legend_below(figure, axes, least=1)
    return figure


def _one(axes: Any, x: float, numbers: np.ndarray, index: int) -> None:
    style = series_style(index)
    if len(np.unique(numbers)) >= 5:
        parts = axes.violinplot(numbers, positions=[x], widths=0.24, showextrema=False)
        for body in parts["bodies"]:
            body.set(facecolor=style.colour, edgecolor=style.colour, alpha=0.35, linewidth=0.8)
    least, first, third, most = np.quantile(numbers, (0.05, 0.25, 0.75, 0.95))
    axes.vlines(x, least, most, color=style.colour, lw=1.2, zorder=3)
    axes.vlines(x, first, third, color=style.colour, lw=4.5, zorder=3)
    axes.plot(x, numbers.mean(), style.marker, color=style.colour, ms=6.5, mec="white", mew=1.0, zorder=4)
