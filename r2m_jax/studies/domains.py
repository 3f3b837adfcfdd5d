"""Specialists whose real images come from different domains, merged into one (R²M §4.4, Table 3)."""

from __future__ import annotations

import numpy as np

from r2m_jax.evaluation.plots import heat_map
from r2m_jax.studies.context import ALONE, MERGED, Context
from r2m_jax.studies.result import Figure, Result, Unavailable
from r2m_jax.studies.roles import as_protocol
from r2m_jax.studies.words import ranking


def domains(context: Context) -> Result:
    """Every family in two domains: six specialists, merged, on six columns."""
    roles = context.roles
    if not roles.trainable:
        raise Unavailable("it needs a second domain with real and forged training images of every family")
    pair = (roles.domain, roles.trainable[0])
    team = {f"{family} {d}": context.specialist(family, d) for d in pair for family in roles.families}
    columns = [column for d in pair for column in roles.seen(d, group=d)]
    formed = as_protocol("domains", "every family in two domains", columns, context.test)
    alone = {f"Specialist {name}": model for name, model in team.items()}
    merged = context.merged(team)
    table, measured = context.measured(alone | merged, formed, "domains")
    groups = {ALONE: list(alone), MERGED: list(merged)}
    own = [name for name in team if name in measured.columns]
    family = {f"{family} {d}": family for d in pair for family in roles.families}
    kept = [measured.mean(f"Specialist {name}", [name]) for name in own]
    foreign = [
        measured.mean(f"Specialist {name}", [column])
        for name in own
        for column in own
        if column != name and family[column] == family[name]
    ]
    sentences = [
        f"Specialists reach {np.mean(kept):.3f} on average on their own column and {np.mean(foreign):.3f} on their "
        "family in the other domain.",
        *ranking(context, measured),
    ]
    rows = [*alone, *merged]
    kinds = [ALONE] * len(alone) + [MERGED] * len(merged)
    found = measured.table("AUC on two domains", groups)
    svg = heat_map(
        measured.rows(rows), rows, list(measured.columns), title="Specialists of two domains, merged",
        low=0.4, high=1.0, row_groups=kinds, column_groups=list(measured.groups),
    )  # fmt: skip
    return Result(
        sentences, {"domains": found}, {"domains": Figure(svg, "AUC; columns are families in each domain.")},
        {"domains": table}, measured.as_json(),
    )  # fmt: skip
