"""Spectra: what is lost by keeping some of a matrix's directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.evaluation.plots.canvas import SOFT, checked, legend_below, new_figure, series_style, set_title, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST = 1e-6
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@styled
def energy_lost(
    shares: Float[np.ndarray, " grid"],
    energies: Mapping[str, Float[np.ndarray, " grid"] | Sequence[float]],
    *,
    title: str,
) -> Figure:
    """Share of the energy that truncation discards, on a logarithmic axis; an SVG element.

    A few directions hold nearly all of a trained matrix, so that what is kept looks the same for all of them.

    Args:
        shares: of the directions kept, largest first, rising from 0 to 1.
        energies: name to the share of Σσ² in them, at every one of ``shares``.
        title: above the figure, and the picture's text for screen readers.

    Raises:
        InputError: nothing to draw, a shape does not fit, or a number is NaN or infinite.
    """
    if not energies:
        raise InputError("there is no spectrum to draw.")
    shares = checked(shares, "shares of directions")
    figure, axes = new_figure(5.4, 3.9)
    for index, (name, kept) in enumerate(energies.items()):
        style = series_style(index)
        lost = np.clip(1 - checked(kept, f"energies of {name}", shape=shares.shape), _LEAST / 10, 1)
        axes.plot(
            shares, lost, color=style.colour, ls=style.dashes, marker=style.marker, lw=1.8, ms=5, mec="white", mew=0.6,
            markevery=(2 * index % 10, 10), label=name, zorder=3,
        )  # fmt: skip
    axes.plot(shares[:-1], 1 - shares[:-1], color=SOFT, lw=1, ls=(0, (2, 2)), label="flat spectrum", zorder=1)
    axes.set(yscale="log", xlim=(0, 1), ylim=(_LEAST, 1.3))
    axes.set(xlabel="share of a matrix's directions kept", ylabel="share of its energy lost")
    powers = range(round(np.log10(_LEAST)), 1)
    axes.set_yticks([10.0**power for power in powers], [f"10{str(power).translate(_RAISED)}" for power in powers])
    axes.set_yticks([], minor=True)
    axes.grid(axis="y")
    set_title(figure, title)
    legend_below(figure, axes)
    return figure
