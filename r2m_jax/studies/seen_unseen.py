"""Every model on what the specialists were trained for, and on what none was trained for (R²M Tables 1 and 2)."""

from __future__ import annotations

import numpy as np

from r2m_jax.evaluation.plots import heat_map
from r2m_jax.evaluation.protocols import Protocol
from r2m_jax.evaluation.tables import Table
from r2m_jax.merging import explain
from r2m_jax.merging.diagnostics import as_json
from r2m_jax.studies.context import ALL_IN_ONE, ALONE, PRETRAINED, Context, Roster
from r2m_jax.studies.measuring import Measured
from r2m_jax.studies.result import Figure, Result, Unavailable
from r2m_jax.studies.roles import NEW, as_protocol
from r2m_jax.studies.words import against, ranking

SEEN, UNSEEN = "seen", "unseen"


def seen_columns(context: Context) -> Protocol:
    """A column per family in the domain trained in, on test images."""
    columns = context.roles.seen()
    return as_protocol(SEEN, "families that were learnt, on images no model saw", columns, context.test)


def unseen_columns(context: Context) -> Protocol:
    """A column per method nobody learnt, and one per family in every other domain.

    Raises:
        Unavailable: there is neither.
    """
    columns = context.roles.new(context.test)
    for domain in context.roles.others:
        columns += context.roles.seen(domain, group=domain)
    formed = as_protocol(UNSEEN, "methods and domains no model learnt", columns, context.test)
    if not formed.columns:
        raise Unavailable("it needs forgeries by methods or of domains that no specialist learnt (data.unseen)")
    return formed


def table1(context: Context) -> Result:
    """Every model on the seen columns."""
    roster, formed = context.roster(), seen_columns(context)
    scores, measured = context.measured(roster.models, formed, SEEN)
    family = {f"Specialist {name}": name for name in context.roles.families}
    own = {model: measured.mean(model, [column]) for model, column in family.items() if column in measured.columns}
    sentences = [
        "On its own family a specialist reaches "
        + ", ".join(f"{value:.3f} ({family[model]})" for model, value in own.items())
        + f"; over all families the best of them has a mean of {max(measured.means(list(family)).values()):.3f}.",
        *ranking(context, measured),
        *against(context, measured, [ALL_IN_ONE, PRETRAINED]),
    ]
    merges = context.merges(context.specialists())
    for name, diagnostics in merges.diagnostics.items():
        if name in roster.models:
            sentences += [f"{name}: {said}" for said in explain(diagnostics, list(merges.team))]
    result = _result(measured, roster, "Seen AUC", "AUC on the seen columns")
    found = {name: as_json(each) for name, each in merges.diagnostics.items()}
    return Result(
        sentences, {"table1": result[0]}, {"table1": result[1]}, {SEEN: scores},
        {**measured.as_json(), "diagnostics": found},
    )  # fmt: skip


def table2(context: Context) -> Result:
    """Every model on the unseen columns."""
    roster, formed = context.roster(), unseen_columns(context)
    scores, measured = context.measured(roster.models, formed, UNSEEN)
    specialists = measured.means(list(roster.groups[ALONE]))
    strongest = max(specialists, key=lambda name: specialists[name])
    rivals = [strongest, ALL_IN_ONE, PRETRAINED]
    sentences = [*ranking(context, measured), *against(context, measured, rivals)]
    groups = [group for group in dict.fromkeys(measured.groups) if group != NEW]
    if groups:
        sentences.append(
            f"Columns under {', '.join(groups)} are the learnt methods on another domain's images (the paper's "
            "Protocol 2); the others are methods nobody learnt."
        )
    result = _result(measured, roster, "Unseen AUC", "AUC on the unseen columns")
    return Result(sentences, {"table2": result[0]}, {"table2": result[1]}, {UNSEEN: scores}, measured.as_json())


def _result(measured: Measured, roster: Roster, title: str, drawn: str) -> tuple[Table, Figure]:
    table = measured.table(title, roster.groups, caption=f"Below each AUC its {measured.level:.0%} interval by clip.")
    rows = [name for names in roster.groups.values() for name in names]
    groups = [group for group, names in roster.groups.items() for _ in names]
    values = np.asarray([table.values[name] for name in rows])
    svg = heat_map(values, rows, list(table.columns), title=drawn, low=0.4, high=1.0, row_groups=groups)
    return table, Figure(svg, f"{drawn}; 0.5 is chance.")
