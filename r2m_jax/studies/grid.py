"""R²M's two settings, the residual's scale α and rank r (R²M appendix C.4, Fig. A.1), from one factorisation."""

from __future__ import annotations

import itertools

import numpy as np

from r2m_jax.evaluation.plots import heat_map, lines
from r2m_jax.recipes.studying import Merger
from r2m_jax.studies.context import Context
from r2m_jax.studies.measuring import Measured
from r2m_jax.studies.result import Figure, Result
from r2m_jax.studies.seen_unseen import seen_columns
from r2m_jax.studies.stock import Model


def grid(context: Context) -> Result:
    """Every α and r of the recipe, in every reading, on the seen columns."""
    merges, chosen = context.merges(context.specialists()), context.recipe.grid
    models: dict[str, Model] = {}
    groups: dict[str, list[str]] = {}
    for reading, parameters in chosen.readings.items():
        merger = Merger(method="r2m", parameters=parameters)
        for alpha, rank in itertools.product(chosen.alpha, chosen.rank):
            name = _name(reading, alpha, rank)
            models[name] = merges.model(name, merger, alpha=alpha, rank=rank)
            groups.setdefault(reading, []).append(name)
    table, measured = context.measured(models, seen_columns(context), "grid")
    figures: dict[str, Figure] = {}
    sentences: list[str] = []
    for reading, names in groups.items():
        means = measured.means(names)
        rising = sorted(names, key=lambda name: means[name])
        bottom, top = rising[0], rising[-1]
        sentences.append(f"R²M, {reading}: the mean AUC goes from {means[bottom]:.3f} to {means[top]:.3f} ({top}).")
        sentences.append(measured.compared(top, bottom))
        sentences.append(_trend(context, measured, reading))
        figures |= _figures(context, measured, reading)
    sentences.append(
        "These are test images, as in the paper's figure; to choose settings, use r2m sweep on validation images."
    )
    found = {"grid": measured.table("AUC by α and r", groups)}
    return Result(sentences, found, figures, {"grid": table}, measured.as_json())


def _name(reading: str, alpha: float, rank: float) -> str:
    return f"{reading}, α = {alpha:g}, r = {rank:g}"


def _trend(context: Context, measured: Measured, reading: str) -> str:
    """What each setting does on average over the other."""
    chosen = context.recipe.grid
    cells = np.asarray([[measured.mean(_name(reading, alpha, rank)) for rank in chosen.rank] for alpha in chosen.alpha])
    by_rank, by_alpha = cells.mean(axis=0), cells.mean(axis=1)
    return (
        f"Averaged over α, r = {chosen.rank[int(by_rank.argmax())]:g} is best and the ranks differ by "
        f"{np.ptp(by_rank):.3f}; averaged over r, α = {chosen.alpha[int(by_alpha.argmax())]:g} is best and they differ "
        f"by {np.ptp(by_alpha):.3f}."
    )


def _figures(context: Context, measured: Measured, reading: str) -> dict[str, Figure]:
    chosen = context.recipe.grid
    made = {}
    for column in measured.columns:
        series = {
            f"α = {alpha:g}": [measured.mean(_name(reading, alpha, rank), [column]) for rank in chosen.rank]
            for alpha in chosen.alpha
        }
        title = f"{column}: AUC by rank, {reading}"
        svg = lines(list(chosen.rank), series, title=title, x_label="rank ratio r")
        made[f"grid_{reading}_{column}"] = Figure(svg, f"{title}; one curve per α.")
    if len(chosen.alpha) > 1 and len(chosen.rank) > 1:
        values = np.asarray([[measured.mean(_name(reading, a, r)) for r in chosen.rank] for a in chosen.alpha])
        rows, heads = [f"α = {a:g}" for a in chosen.alpha], [f"r = {r:g}" for r in chosen.rank]
        title = f"Mean AUC by α and r, {reading}"
        made[f"grid_{reading}_mean"] = Figure(heat_map(values, rows, heads, title=title), f"{title}.")
    return made
