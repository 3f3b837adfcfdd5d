"""CoRIT and linear probes on perturbed images (arXiv 2603.24057, Fig. 8 and equation 26)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from r2m_jax.evaluation.protocols import Column, Selector
from r2m_jax.evaluation.scores import ScoreTable
from r2m_jax.studies.corit.against_probe import CORIT, PROBE, rivals
from r2m_jax.studies.corit.comparing import over_seeds, trained
from r2m_jax.studies.corit.frozen import ALL, Frozen
from r2m_jax.studies.corit.heads import margins
from r2m_jax.studies.measuring import measure, signed
from r2m_jax.studies.perturbed import conditions_of, curves, evenly_of_both, rav_metrics, rav_table, under_each
from r2m_jax.studies.result import Result
from r2m_jax.studies.roles import as_protocol


def robustness(context: Frozen) -> Result:
    """Heads trained on clean images of all families, tested on clean and perturbed ones.

    What is perturbed is the image; it is self-blended afterwards, as an image that arrives perturbed would be.
    """
    chosen, models = context.recipe.robustness, rivals(context)
    records, conditions = evenly_of_both(context.test, chosen.images), conditions_of(chosen)
    where = {id(record): place for place, record in enumerate(context.records)}
    places = [where[id(record)] for record in records]
    logits: dict[str, np.ndarray] = {}
    for name, settings in models.items():
        clean = context.z(settings)
        heads = trained(context, settings, clean[~context.tested], {ALL: context.names})
        parts = [margins(heads, clean[places])]
        for _, kind, level in conditions[1:]:
            parts.append(margins(heads, context.z(settings, records=records, condition=(kind, level))))
        found = np.concatenate(parts, axis=2)[0]
        logits |= {f"{name}, seed {seed}": row for seed, row in enumerate(found)}
    # A condition is told by the domain: an image keeps its clip under all of them, so that draws are paired.
    table = ScoreTable([replace(record, domain=name) for name, _, _ in conditions for record in records], logits)
    columns = under_each(conditions, [Column(family, Selector(families=(family,))) for family in context.names])
    formed = as_protocol("robustness", "families, perturbed", columns, table.records)
    single = measure(table, formed, context.recipe.intervals, context.cited("corit_robustness"))
    compared = over_seeds(table, single, tuple(models), context.recipe.seeds)
    measured, names = compared.measured, list(models)
    shown = rav_table(measured, {"Frozen tower": names}, chosen)
    perturbed_columns = [c for c, g in zip(measured.columns, measured.groups, strict=True) if g != conditions[0][0]]
    sentences = [
        measured.compared(CORIT, PROBE, perturbed_columns, "over all perturbed images"),
        *(
            f"{name}: mean RAV {signed(shown.values[name][-1])} from a clean AUC of {shown.values[name][0]:.3f}."
            for name in names
        ),
        "A model that is near chance on clean images has little to lose: read RAV beside the clean AUC.",
    ]
    return Result(
        sentences, {"corit_robustness": shown}, curves(measured, names, chosen, "corit_robustness"),
        {"corit_robustness": table}, rav_metrics(measured),
    )  # fmt: skip
