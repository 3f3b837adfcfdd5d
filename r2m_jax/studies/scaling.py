"""More specialists for the same forgeries: N = 3 against N = 6 (R²M Fig. 6, Tables A.4 and A.5)."""

from __future__ import annotations

import numpy as np

from r2m_jax.evaluation.plots import dumbbell
from r2m_jax.evaluation.tables import Table
from r2m_jax.studies.context import Context
from r2m_jax.studies.measuring import MEAN, Measured
from r2m_jax.studies.result import Figure, Result, Unavailable
from r2m_jax.studies.roles import Lesson
from r2m_jax.studies.seen_unseen import seen_columns, unseen_columns
from r2m_jax.studies.stock import Model


def scaling(context: Context) -> Result:
    """Each family's methods on one specialist, and divided between two; the images they are tested on are the same."""
    halves = _halves(context)
    few, many = len(context.roles.families), len(halves)
    one, two = f", N = {few}", f", N = {many}"
    models = context.merged(context.specialists(), one) | context.merged(halves, two)
    names = list(context.recipe.mergers)
    scores, metrics, tables, figures = {}, {}, {}, {}
    sentences: list[str] = []
    parts = [("seen", seen_columns(context))]
    try:
        parts.append(("unseen", unseen_columns(context)))
    except Unavailable as reason:
        sentences.append(f"The unseen columns are left out: {reason}.")
    for kind, formed in parts:
        label = f"scaling_{kind}"
        scores[label], measured = context.measured(models, formed, label)
        groups = {f"N = {few}": [n + one for n in names], f"N = {many}": [n + two for n in names]}
        tables[label] = measured.table(f"AUC, {kind} columns", groups)
        metrics[kind] = measured.as_json()
        sentences += _said(context, measured, names, one, two, kind)
        figures[label] = _figure(measured, names, (one, two), tables[label], kind, (few, many))
    return Result(sentences, tables, figures, scores, metrics)


def _halves(context: Context) -> dict[str, Model]:
    team = {}
    for family, methods in context.roles.families.items():
        if len(methods) < 2:
            raise Unavailable(f"it needs two methods of each family, and {family} has one")
        for number in (1, 2):
            name = f"{family}{number}"
            team[name] = context.trained(name, Lesson(methods[number - 1 :: 2], (context.roles.domain,)))
    return team


def _said(context: Context, measured: Measured, names: list[str], one: str, two: str, kind: str) -> list[str]:
    moved = {name: abs(measured.mean(name + two) - measured.mean(name + one)) for name in names}
    least, most = min(names, key=lambda n: moved[n]), max(names, key=lambda n: moved[n])
    own, _ = context.readings()
    said = [
        f"From{one[1:]} to{two[1:]}, {least} moves least in the mean of the {kind} columns ({moved[least]:.3f}) and "
        f"{most} most ({moved[most]:.3f})."
    ]
    return said + [measured.compared(name + two, name + one, what=f"in the mean of the {kind} columns") for name in own]


def _figure(
    measured: Measured, names: list[str], suffixes: tuple[str, str], table: Table, kind: str, counts: tuple[int, int]
) -> Figure:
    columns = list(table.columns) if kind == "seen" else [MEAN if MEAN in table.columns else table.columns[-1]]
    rows = [(column, name) for column in columns for name in names]
    ends = [
        np.asarray([table.values[name + suffix][table.columns.index(column)] for column, name in rows])
        for suffix in suffixes
    ]
    title = f"AUC on {kind} columns, N = {counts[0]} to N = {counts[1]}"
    svg = dumbbell(
        [name for _, name in rows], ends[0], ends[1], title=title, names=(f"N = {counts[0]}", f"N = {counts[1]}"),
        groups=[column for column, _ in rows],
    )  # fmt: skip
    return Figure(svg, f"{title}: the longer a dumbbell, the more the merge depends on how methods are divided.")
