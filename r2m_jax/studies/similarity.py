"""How far specialists agree with their average on real and forged images (R²M §1, Fig. 2)."""

from __future__ import annotations

import csv
import io

import numpy as np

from r2m_jax.evaluation.plots import violins
from r2m_jax.evaluation.probe import KINDS, OTHER, OWN, REAL, cosines, probe
from r2m_jax.evaluation.tables import Table
from r2m_jax.recipes.studying import Merger
from r2m_jax.studies.context import Context
from r2m_jax.studies.result import Figure, Result
from r2m_jax.studies.roles import inside
from r2m_jax.studies.seen_unseen import seen_columns

FILE = "scores/probe.csv"


def similarity(context: Context) -> Result:
    """Cosines of pre-logit features of each specialist and the weight average."""
    team = context.specialists()
    average = context.merges(team).model("Weight averaging", Merger(method="weight_averaging"))
    mask = inside(seen_columns(context), context.test)
    records = [record for record, wanted in zip(context.test, mask, strict=True) if wanted]
    found = context.features({**team, "Weight averaging": average}, mask, "probe")
    stack = np.stack([found[name] for name in team])
    measured = probe(stack, found["Weight averaging"], records, {family: family for family in team})
    values = {family: [measured.found[family][kind].mean for kind in KINDS] for family in team}
    drops = measured.own_drop()
    holds = [family for family, lower in drops.items() if lower > 0]
    sentences = [
        f"{family}: mean cosine {', '.join(f'{kinds[kind].mean:.3f} on {kind}' for kind in KINDS)}."
        for family, kinds in measured.found.items()
    ]
    sentences.append(
        "The paper's pattern, least similarity on forgeries of the specialist's own family, "
        + (f"holds for {', '.join(holds)}" if holds else "holds for none")
        + f" ({len(holds)} of {len(drops)} specialists)."
    )
    similar = cosines(stack, found["Weight averaging"])
    table = Table(
        "Mean cosine to the weight average", list(KINDS), {"Specialists": list(team)}, values, source=FILE,
        heading="Specialist", mark_best=False,
    )  # fmt: skip
    title = "Similarity of specialists to their weight average"
    svg = violins(measured.samples(), title=title, label="cosine of pre-logit features")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["video", "label", "family", "method", "specialist", "images_of", "cosine"])
    for row, family in enumerate(team):
        for record, value in zip(records, similar[row].tolist(), strict=True):
            kind = REAL if not record.label else OWN if record.family == family else OTHER
            writer.writerow([record.video, record.label, record.family, record.method, family, kind, repr(value)])
    rows = [{key: None if value != value else value for key, value in row.items()} for row in measured.rows()]
    metrics = {"source": FILE, "rows": rows, "own_drop": drops}
    caption = f"{title}: bars are quartiles, markers means; {FILE} has every image."
    return Result(
        sentences, {"probe": table}, {"probe": Figure(svg, caption)}, metrics=metrics, files={FILE: buffer.getvalue()}
    )
