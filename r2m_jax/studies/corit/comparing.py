"""Variants of a detector on the same images: heads by lesson and seed, their score table, AUCs with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32

from r2m_jax.evaluation.protocols import Column, Selector
from r2m_jax.evaluation.scores import ScoreTable
from r2m_jax.evaluation.tables import Table
from r2m_jax.models.corit import CoritSettings
from r2m_jax.studies.corit.frozen import ALL, WITHOUT, Frozen, Tower
from r2m_jax.studies.corit.heads import margins, train_heads
from r2m_jax.studies.measuring import Measured, measure
from r2m_jax.studies.roles import as_protocol

SEEN, UNSEEN = "families learnt", "family left out"
SPREAD = "SD of seeds"


@dataclass(frozen=True)
class Cell:
    """A column: heads of a lesson on a family's test images against the real ones."""

    lesson: str
    family: str
    name: str
    group: str = ""


@dataclass(frozen=True)
class Compared:
    """AUCs of variants.

    Attributes:
        table: scores of every variant and seed; a lesson is told by the domain.
        measured: AUCs by variant, means over its seeds, with the bootstrap's.
        by_seed: mean AUC over all columns of every seed [variants, seeds].
    """

    table: ScoreTable
    measured: Measured
    by_seed: Float[np.ndarray, "v s"]

    def spread(self, variant: str) -> float:
        """Standard deviation of a variant's mean AUC over its seeds; NaN of a single one."""
        values = self.by_seed[self.measured.models.index(variant)]
        return float(values.std(ddof=1)) if len(values) > 1 else float("nan")

    def as_table(self, title: str, groups: Mapping[str, Sequence[str]], caption: str = "") -> Table:
        """AUCs, their means and intervals, and what another seed changes."""
        found = self.measured.table(title, groups, caption=caption)
        rows = [name for names in groups.values() for name in names]
        return replace(
            found,
            columns=[*found.columns, SPREAD],
            values={row: [*found.values[row], self.spread(row)] for row in rows},
            intervals={row: [*(found.intervals or {})[row], None] for row in rows},
            lower_is_better=frozenset({SPREAD}),
        )

    def as_json(self) -> dict[str, object]:
        """AUCs and intervals, and the mean of every seed."""
        seeds = {name: self.by_seed[row].tolist() for row, name in enumerate(self.measured.models)}
        return {**self.measured.as_json(), "mean_by_seed": seeds}


def seen_and_unseen(context: Frozen) -> list[Cell]:
    """Every family by heads that learnt all of them, and by heads that learnt the others."""
    cells = [Cell(ALL, name, name, SEEN) for name in context.names]
    if len(context.names) > 1:
        cells += [Cell(f"{WITHOUT} {name}", name, f"{name} unseen", UNSEEN) for name in context.names]
    return cells


def scored(
    context: Frozen,
    settings: CoritSettings,
    lessons: Mapping[str, Sequence[str]],
    *,
    tower: Tower | None = None,
) -> Float32[np.ndarray, "lessons seeds m"]:
    """Logits of the test images by heads of these switches, trained here."""
    z, test = context.z(settings, tower=tower), context.tested
    heads = trained(context, settings, z[~test], lessons)
    return margins(heads, z[test])


def trained(
    context: Frozen, settings: CoritSettings, features: Float32[np.ndarray, "n f"], lessons: Mapping[str, Sequence[str]]
) -> dict[str, object]:
    """Heads on z of the training images, as :func:`~r2m_jax.studies.corit.heads.train_heads` gives them."""
    chosen = context.recipe.heads
    return train_heads(
        context.base.config, settings, features, context.labels[~context.tested],
        {name: context.taught(families) for name, families in lessons.items()},
        seeds=context.recipe.seeds, rho=chosen.rho, training=chosen.training,
    )  # fmt: skip


def compare(
    context: Frozen,
    variants: Mapping[str, Float32[np.ndarray, "lessons seeds m"]],
    lessons: Sequence[str],
    cells: Sequence[Cell],
    name: str,
) -> Compared:
    """Score table and AUCs of variants.

    An image keeps its clip under all lessons, so that draws of the bootstrap are paired over columns, variants and
    seeds; intervals are of the mean over seeds.

    Args:
        context: whose test images were scored.
        variants: logits by name.
        lessons: what the first axis of the logits is.
        cells: columns.
        name: of the score table's file.
    """
    records = [replace(record, domain=lesson) for lesson in lessons for record in context.test]
    seeds = next(iter(variants.values())).shape[1]
    logits = {
        f"{variant}, seed {seed}": found[:, seed].reshape(-1)
        for variant, found in variants.items()
        for seed in range(seeds)
    }
    table = ScoreTable(records, logits)
    columns = [
        Column(c.name, Selector(families=(c.family,), domains=(c.lesson,)), Selector(domains=(c.lesson,)), c.group)
        for c in cells
    ]
    single = measure(table, as_protocol(name, name, columns, records), context.recipe.intervals, context.cited(name))
    return over_seeds(table, single, tuple(variants), seeds)


def over_seeds(table: ScoreTable, single: Measured, variants: Sequence[str], seeds: int) -> Compared:
    """Means over seeds of what was measured of every variant and seed, in that order."""
    shape = (len(variants), seeds)
    auc = single.auc.reshape(*shape, *single.auc.shape[1:])
    samples = single.samples.reshape(*shape, *single.samples.shape[1:])
    measured = replace(single, models=tuple(variants), auc=auc.mean(axis=1), samples=samples.mean(axis=1))
    return Compared(table, measured, auc.mean(axis=2))
