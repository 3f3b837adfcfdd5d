"""Radar charts: a few models on a few kinds of forgeries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.evaluation.plots.canvas import (
    SMALL,
    SOFT,
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

_STEPS = (0.0025, 0.005, 0.01, 0.02, 0.025, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0)


@styled
def radar(
    spokes: Sequence[str],
    series: Mapping[str, Float[np.ndarray, " spokes"] | Sequence[float]],
    *,
    title: str,
    low: float | None = None,
    high: float = 1.0,
) -> Figure:
    """A closed curve per model over spokes that share one scale (R²M Fig. 7); an SVG element.

    Args:
        spokes: names of at least three, clockwise from the top.
        series: model to its numbers.
        title: above the figure, and the picture's text for screen readers.
        low: at the centre; by default a round number below the smallest. It is written under the chart.
        high: at the rim.

    Raises:
        InputError: fewer than three spokes, a shape does not fit, a number is NaN, infinite or outside the scale.
    """
    if len(spokes) < 3 or not series:
        raise InputError(f"a radar chart needs a model and three spokes, not {len(series)} and {len(spokes)}.")
    values = {name: checked(v, f"numbers of {name}", shape=(len(spokes),)) for name, v in series.items()}
    smallest = min(float(v.min()) for v in values.values())
    if low is None:  # four rings at round numbers, the smallest number outside the innermost half
        reach = max(high - smallest, 1e-3) / 3.5
        step = next((step for step in _STEPS if step >= reach), reach)
        low = high - 4 * step
    low, high = limits(list(values.values()), low, high)
    if smallest < low or max(float(v.max()) for v in values.values()) > high:
        raise InputError(f"a number lies outside of {low:g} to {high:g}; widen the scale of the radar chart.")
    names = wrapped(spokes, 14)
    rows = -(-len(series) // max(1, int(5.2 // (widest(list(series)) + 0.7))))
    figure, axes = new_figure(5.4, 5.0 + 0.26 * rows, "polar")
    angles = np.linspace(0, 2 * np.pi, len(spokes), endpoint=False)
    for index, (name, numbers) in enumerate(values.items()):
        style = series_style(index)
        axes.plot(
            np.append(angles, 0), np.append(numbers, numbers[0]), color=style.colour, ls=style.dashes, lw=1.8,
            marker=style.marker, ms=6, label=name, clip_on=False, zorder=3,
        )  # fmt: skip
    axes.set(theta_offset=np.pi / 2, theta_direction=-1, ylim=(low, high))
    axes.set_xticks(angles, names)
    for angle, label in zip(angles, axes.get_xticklabels(), strict=True):
        side = np.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.2 else "left" if side > 0 else "right")
    rings = np.linspace(low, high, 5)[1:]
    axes.set_yticks(rings, [])
    for ring in rings[:-1]:
        axes.text(
            np.pi / len(spokes), ring, f"{ring:.4g}", fontsize=SMALL, color=SOFT, ha="center", va="center", zorder=4,
            bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.5},
        )  # fmt: skip
    axes.tick_params(axis="x", pad=6)
    axes.spines["polar"].set_color("#c8c8d0")
    axes.set_xlabel(f"centre {low:.4g}, rim {high:.4g}", fontsize=SMALL, color=SOFT, labelpad=10)
    set_title(figure, title)
    legend_below(figure, axes)
    return figure
