"""The page of ``r2m eval``: what was compared, how it came out, how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import yaml

from r2m_jax.evaluation.comparison import COUNTS, Comparison
from r2m_jax.evaluation.plots import heat_map
from r2m_jax.evaluation.report import Section, bullets, drawing, page, paragraphs, preformatted, tabulated
from r2m_jax.evaluation.tables import Table
from r2m_jax.recipes.evaluating import BEST, EvalRecipe


def page_of(comparison: Comparison, notes: Sequence[str], *, recipe: EvalRecipe, scores: str) -> str:
    """The whole page.

    Args:
        comparison: what is shown.
        notes: sentences for readers.
        recipe: what was asked for.
        scores: name of the score table beside the page.
    """
    protocol = comparison.protocol
    first, *others = (comparison.table(metric, source=scores) for metric in protocol.metrics)
    models = len(comparison.cells)
    many = models > 1
    sections = [
        Section(first.title, tabulated(first) + (_map(comparison, first.title) if many else "")),
        *([Section("Notes", bullets(notes))] if notes else []),
        *([Section("Tests", _tests(comparison, recipe, scores))] if many and comparison.references else []),
        Section("Other metrics", "".join(map(tabulated, others))),
        Section("Columns", tabulated(_counts(comparison)) + bullets(_selections(comparison))),
        Section("Made by", preformatted(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))),
    ]
    intervals = recipe.intervals
    sure = (
        f" Under image and video AUC stand {intervals.level:.0%} intervals from {intervals.resamples} resamples, in "
        "which clips are drawn with replacement, real and fake ones apart."
        if intervals
        else ""
    )
    lead = (
        f"{models} model{'s' * many} on {len(protocol.columns)} column{'s' * (len(protocol.columns) > 1)} of the "
        f"protocol {protocol.name}: {protocol.title} ({protocol.source}). Every number follows from {scores}; "
        f"metrics.json has them all.{sure}"
    )
    return page(f"Evaluation: {protocol.title}", lead, sections)


def _map(comparison: Comparison, title: str) -> str:
    rows = comparison.values(comparison.protocol.metrics[0])
    values = np.asarray(list(rows.values()))
    finite = values[np.isfinite(values)]
    if not finite.size:
        return ""
    low, high = float(finite.min()), float(finite.max())
    title = f"{title} by model and column"
    return drawing(
        heat_map(values, list(rows), comparison.columns(), title=title, low=low, high=max(high, low + 1e-3)), title
    )


def _tests(comparison: Comparison, recipe: EvalRecipe, scores: str) -> str:
    """Differences from the column's reference and their p-values."""
    lines = [
        "Image AUC minus that of the column's reference model, both on the same draws of clips. The p-values are "
        "two-sided and not corrected for the number of tests."
    ]
    if recipe.reference == BEST:
        lines.append(
            "The reference is each column's best model by these very scores, so the p-values are a little low."
        )
    columns = [column.name for column in comparison.protocol.columns]
    tests = {model: [cells[name].against for name in columns] for model, cells in comparison.cells.items()}
    rows = {"Models": list(tests)}
    heads = [f"{name} (to {comparison.references[name]})" for name in columns]
    differences = Table(
        "Difference", heads, rows, {m: [t.difference if t else math.nan for t in each] for m, each in tests.items()},
        intervals={m: [(t.low, t.high) if t else None for t in each] for m, each in tests.items()},
        source=scores, mark_best=False,
    )  # fmt: skip
    chances = Table(
        "p-value", heads, rows, {m: [t.p_value if t else math.nan for t in each] for m, each in tests.items()},
        source=scores, mark_best=False,
    )  # fmt: skip
    return paragraphs(lines) + tabulated(differences) + tabulated(chances)


def _counts(comparison: Comparison) -> Table:
    first = next(iter(comparison.cells.values()))
    return Table(
        "Images", COUNTS, {"Columns": list(first)}, {n: [c.metrics[k] for k in COUNTS] for n, c in first.items()},
        heading="Column", decimals=0, mark_best=False,
    )  # fmt: skip


def _selections(comparison: Comparison) -> list[str]:
    return [
        f"{column.name}: {column.fake.words() or 'all fake images'}, against {column.real.words() or 'all'} real images"
        for column in comparison.protocol.columns
    ]
