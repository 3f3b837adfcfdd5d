"""CoRIT and a linear probe of the class token: over families, and from one family to the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from r2m_jax.evaluation.plots import bars, heat_map
from r2m_jax.models.corit import CoritSettings
from r2m_jax.studies.corit.comparing import UNSEEN, Cell, compare, scored, seen_and_unseen
from r2m_jax.studies.corit.frozen import PLAIN, Frozen
from r2m_jax.studies.result import Figure, Result, Unavailable

CORIT, PROBE, BOTH_LAYERS = "CoRIT", "Linear probe", "Probe of both layers"
BASE = "base"


def rivals(context: Frozen) -> dict[str, CoritSettings]:
    """The linear probe, the same on class tokens of layers L' and L, and CoRIT."""
    main = context.recipe.settings.resolved(context.base.config)
    plain = replace(PLAIN, feature_norm=main.feature_norm)
    return {PROBE: plain, BOTH_LAYERS: replace(plain, hri=True, fusion_layer=main.fusion_layer), CORIT: main}


def against_probe(context: Frozen) -> Result:
    """Families that were learnt and families left out, with intervals and what seeds change."""
    lessons = context.lessons()
    logits = {name: scored(context, settings, lessons) for name, settings in rivals(context).items()}
    found = compare(context, logits, list(lessons), seen_and_unseen(context), "corit_probe")
    measured, rows = found.measured, list(logits)
    table = found.as_table("AUC", {"Frozen tower": rows}, "Means over seeds, with the interval of the mean below.")
    headings = list(table.columns)[:-1]
    ends = [(table.interval(row, at) or (np.nan, np.nan)) for at in range(len(headings)) for row in rows]
    svg = bars(
        rows * len(headings), [table.values[row][at] for at in range(len(headings)) for row in rows],
        title="CoRIT against a linear probe", intervals=([low for low, _ in ends], [high for _, high in ends]),
        groups=[heading for heading in headings for _ in rows], start=0.5, high=1.0,
    )  # fmt: skip
    unseen = [c for c, g in zip(measured.columns, measured.groups, strict=True) if g == UNSEEN]
    sentences = [measured.compared(CORIT, PROBE)]
    if unseen:
        sentences.append(measured.compared(CORIT, PROBE, unseen, "on families left out"))
    sentences += [measured.compared(CORIT, PROBE, [column], f"on {column}") for column in measured.columns]
    sentences.append(measured.compared(CORIT, BOTH_LAYERS))
    sentences += [
        f"{name}: mean AUC by seed {', '.join(f'{value:.3f}' for value in found.by_seed[place])}."
        for place, name in enumerate(measured.models)
    ]
    figure = Figure(svg, "Bars begin at chance; intervals are over clips, for the mean over seeds.")
    return Result(
        sentences, {"corit_probe": table}, {"corit_probe": figure}, {"corit_probe": found.table}, found.as_json()
    )


def backbones(context: Frozen) -> Result:
    """CoRIT and the linear probe on several towers, each with its own processing of images.

    Raises:
        Unavailable: no further tower is given.
    """
    given = context.recipe.backbones
    if not given:
        raise Unavailable("it needs further towers (backbones.NAME=DIR)")
    lessons, logits, groups = context.lessons(), {}, {}
    for shown, path in ((BASE, None), *given.items()):
        own = context if path is None else context.on(shown, path)
        for name, settings in rivals(own).items():
            if name != BOTH_LAYERS:
                logits[f"{name}, {shown}"] = scored(own, settings, lessons)
        groups[shown] = [f"{PROBE}, {shown}", f"{CORIT}, {shown}"]
    found = compare(context, logits, list(lessons), seen_and_unseen(context), "corit_backbones")
    sentences = [found.measured.compared(f"{CORIT}, {shown}", f"{PROBE}, {shown}") for shown in groups]
    means = [found.measured.mean(row) for rows in groups.values() for row in rows]
    svg = bars(
        [row.partition(", ")[0] for rows in groups.values() for row in rows], means, start=0.5, high=1.0,
        title="Mean AUC by tower", groups=[shown for shown, rows in groups.items() for _ in rows],
    )  # fmt: skip
    return Result(
        sentences, {"corit_backbones": found.as_table("AUC by tower", groups)},
        {"corit_backbones": Figure(svg, "Mean over all columns; the table has intervals.")},
        {"corit_backbones": found.table}, found.as_json(),
    )  # fmt: skip


def across_families(context: Frozen) -> Result:
    """Heads that learnt one family, on every family.

    Raises:
        Unavailable: there is one family only.
    """
    if len(context.names) < 2:
        raise Unavailable("it needs two forgery families or more")
    lessons = {name: (name,) for name in context.names}
    cells = [Cell(learnt, tested, f"{learnt} → {tested}", learnt) for learnt in lessons for tested in context.names]
    logits = {name: scored(context, settings, lessons) for name, settings in rivals(context).items()}
    found = compare(context, logits, list(lessons), cells, "corit_families")
    measured, rows = found.measured, list(logits)
    own = [cell.name for cell in cells if cell.lesson == cell.family]
    other = [cell.name for cell in cells if cell.lesson != cell.family]
    table = found.as_table("AUC by family learnt → tested", {"Frozen tower": rows})
    stacked = np.concatenate([measured.rows([name]).reshape(len(lessons), -1) for name in rows])
    svg = heat_map(
        stacked, [name for _ in rows for name in lessons], list(context.names), low=0.4, high=1.0,
        title="From one family (rows) to the others", row_groups=[row for row in rows for _ in lessons],
    )  # fmt: skip
    sentences = [
        measured.compared(CORIT, PROBE, other, "on families that were not learnt"),
        measured.compared(CORIT, PROBE, own, "on the family that was learnt"),
        *(
            f"{name}: {measured.mean(name, own):.3f} on the family learnt, {measured.mean(name, other):.3f} on others."
            for name in rows
        ),
    ]
    figure = Figure(svg, "AUC; rows are the family learnt, columns the family tested. 0.5 is chance.")
    return Result(
        sentences, {"corit_families": table}, {"corit_families": figure}, {"corit_families": found.table},
        found.as_json(),
    )  # fmt: skip
