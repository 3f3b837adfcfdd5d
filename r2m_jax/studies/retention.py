"""What merging keeps and what it wins: DROP, GAIN, and the trade between them (R²M Figs. 4 and 5, Tables A.2, A.3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from r2m_jax.evaluation.plots import heat_map, pareto
from r2m_jax.evaluation.retention import drop_matrix, gain_matrix, non_dominated
from r2m_jax.evaluation.scores import ScoreTable
from r2m_jax.evaluation.tables import Table
from r2m_jax.studies.context import ALONE, JOINT, MERGED, Context, Roster
from r2m_jax.studies.measuring import MEAN, Measured
from r2m_jax.studies.result import Figure, Result, Unavailable
from r2m_jax.studies.seen_unseen import SEEN, UNSEEN, seen_columns, unseen_columns

Function = Callable[[np.ndarray], np.ndarray]


def against_best(
    matrix: Callable[[np.ndarray, np.ndarray], np.ndarray], measured: Measured, roster: Roster
) -> Function:
    """DROP or GAIN against the best specialist of each column, as a function of AUCs [models, columns, …].

    In a resample the best specialist is that resample's, so the intervals hold its choice too.
    """
    places = [measured.models.index(name) for name in roster.groups[ALONE]]
    return lambda auc: matrix(auc, auc[places])


def retention(context: Context) -> Result:
    """DROP on the seen columns, GAIN on the unseen ones, against the best specialist of each column."""
    roster = context.roster()
    shown = {name: roster.groups[name] for name in (ALONE, JOINT, MERGED) if name in roster.groups}
    seen_scores, seen = context.measured(roster.models, seen_columns(context), SEEN)
    drops = against_best(drop_matrix, seen, roster)
    worst = {"DROP_max": partial(np.max, axis=1)}
    lost = seen.tabulate(
        "DROP", shown, drops, lower_is_better=True, extra=worst,
        caption="Best specialist of the column minus the model; smaller is better, below zero the model is better.",
    )  # fmt: skip
    merged = list(roster.groups[MERGED])
    least = min(merged, key=lambda name: lost.values[name][lost.columns.index("DROP_max")])
    kept = min(merged, key=lambda name: lost.values[name][lost.columns.index(MEAN)])
    worst_case = f"DROP_max {_of(lost, least, 'DROP_max')}"
    sentences = [
        f"Of the mergers, {kept} loses least to the best specialists on average (DROP {_of(lost, kept, MEAN)})"
        + (
            f", also in its worst column ({worst_case})."
            if least == kept
            else f", and {least} in its worst column ({worst_case})."
        )
    ]
    own, others = context.readings()
    rival = min(others, key=lambda name: _value(lost, name, MEAN)) if others else None
    if rival:
        sentences += [seen.compared(name, rival, what="in mean AUC on the seen columns") for name in own]
    tables, figures = {"drop": lost}, {"drop": _map(lost, merged, roster, "lower", "DROP of the seen columns")}
    scores, metrics = {SEEN: seen_scores}, {"drop": _numbers(lost)}
    try:
        unseen_scores, unseen = context.measured(roster.models, unseen_columns(context), UNSEEN)
    except Unavailable as reason:
        sentences.append(f"GAIN is left out: {reason}.")
        return Result(sentences, tables, figures, scores, metrics)
    won = unseen.tabulate(
        "GAIN", shown, against_best(gain_matrix, unseen, roster),
        caption="The model minus the best specialist of the column; larger is better.",
    )  # fmt: skip
    ahead = [name for name in merged if _value(won, name, MEAN) > 0]
    best = max(merged, key=lambda name: _value(won, name, MEAN))
    sentences.append(
        f"On unseen columns {best} has the highest mean GAIN, {_of(won, best, MEAN)}; {len(ahead)} of {len(merged)} "
        "mergers have a positive one."
    )
    tables["gain"], scores[UNSEEN], metrics["gain"] = won, unseen_scores, _numbers(won)
    figures["gain"] = _map(won, merged, roster, "higher", "GAIN of the unseen columns")
    return Result(sentences, tables, figures, scores, metrics)


def trade(context: Context) -> Result:
    """Mean DROP against mean GAIN of every model that is no specialist."""
    roster = context.roster()
    names = [*roster.groups.get(JOINT, ()), *roster.groups[MERGED]]
    tables: dict[str, ScoreTable] = {}
    tables[SEEN], seen = context.measured(roster.models, seen_columns(context), SEEN)
    tables[UNSEEN], unseen = context.measured(roster.models, unseen_columns(context), UNSEEN)
    drops = against_best(drop_matrix, seen, roster)(seen.auc)
    gains = against_best(gain_matrix, unseen, roster)(unseen.auc)
    x = np.asarray([drops[seen.models.index(name)].mean() for name in names])
    y = np.asarray([gains[unseen.models.index(name)].mean() for name in names])
    worst = [float(drops[seen.models.index(name)].max()) for name in names]
    front = [name for name, free in zip(names, non_dominated(x, y), strict=True) if free]
    table = Table(
        "Trade-off", ["mean DROP", "DROP_max", "mean GAIN"],
        {group: list(roster.groups[group]) for group in (JOINT, MERGED) if group in roster.groups},
        {name: [float(x[i]), worst[i], float(y[i])] for i, name in enumerate(names)},
        lower_is_better=frozenset({"mean DROP", "DROP_max"}), source=seen.source,
        caption=f"GAIN is computed from {unseen.source}.",
    )  # fmt: skip
    beaten = [name for name in context.readings()[0] if name not in front]
    sentences = [f"No model has both a smaller mean DROP and a larger mean GAIN than {_listed(front)}."]
    if beaten:
        sentences.append(f"{_listed(beaten)} {'is' if len(beaten) == 1 else 'are'} beaten in both by one of these.")
    svg = pareto(names, x, y, title="Mean DROP and mean GAIN")
    caption = "Lower DROP is left, higher GAIN is up; filled markers are beaten by no model in both."
    metrics = {"source": [seen.source, unseen.source], "models": _numbers(table)["values"]}
    return Result(sentences, {"pareto": table}, {"pareto": Figure(svg, caption)}, tables, metrics)


def _map(table: Table, models: list[str], roster: Roster, better: str, title: str) -> Figure:
    rows = [*roster.groups.get(JOINT, ()), *models]
    values = np.asarray([table.values[name] for name in rows])
    svg = heat_map(values, rows, list(table.columns), title=title, better=better)  # type: ignore[arg-type]
    return Figure(svg, f"{title}, against the best specialist of each column; blue is better than it.")


def _numbers(table: Table) -> dict[str, object]:
    return {
        "source": table.source,
        "columns": list(table.columns),
        "values": {name: dict(zip(table.columns, values, strict=True)) for name, values in table.values.items()},
    }


def _value(table: Table, model: str, column: str) -> float:
    return table.values[model][table.columns.index(column)]


def _of(table: Table, model: str, column: str) -> str:
    low, high = table.interval(model, table.columns.index(column)) or (float("nan"), float("nan"))
    return f"{_value(table, model, column):.3f}, interval {low:.3f} to {high:.3f}".replace("-", "−")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
