"""Curves: numbers over levels, and receiver operating characteristics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from r2m_jax.errors import InputError
from r2m_jax.evaluation.plots.canvas import (
    SOFT,
    checked,
    legend_below,
    limits,
    new_figure,
    series_style,
    set_title,
    styled,
    widest,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VERTICES = 400
"""Of a curve: more cannot be told apart at the size it is shown in."""


@styled
def lines(
    levels: Sequence[float] | Sequence[str],
    series: Mapping[str, Float[np.ndarray, " levels"] | Sequence[float]],
    *,
    title: str,
    x_label: str,
    y_label: str = "AUC",
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    low: float | None = None,
    high: float | None = None,
    reference: float | None = None,
) -> Figure:
    """One curve per series over the levels of a setting (R²M Fig. A.1, robustness); an SVG element.

    Args:
        levels: numbers, or names, which stand at equal distances.
        series: name to one number per level; NaN leaves a gap.
        title: above the figure, and the picture's text for screen readers.
        x_label, y_label: of the axes.
        bands: series to the low and high ends of its intervals.
        low, high: ends of the vertical axis; by default those of the numbers with a margin.
        reference: a value to draw across, such as chance.

    Raises:
        InputError: nothing to draw, a shape does not fit, a number is infinite, or a band is of no series.
    """
    if not series or not len(levels):
        raise InputError("there is no series or no level to draw.")
    values = {name: checked(v, f"numbers of {name}", shape=(len(levels),), missing=True) for name, v in series.items()}
    strangers = sorted(set(bands or {}) - set(series))
    if strangers:
        raise InputError(f"there is a band of {strangers[0]!r} but no such series.")
    ends = {
        name: [checked(end, f"ends of the band of {name}", shape=(len(levels),), missing=True) for end in pair]
        for name, pair in (bands or {}).items()
    }
    worded = isinstance(levels[0], str)
    x = np.arange(len(levels), dtype=np.float64) if worded else checked(levels, "levels")
    figure, axes = new_figure(5.4, 3.6 + 0.25 * _legend_rows(list(series)))
    if reference is not None:
        axes.axhline(reference, color=SOFT, lw=1, ls=(0, (2, 2)), zorder=1)
    for index, (name, numbers) in enumerate(values.items()):
        style = series_style(index)
        if name in ends:
            axes.fill_between(x, ends[name][0], ends[name][1], color=style.colour, alpha=0.16, lw=0, zorder=2)
        axes.plot(
            x, numbers, color=style.colour, ls=style.dashes, marker=style.marker, lw=1.8, ms=6, mec="white", mew=0.6,
            label=name, zorder=3,
        )  # fmt: skip
    shown = [*values.values(), *(end for pair in ends.values() for end in pair)]
    axes.set(ylim=limits(shown, low, high), xlabel=x_label, ylabel=y_label)
    narrow = worded and widest([str(level) for level in levels]) * len(levels) > 4.2
    texts = [str(level) if worded else f"{level:g}" for level in levels]
    if len(levels) <= 12:
        turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if narrow else {}
        axes.set_xticks(x, texts, **turned)
    axes.grid(axis="y")
    set_title(figure, title)
    legend_below(figure, axes)
    return figure


@styled
def roc(
    labels: Int[np.ndarray, " n"] | Sequence[int],
    scores: Mapping[str, Float[np.ndarray, " n"]],
    *,
    title: str,
    least_fpr: float | None = None,
) -> Figure:
    """Receiver operating characteristics, the area under each in the legend; an SVG element.

    Args:
        labels: 0 real, 1 fake.
        scores: model to the score of every image, higher for fake.
        title: above the figure, and the picture's text for screen readers.
        least_fpr: draw the false-positive rate on a logarithmic axis from here, e.g. 1e-3; None for a linear axis.

    Raises:
        InputError: a class is missing, a number of scores is wrong, or a score is NaN or infinite.
    """
    from sklearn.metrics import auc, roc_curve

    labels = np.asarray(labels)
    if set(np.unique(labels)) != {0, 1}:
        raise InputError("a ROC curve needs real (0) and fake (1) images.")
    if least_fpr is not None and not 0 < least_fpr < 1:
        raise InputError(f"least_fpr is {least_fpr:g}; it is a rate between 0 and 1.")
    curves = {}
    for name, values in scores.items():
        fpr, tpr, _ = roc_curve(labels, checked(values, f"scores of {name}", shape=labels.shape))
        curves[f"{name}, AUC {auc(fpr, tpr):.3f}"] = _thinned(fpr, tpr)
    figure, axes = new_figure(5.0, 4.6 + 0.25 * _legend_rows(list(curves)))
    chance = np.linspace(0, 1, 101) if least_fpr is None else np.geomspace(least_fpr, 1, 101)
    axes.plot(chance, chance, color=SOFT, lw=1, ls=(0, (2, 2)))
    for index, (name, (fpr, tpr)) in enumerate(curves.items()):
        style = series_style(index)
        axes.plot(
            fpr, tpr, color=style.colour, ls=style.dashes, lw=1.8, label=name, marker=style.marker, ms=5,
            markevery=(0.05 + 0.02 * index, 0.22), drawstyle="default" if least_fpr is None else "steps-post",
        )  # fmt: skip
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate", ylim=(-0.02, 1.02))
    if least_fpr is None:
        axes.set(xlim=(-0.02, 1.02), aspect="equal")
    else:
        axes.set(xscale="log", xlim=(least_fpr, 1.05))
        decades = [10.0**power for power in range(int(np.ceil(np.log10(least_fpr) - 1e-9)), 1)]
        axes.set_xticks(decades, [f"{decade:g}" for decade in decades])
        axes.set_xticks([], minor=True)
    axes.grid()
    set_title(figure, title)
    legend_below(figure, axes, least=1)
    return figure


def _thinned(fpr: np.ndarray, tpr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``_VERTICES`` vertices of a curve, evenly along it and denser at small false-positive rates."""
    if len(fpr) <= _VERTICES:
        return fpr, tpr
    along = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(np.sqrt(fpr)), np.diff(tpr)))])
    kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], _VERTICES)))
    return fpr[kept], tpr[kept]


def _legend_rows(names: Sequence[str]) -> int:
    return -(-len(names) // max(1, int(5.1 // (widest(names) + 0.62))))
