"""Contours of a number over a plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.evaluation.plots.canvas import INK, SMALL, checked, new_figure, set_title, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def contours(
    axis: Float[np.ndarray, " grid"],
    values: Float[np.ndarray, "grid grid"],
    *,
    title: str,
    label: str,
    low: float | None = None,
    high: float | None = None,
    levels: int = 16,
) -> Figure:
    """Filled contours on a square with a cross in its middle (CoRIT Fig. 7); an SVG element.

    Args:
        axis: coordinates along both axes.
        values: first axis upwards.
        title: above the figure, and the picture's text for screen readers.
        label: of the colours.
        low, high: ends of the colour scale; those of the values by default. Figures to be compared share them.
        levels: bands of colour.

    Raises:
        InputError: a shape does not fit, a number is NaN or infinite, or the scale has no extent.
    """
    axis = checked(axis, "coordinates")
    values = checked(values, "values", shape=(len(axis), len(axis)))
    first = float(values.min()) if low is None else low
    last = float(values.max()) if high is None else high
    if not first <= last:
        raise InputError(f"the colour scale would go from {first:g} to {last:g}; give low and high in rising order.")
    bands = np.linspace(first, max(last, first + 1e-6), levels + 1)
    figure, axes = new_figure(4.6, 3.9)
    filled = axes.contourf(axis, axis, values, levels=bands, cmap="viridis", extend="both")
    axes.plot(0, 0, marker="+", ms=10, mew=1.6, color="white", zorder=3)
    axes.set(aspect="equal", xlabel="second direction", ylabel="first direction")
    bar = figure.colorbar(filled, ax=axes, fraction=0.05, pad=0.03)
    bar.set_label(label, color=INK, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
    set_title(figure, title)
    return figure
