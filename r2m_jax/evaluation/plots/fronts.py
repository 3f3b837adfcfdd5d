"""The trade between two numbers of models: retention and transfer, size and score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.evaluation.plots.canvas import (
    SMALL,
    SOFT,
    checked,
    limits,
    new_figure,
    series_style,
    set_title,
    styled,
    wrapped,
)
from r2m_jax.evaluation.retention import non_dominated

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def pareto(
    names: Sequence[str],
    drops: Float[np.ndarray, " n"] | Sequence[float],
    gains: Float[np.ndarray, " n"] | Sequence[float],
    *,
    title: str,
    labels: tuple[str, str] = ("mean DROP (lower is better)", "mean GAIN (higher is better)"),
    log_x: bool = False,
) -> Figure:
    """Loss on the seen against gain on the unseen, one point per model (R²M Fig. 5); an SVG element.

    Models that no other beats in both are filled and joined by the front's steps, the others are hollow.

    Args:
        names: of the models.
        drops: horizontal, smaller is better.
        gains: vertical, larger is better.
        title: above the figure, and the picture's text for screen readers.
        labels: of the axes.
        log_x: a logarithmic horizontal axis, for sizes and times.

    Raises:
        InputError: the shapes do not fit, a number is NaN or infinite, or one on a logarithmic axis is not positive.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    x = checked(drops, "drops", shape=(len(names),))
    y = checked(gains, "gains", shape=(len(names),))
    if log_x and (x <= 0).any():
        raise InputError(
            f"{labels[0]} of {names[int(np.argmin(x))]} is {x.min():g}; a logarithmic axis takes none of it."
        )
    front = non_dominated(x, y)
    figure, axes = new_figure(5.8, 4.9)
    bottom, top = limits([y], None, None)
    tall = 0.06 * (top - bottom)
    if log_x:
        left, right = x.min() * (x.min() / x.max()) ** 0.15 / 1.3, x.max() * (x.max() / x.min()) ** 0.15 * 1.3
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        left, right = limits([x], None, None)
        left, right = left - 0.12 * (right - left), right + 0.12 * (right - left)
    axes.set(xlim=(left, right), ylim=(bottom - tall, top + tall), xlabel=labels[0], ylabel=labels[1])
    axes.grid()
    order = np.flatnonzero(front)[np.lexsort((y[front], x[front]))]
    # What the front dominates lies to the right of it and below.
    steps_x = np.concatenate([x[order], [right]])
    steps_y = np.concatenate([y[order], y[order][-1:]])
    axes.step(steps_x, steps_y, where="post", color=SOFT, lw=1.2, ls=(0, (4, 2)), zorder=1)
    for index, name in enumerate(names):
        style = series_style(index)
        axes.plot(
            x[index], y[index], style.marker, ms=8, mec=style.colour, mew=1.6, zorder=3, label=name,
            mfc=style.colour if front[index] else "white",
        )  # fmt: skip
    set_title(figure, title)
    figure.draw_without_rendering()  # the layout is final from here on, so that labels can be placed in points
    figure.set_layout_engine("none")
    _label(axes, wrapped(names, 17), x, y)
    return figure


def _label(axes: Any, names: Sequence[str], x: np.ndarray, y: np.ndarray) -> None:
    """Write every name at the nearest place where it covers neither a point nor another name."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    frame = axes.get_window_extent().padded(-2)
    points = axes.transData.transform(np.stack([x, y], axis=1))
    taken = [Bbox.from_bounds(px - 7, py - 7, 14, 14) for px, py in points]
    # A name between neighbours has few places, so the crowded ones choose first.
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    for index in np.argsort(np.sort(distance, axis=1)[:, 1:3].sum(axis=1), kind="stable"):
        text = axes.annotate(
            names[index], (x[index], y[index]), xytext=(0, 0), textcoords="offset pixels", va="center", fontsize=SMALL,
            zorder=5, ha="left", arrowprops={"arrowstyle": "-", "color": SOFT, "lw": 0.6, "shrinkA": 1, "shrinkB": 5},
            bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 0.5}, linespacing=1.05,
        )  # fmt: skip
        size = Text.get_window_extent(text)  # without the leader
        fits = [
            (across, up)
            for across, up in _around(size.width, size.height)
            if _free(_box(points[index], across, up, size), taken, frame)
        ]
        across, up = fits[0] if fits else (10.0, 0.0)
        text.set_position((across, up))
        if np.hypot(max(across, -across - size.width, 0), up) < 22:
            text.arrow_patch.set_visible(False)  # beside its point a name needs no leader
        taken.append(_box(points[index], across, up, size))


def _around(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Offsets of a name's left end from its point, in pixels, nearest first."""
    for reach in range(10, 200, 8):
        for angle in np.deg2rad([0, 180, 90, 270, 35, -35, 145, -145, 65, -65, 115, -115]):
            across, up = reach * np.cos(angle), (reach + height / 2) * np.sin(angle)
            flush = {True: 0.0, False: -width}.get(bool(across > 0), 0.0)
            yield float(across + (-width / 2 if abs(np.cos(angle)) < 0.1 else flush)), float(up)


def _box(point: np.ndarray, across: float, up: float, size: Any) -> Any:
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(point[0] + across - 2, point[1] + up - size.height / 2 - 1, size.width + 4, size.height + 2)


def _free(box: Any, taken: Sequence[Any], frame: Any) -> bool:
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return bool(inside) and not any(box.overlaps(other) for other in taken)
