"""Perturbed test images at several levels, and the relative change of the AUC (CoRIT, arXiv 2603.24057, eq. 26)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from r2m_jax.data.images import resize_and_crop
from r2m_jax.data.pipeline import RecordSource
from r2m_jax.data.records import Record
from r2m_jax.data.selection import evenly
from r2m_jax.evaluation.plots import lines
from r2m_jax.evaluation.protocols import Column, Selector
from r2m_jax.evaluation.resampling import interval
from r2m_jax.evaluation.robustness import Kind, perturb
from r2m_jax.evaluation.scores import ScoreTable
from r2m_jax.evaluation.tables import Table
from r2m_jax.recipes.studying import Robustness
from r2m_jax.studies.context import PRETRAINED, Context
from r2m_jax.studies.measuring import Measured, measure, signed
from r2m_jax.studies.result import Figure, Result
from r2m_jax.studies.roles import as_protocol, inside
from r2m_jax.studies.seen_unseen import seen_columns

CLEAN = "clean"
MEASURE = 256
"""Shorter side in pixels for which the strengths are made; smaller images are enlarged a whole number of times."""


def robustness(context: Context) -> Result:
    """Specialists, all-in-one and mergers on the same images, clean and perturbed."""
    chosen, roster = context.recipe.robustness, context.roster()
    models = {name: model for name, model in roster.models.items() if name != PRETRAINED}
    groups = {heading: names for heading, names in roster.groups.items() if PRETRAINED not in names}
    seen = seen_columns(context)
    wanted = inside(seen, context.test)
    records = evenly_of_both([r for r, kept in zip(context.test, wanted, strict=True) if kept], chosen.images)
    conditions = conditions_of(chosen)
    size, seed = context.begin.processor.crop_size["height"], context.recipe.seed
    with context.reporter.track("perturb", len(conditions) * len(records)) as advance:
        images = []
        for _, kind, level in conditions:
            images.append(perturbed(records, kind, level, size=size, seed=seed))
            advance(len(records))
    stack = np.concatenate(images)
    logits = {}
    with context.reporter.track("score perturbed", len(stack) * len(models)) as advance:
        for name, model in models.items():
            logits[name] = context.score(model, stack, advance=advance)[0]
    # A condition is told by the domain: an image keeps its clip under all of them, so that draws are paired.
    every = [replace(record, domain=name) for name, _, _ in conditions for record in records]
    table = ScoreTable(every, logits)
    kept = as_protocol("robustness", "", seen.columns, records).columns
    formed = as_protocol("robustness", "seen columns, perturbed", under_each(conditions, kept), every)
    measured = measure(table, formed, context.recipe.intervals, context.cited("robustness"))
    return _result(context, measured, groups, table, len(records))


def conditions_of(chosen: Robustness) -> list[tuple[str, Kind | None, int]]:
    """Name, kind and level of every condition, the clean one first."""
    found: list[tuple[str, Kind | None, int]] = [(CLEAN, None, 0)]
    return found + [(f"{kind} {level}", kind, level) for kind in chosen.kinds for level in chosen.levels]


def under_each(conditions: Sequence[tuple[str, Kind | None, int]], columns: Sequence[Column]) -> list[Column]:
    """Columns under every condition, which is told by the domain."""
    return [
        Column(f"{column.name} {name}", replace(column.fake, domains=(name,)), Selector(domains=(name,)), name)
        for name, _, _ in conditions
        for column in columns
    ]


def perturbed(
    records: Sequence[Record], kind: Kind | None, level: int, *, size: int, seed: int
) -> UInt8[np.ndarray, "n size size 3"]:
    """Stored images, perturbed, then resized as the model wants them.

    The strengths are made for crops of 256 px. A smaller image is enlarged by repeating its pixels, perturbed, and
    shrunk by averaging them, which gives the very image back where nothing was perturbed.

    Args:
        records: images and frames.
        kind: of perturbation; None for none.
        level: 1 to 5.
        size: side of the results.
        seed: of the random kinds.
    """
    source = RecordSource(records)

    def one(index: int) -> np.ndarray:
        image = perturbed_image(np.asarray(source.image(index)), kind, level, seed=seed, index=index)
        return resize_and_crop(Image.fromarray(image), size)

    with ThreadPoolExecutor(2) as pool:
        return np.stack(list(pool.map(one, range(len(records)))))


def perturbed_image(
    image: UInt8[np.ndarray, "h w 3"], kind: Kind | None, level: int, *, seed: int, index: int
) -> UInt8[np.ndarray, "h w 3"]:
    """One image in its own size, enlarged for the perturbation as :func:`perturbed` says; None leaves it as it is."""
    if kind is None:
        return image
    times = max(1, MEASURE // min(image.shape[:2]))
    large = perturb(image.repeat(times, axis=0).repeat(times, axis=1), kind, level, seed=seed, index=index)
    height, width = image.shape[:2]
    blocks = large.reshape(height, times, width, times, 3).mean(axis=(1, 3))
    return np.rint(blocks).astype(np.uint8)


def evenly_of_both(records: Sequence[Record], limit: int) -> list[Record]:
    """At most so many, both classes and all methods in their shares."""
    order = sorted(records, key=lambda record: (record.label, record.family, record.method))
    return evenly(order, limit)


def variation(aucs: Float[np.ndarray, "m k *r"]) -> Float[np.ndarray, "m p *r"]:
    """Relative variation of every condition from the first, the clean one (eq. 26)."""
    return (aucs[:, 1:] - aucs[:, :1]) / aucs[:, :1]


def rav_table(measured: Measured, groups: Mapping[str, Sequence[str]], chosen: Robustness) -> Table:
    """Clean AUC and, by kind and over all, the mean relative variation of every model, with intervals.

    Args:
        measured: AUCs of :func:`under_each`'s columns.
        groups: heading to the models under it.
        chosen: kinds and levels.
    """
    conditions = list(dict.fromkeys(measured.groups))
    kinds = {kind: [conditions.index(f"{kind} {level}") for level in chosen.levels] for kind in chosen.kinds}

    def numbers(aucs: np.ndarray) -> dict[str, np.ndarray]:
        """Clean AUC, mean RAV of every kind and of all, from AUCs [models, conditions and families, …]."""
        by_condition = by_conditions(measured, aucs)
        change = variation(by_condition)
        found = {"clean AUC": by_condition[:, 0]}
        for kind, places in kinds.items():
            found[f"RAV {spoken(kind)}"] = change[:, [place - 1 for place in places]].mean(axis=1)
        return found | {"mean RAV": change.mean(axis=1)}

    points, drawn = numbers(measured.auc), numbers(measured.samples)
    ends = [interval(samples, measured.level) for samples in drawn.values()]
    row = {name: measured.models.index(name) for names in groups.values() for name in names}
    return Table(
        "Robustness", list(points), groups,
        {name: [float(points[head][place]) for head in points] for name, place in row.items()}, source=measured.source,
        intervals={name: [(float(low[at]), float(high[at])) for low, high in ends] for name, at in row.items()},
        caption="RAV is (perturbed AUC − clean AUC) / clean AUC, averaged over levels; negative is a loss. "
        "AUCs are means over the seen columns.",
    )  # fmt: skip


def by_conditions(measured: Measured, aucs: Float[np.ndarray, "m c *r"]) -> Float[np.ndarray, "m k *r"]:
    """Means over the columns of every condition."""
    count = len(dict.fromkeys(measured.groups))
    return np.asarray(aucs.reshape(len(aucs), count, -1, *aucs.shape[2:]).mean(axis=2))


def spoken(kind: Kind) -> str:
    """A kind in words."""
    return kind.replace("_", " ")


def curves(measured: Measured, names: Sequence[str], chosen: Robustness, prefix: str) -> dict[str, Figure]:
    """Mean AUC by level, a figure per kind, by file name."""
    conditions, aucs = list(dict.fromkeys(measured.groups)), by_conditions(measured, measured.auc)
    figures = {}
    for kind in chosen.kinds:
        places = [0, *(conditions.index(f"{kind} {level}") for level in chosen.levels)]
        series = {name: aucs[measured.models.index(name), places] for name in names}
        title = f"Mean AUC by level of {spoken(kind)}"
        svg = lines([0, *chosen.levels], series, title=title, x_label="level (0 is clean)", reference=0.5)
        figures[f"{prefix}_{kind}"] = Figure(svg, f"{title}; the table has all models.")
    return figures


def rav_metrics(measured: Measured) -> dict[str, Any]:
    """AUC and RAV of every model under every condition."""
    conditions, aucs = list(dict.fromkeys(measured.groups)), by_conditions(measured, measured.auc)
    change = variation(aucs)
    return {
        "source": measured.source,
        "auc": {
            name: dict(zip(conditions, row.tolist(), strict=True))
            for name, row in zip(measured.models, aucs, strict=True)
        },
        "rav": {
            name: dict(zip(conditions[1:], row.tolist(), strict=True))
            for name, row in zip(measured.models, change, strict=True)
        },
    }


def _result(
    context: Context, measured: Measured, groups: dict[str, Sequence[str]], table: ScoreTable, images: int
) -> Result:
    chosen, own = context.recipe.robustness, context.readings()[0]
    conditions = list(dict.fromkeys(measured.groups))
    found = rav_table(measured, groups, chosen)
    values = found.values
    names = list(values)
    overall = {name: values[name][-1] for name in names}
    steady = max(names, key=lambda name: overall[name])
    firm = max(context.recipe.mergers, key=lambda name: overall[name])
    column = {kind: list(found.columns).index(f"RAV {spoken(kind)}") for kind in chosen.kinds}
    costs = {kind: float(np.mean([row[at] for row in values.values()])) for kind, at in column.items()}
    hardest = min(costs, key=lambda kind: costs[kind])
    sentences = [
        f"Over {images} images under {len(conditions) - 1} perturbations, {steady} has the highest mean RAV of all "
        f"models ({signed(overall[steady])}, clean AUC {values[steady][0]:.3f})"
        + ("." if firm == steady else f", and {firm} of the mergers ({signed(overall[firm])}, {values[firm][0]:.3f})."),
        f"{spoken(hardest).capitalize()} costs most, {signed(costs[hardest])} on average over models.",
        *(f"{name}: mean RAV {signed(overall[name])} from a clean AUC of {values[name][0]:.3f}." for name in own),
        "A model that is near chance on clean images has little to lose: read RAV beside the clean AUC.",
    ]
    figures = curves(measured, _drawn(context, names), chosen, "robustness")
    return Result(sentences, {"robustness": found}, figures, {"robustness": table}, rav_metrics(measured))


def _drawn(context: Context, names: Sequence[str]) -> list[str]:
    """Models that are drawn: no more than can be told apart."""
    own, others = context.readings()
    return [name for name in names if name not in context.recipe.mergers] + own[:2] + others[:2]
