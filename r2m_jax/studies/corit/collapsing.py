"""Critical radius and gradient signal to noise by layer, of CoRIT's tokens beside the class token's.

arXiv 2603.24057, Table VII and Fig. 6, with the measurements of :mod:`r2m_jax.evaluation.collapse`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from r2m_jax.errors import InputError
from r2m_jax.evaluation.collapse import ProbeData, RankAgreement, agreement, critical_radius, trajectory
from r2m_jax.evaluation.plots import lines
from r2m_jax.evaluation.tables import Table
from r2m_jax.jobs.collapse_found import RADII, SIGNALS, THEORY, Cell
from r2m_jax.merging.interference import plain
from r2m_jax.studies.corit.frozen import PLAIN, Frozen
from r2m_jax.studies.result import Figure, Result

CLASS_TOKEN, TOKENS = "class token", "CoRIT's z"
_NUMBERS = (*RADII, THEORY, *SIGNALS)
Cells = Mapping[tuple[str, str, int], Cell]


def collapsing(context: Frozen) -> Result:
    """Linear probes on every layer, family and kind of feature: critical radii, GSNR, and whether they rank alike."""
    chosen = context.recipe.collapse
    layers = _layers(context)
    cells: dict[tuple[str, str, int], Cell] = {}
    scales: dict[tuple[str, int], float] = {}
    total = 2 * len(layers) * len(context.names)
    features = _features(context, layers, scales)
    with context.reporter.track("probes of layers and families", total, "settings") as advance:
        for (kind, layer), values in features.items():
            for family in context.names:
                data = _data(context, values, family)
                cells[kind, family, layer] = Cell(
                    critical_radius(data, chosen.radii.search(chosen.seeds), chosen.probe.training),
                    trajectory(data, rho=chosen.probe.rho, points=chosen.probe.points, training=chosen.probe.training),
                )
                advance(1, f"{kind}, layer {layer}, {family}")
    final = {family: float(cells[CLASS_TOKEN, family, layers[-1]].trajectory.auc[-1]) for family in context.names}
    easy, hard = max(final, key=lambda f: final[f]), min(final, key=lambda f: final[f])
    called = {f: f"{f} (easy)" if f == easy else f"{f} (hard)" if f == hard else f for f in context.names}
    grids = {
        name: {
            kind: np.asarray([[cells[kind, f, layer].number(name) for layer in layers] for f in context.names])
            for kind in (CLASS_TOKEN, TOKENS)
        }
        for name in _NUMBERS
    }
    grids["AUC"] = {
        kind: np.asarray([[cells[kind, f, layer].trajectory.auc[-1] for layer in layers] for f in context.names])
        for kind in (CLASS_TOKEN, TOKENS)
    }
    agreements = _agreements(context, grids)
    tables = {
        f"corit_collapse_{name.lower().replace(' ', '_').replace('*', '')}": _table(context, name, grid, layers, called)
        for name, grid in grids.items()
    }
    drawn = {"corit_cor": "COR by loss", "corit_gsnr": SIGNALS[0]}
    figures = {
        file: _figure(name, grids[name], layers, called)
        for file, name in drawn.items()
        if any((np.isfinite(grid) & (grid > 0)).any() for grid in grids[name].values())
    }
    sentences = _sentences(context, cells, grids, layers, agreements, (easy, hard, final))
    metrics = {
        "layers": list(layers), "families": list(context.names), "easy": easy, "hard": hard,
        "rms_length": {f"{kind}, {layer}": value for (kind, layer), value in scales.items()},
        "numbers": plain(grids),
        "agreements": [
            {"radius": radius, "signal": signal, "features": kind, "over": over, "spearman": each.value,
             "low": each.low, "high": each.high}
            for (radius, signal, kind, over), each in agreements.items()
        ],
    }  # fmt: skip
    made: dict[str, Any] = plain(metrics)
    return Result(sentences, tables, figures, {}, made)


def _layers(context: Frozen) -> tuple[int, ...]:
    wanted = context.recipe.collapse.layers
    if wanted is None:
        return tuple(sorted({max(1, context.depth * quarter // 4) for quarter in (1, 2, 3, 4)}))
    if not wanted or len(set(wanted)) < len(wanted) or not all(1 <= layer <= context.depth for layer in wanted):
        raise InputError(f"collapse.layers={list(wanted)} are not among the tower's blocks 1 to {context.depth}.")
    return tuple(sorted(wanted))


def _features(
    context: Frozen, layers: tuple[int, ...], scales: dict[tuple[str, int], float]
) -> dict[tuple[str, int], Float32[np.ndarray, "n f"]]:
    """Class token and CoRIT's tokens of every layer, as they are or with vectors of one length.

    That is √d, the root mean square length of a class token whose numbers have a root mean square of one.
    """
    found = {}
    for kind, settings in ((CLASS_TOKEN, PLAIN), (TOKENS, context.recipe.settings)):
        tokens = context.tokens(settings, layers)
        for place, layer in enumerate(layers):
            values = context.read(tokens[:, place : place + 1], replace(settings, feature_norm="none"))
            lengths = (values[~context.tested].astype(np.float64) ** 2).sum(axis=1)
            scales[kind, layer] = float(np.sqrt(lengths.mean()))
            scale = scales[kind, layer] / context.base.config.hidden_size**0.5
            found[kind, layer] = values if context.recipe.collapse.scale == "none" else values / np.float32(scale)
    return found


def _data(context: Frozen, values: Float32[np.ndarray, "n f"], family: str) -> ProbeData:
    own = np.isin(context.families, ["", family])
    train, test = own & ~context.tested, own & context.tested
    return ProbeData(values[train], context.labels[train], values[test], context.labels[test])


def _agreements(
    context: Frozen, grids: Mapping[str, Mapping[str, Float[np.ndarray, "f l"]]]
) -> dict[tuple[str, str, str, str], RankAgreement]:
    """(radius, signal, features, over what) to how far they rank alike."""
    found = {}
    more = {"resamples": context.recipe.collapse.resamples}
    for radius in (*RADII, THEORY):
        for signal in SIGNALS:
            for kind in (CLASS_TOKEN, TOKENS):
                a, b = grids[radius][kind], grids[signal][kind]
                found[radius, signal, kind, "layers"] = agreement(a, b, draw="members", **more)
                found[radius, signal, kind, "families"] = agreement(a.T, b.T, draw="groups", **more)
    return found


def _table(
    context: Frozen, name: str, grid: Mapping[str, np.ndarray], layers: tuple[int, ...], called: Mapping[str, str]
) -> Table:
    rows = {kind: [f"{kind}, {called[family]}" for family in context.names] for kind in (CLASS_TOKEN, TOKENS)}
    values = {
        row: [float(value) if np.isfinite(value) else float("nan") for value in line]
        for kind in rows
        for row, line in zip(rows[kind], grid[kind], strict=True)
    }
    ends = context.recipe.collapse.radii
    caption = {
        "AUC": "Of the followed training's last probe on test images.",
        **dict.fromkeys(RADII, f"A dash: above {ends.most:g}; 0: below {ends.least:g}. Medians over seeds."),
    }
    return Table(
        name, [f"layer {layer}" for layer in layers], rows, values, heading="Features, family",
        caption=caption.get(name, ""), decimals=4 if "GSNR" in name or name == THEORY else 3, mark_best=False,
    )  # fmt: skip


def _figure(name: str, grid: Mapping[str, np.ndarray], layers: tuple[int, ...], called: Mapping[str, str]) -> Figure:
    series = {}
    for kind, family_lines in grid.items():
        for family, line in zip(called.values(), family_lines, strict=True):
            inside = np.isfinite(line) & (line > 0)
            if inside.any():  # otherwise every one of them is beyond the grid
                series[f"{kind}, {family}"] = np.log10(np.where(inside, line, np.nan))
    svg = lines(list(layers), series, title=f"{name} by layer, log₁₀", x_label="layer", y_label=f"log₁₀ {name}")
    return Figure(svg, f"{name}, decimal logarithm; gaps are radii beyond the grid.")


def _sentences(
    context: Frozen, cells: Cells, grids: Mapping[str, Mapping[str, np.ndarray]], layers: tuple[int, ...],
    agreements: Mapping[tuple[str, str, str, str], RankAgreement], families: tuple[str, str, dict[str, float]],
) -> list[str]:  # fmt: skip
    easy, hard, final = families
    said = [
        f"By the class token of block {layers[-1]}, {easy} is the easiest family (AUC {final[easy]:.3f}) and {hard} "
        f"the hardest ({final[hard]:.3f})."
    ]
    for name, criterion in RADII.items():
        for family in dict.fromkeys((easy, hard)):
            words = {
                kind: cells[kind, family, layers[-1]].empirical.brackets[criterion].words() for kind in grids[name]
            }
            told = " and ".join(f"{value} for {kind}" for kind, value in words.items())
            said.append(f"{name} at block {layers[-1]}, {family}: {told}.")
    for name in (*RADII, *SIGNALS):
        above = grids[name][TOKENS] > grids[name][CLASS_TOKEN]
        same = grids[name][TOKENS] == grids[name][CLASS_TOKEN]
        said.append(
            f"{name} of {TOKENS} is above that of the {CLASS_TOKEN} in {int(above.sum())} of {above.size} pairs of "
            f"layer and family, equal in {int(same.sum())}."
        )
    for (radius, signal, kind, over), each in agreements.items():
        if radius in RADII and signal == SIGNALS[0]:
            value = (
                "undefined, as one of them is the same everywhere"
                if np.isnan(each.value)
                else f"{each.value:.2f} (95% interval {each.low:.2f} to {each.high:.2f})"
            )
            said.append(f"Over {over}, Spearman's ρ of {radius} and {signal} of {kind} is {value}.")
    scaled = context.recipe.collapse.scale == "length"
    said.append(
        "Features of every layer have the same root mean square length, √d, so that radii compare."
        if scaled
        else "Features are as they are; critical radii are inversely proportional to their scale, which differs."
    )
    return said
