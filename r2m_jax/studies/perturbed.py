"""Perturbed test images at several levels, and the relative change of the AUC (CoRIT, arXiv 2603.24057, eq. 26)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

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
    records = _evenly_of_both([r for r, kept in zip(context.test, wanted, strict=True) if kept], chosen.images)
    conditions: list[tuple[str, Kind | None, int]] = [(CLEAN, None, 0)]
    conditions += [(f"{kind} {level}", kind, level) for kind in chosen.kinds for level in chosen.levels]
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
    columns = [
        Column(f"{column.name} {name}", replace(column.fake, domains=(name,)), Selector(domains=(name,)), name)
        for name, _, _ in conditions
        for column in kept
    ]
    formed = as_protocol("robustness", "seen columns, perturbed", columns, every)
    measured = measure(table, formed, context.recipe.intervals, context.cited("robustness"))
    return _result(context, measured, groups, table, len(records))


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
        image = np.asarray(source.image(index))
        if kind is not None:
            times = max(1, MEASURE // min(image.shape[:2]))
            large = perturb(image.repeat(times, axis=0).repeat(times, axis=1), kind, level, seed=seed, index=index)
            height, width = image.shape[:2]
            blocks = large.reshape(height, times, width, times, 3).mean(axis=(1, 3))
            image = np.rint(blocks).astype(np.uint8)
        return resize_and_crop(Image.fromarray(image), size)

    with ThreadPoolExecutor(2) as pool:
        return np.stack(list(pool.map(one, range(len(records)))))


def _evenly_of_both(records: Sequence[Record], limit: int) -> list[Record]:
    """At most so many, both classes and all methods in their shares."""
    order = sorted(records, key=lambda record: (record.label, record.family, record.method))
    return evenly(order, limit)


def variation(aucs: Float[np.ndarray, "m k *r"]) -> Float[np.ndarray, "m p *r"]:
    """Relative variation of every condition from the first, the clean one (eq. 26)."""
    return (aucs[:, 1:] - aucs[:, :1]) / aucs[:, :1]


def _result(
    context: Context, measured: Measured, groups: dict[str, Sequence[str]], table: ScoreTable, images: int
) -> Result:
    chosen, own = context.recipe.robustness, context.readings()[0]
    conditions = list(dict.fromkeys(measured.groups))
    names = [name for each in groups.values() for name in each]
    kinds = {kind: [conditions.index(f"{kind} {level}") for level in chosen.levels] for kind in chosen.kinds}
    spoken = {kind: kind.replace("_", " ") for kind in kinds}

    def numbers(aucs: np.ndarray) -> dict[str, np.ndarray]:
        """Clean AUC, mean RAV of every kind and of all, from AUCs [models, conditions and families, …]."""
        by_condition = aucs.reshape(len(measured.models), len(conditions), -1, *aucs.shape[2:]).mean(axis=2)
        change = variation(by_condition)
        found = {"clean AUC": by_condition[:, 0]}
        for kind, places in kinds.items():
            found[f"RAV {spoken[kind]}"] = change[:, [place - 1 for place in places]].mean(axis=1)
        return found | {"mean RAV": change.mean(axis=1)}

    points, drawn = numbers(measured.auc), numbers(measured.samples)
    ends = [interval(samples, measured.level) for samples in drawn.values()]
    row = {name: measured.models.index(name) for name in names}
    values = {name: [float(points[head][row[name]]) for head in points] for name in names}
    found = Table(
        "Robustness", list(points), groups, values, source=measured.source,
        intervals={name: [(float(low[row[name]]), float(high[row[name]])) for low, high in ends] for name in names},
        caption="RAV is (perturbed AUC − clean AUC) / clean AUC, averaged over levels; negative is a loss. "
        "AUCs are means over the seen columns.",
    )  # fmt: skip
    overall = {name: values[name][-1] for name in names}
    steady = max(names, key=lambda name: overall[name])
    firm = max(context.recipe.mergers, key=lambda name: overall[name])
    costs = {kind: float(points[f"RAV {spoken[kind]}"].mean()) for kind in kinds}
    hardest = min(costs, key=lambda kind: costs[kind])
    sentences = [
        f"Over {images} images under {len(conditions) - 1} perturbations, {steady} has the highest mean RAV of all "
        f"models ({signed(overall[steady])}, clean AUC {values[steady][0]:.3f})"
        + ("." if firm == steady else f", and {firm} of the mergers ({signed(overall[firm])}, {values[firm][0]:.3f})."),
        f"{spoken[hardest].capitalize()} costs most, {signed(costs[hardest])} on average over models.",
        *(f"{name}: mean RAV {signed(overall[name])} from a clean AUC of {values[name][0]:.3f}." for name in own),
        "A model that is near chance on clean images has little to lose: read RAV beside the clean AUC.",
    ]
    by_condition = measured.auc.reshape(len(measured.models), len(conditions), -1).mean(axis=2)
    figures = {}
    for kind, places in kinds.items():
        series = {name: by_condition[row[name], [0, *places]] for name in _drawn(context, names)}
        title = f"Mean AUC by level of {spoken[kind]}"
        svg = lines([0, *chosen.levels], series, title=title, x_label="level (0 is clean)", reference=0.5)
        figures[f"robustness_{kind}"] = Figure(svg, f"{title}; the table has all models.")
    change = variation(by_condition)
    metrics = {
        "source": measured.source,
        "auc": {name: dict(zip(conditions, by_condition[at].tolist(), strict=True)) for name, at in row.items()},
        "rav": {name: dict(zip(conditions[1:], change[at].tolist(), strict=True)) for name, at in row.items()},
    }
    return Result(sentences, {"robustness": found}, figures, {"robustness": table}, metrics)


def _drawn(context: Context, names: Sequence[str]) -> list[str]:
    """Models that are drawn: no more than can be told apart."""
    own, others = context.readings()
    return [name for name in names if name not in context.recipe.mergers] + own[:2] + others[:2]
