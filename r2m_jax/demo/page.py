"""What the demo leaves behind: scores, metrics, tables and report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from r2m_jax.checkpoints.provenance import versions
from r2m_jax.data.forge import FAMILY_NAMES, METHODS
from r2m_jax.demo.recipe import DemoRecipe
from r2m_jax.evaluation import ScoreTable, family_auc
from r2m_jax.evaluation import report as page
from r2m_jax.evaluation.plots import contact_sheet, heat_map
from r2m_jax.evaluation.retention import drop
from r2m_jax.evaluation.tables import Table
from r2m_jax.merging import MergeDiagnostics, explain
from r2m_jax.merging.diagnostics import as_json

WORST_DROP = "worst drop"


@dataclass
class Outcome:
    """Everything the report is written from.

    Attributes:
        table: scores of all models on the held-out images.
        groups: heading to model names, in the order shown.
        families: columns.
        diagnostics: of the R²M merges, by model name.
        photographs: names per split.
        samples: rows of held-out images: real, then one row per family, uint8 [n, h, w, 3].
        recipe: settings.
        seconds: wall time until evaluation was done.
    """

    table: ScoreTable
    groups: Mapping[str, Sequence[str]]
    families: Sequence[str]
    diagnostics: Mapping[str, MergeDiagnostics]
    photographs: Mapping[str, Sequence[str]]
    samples: Sequence[np.ndarray]
    recipe: DemoRecipe
    seconds: float

    def aucs(self) -> dict[str, dict[str, float]]:
        """Image-level AUC per model and family, with the macro mean."""
        return family_auc(self.table)


def write_results(outcome: Outcome, folder: Path) -> None:
    """Write scores.csv, metrics.json, table.md, table.tex and report.html."""
    aucs = outcome.aucs()
    auc_table = _auc_table(outcome, aucs)
    outcome.table.write(folder / "scores.csv", relative_to=folder)
    metrics = {"image_auc": aucs, "diagnostics": {k: as_json(v) for k, v in outcome.diagnostics.items()}}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(auc_table.markdown(), encoding="utf-8")
    (folder / "table.tex").write_text(auc_table.latex(), encoding="utf-8")
    (folder / "report.html").write_text(_html(outcome, aucs, auc_table), encoding="utf-8")


def _auc_table(outcome: Outcome, aucs: Mapping[str, Mapping[str, float]]) -> Table:
    columns = [*outcome.families, "mean"]
    specialists = outcome.groups["Specialists"]
    values = {}
    for group, models in outcome.groups.items():
        for model in models:
            worst = math.nan if group == "Specialists" else drop(aucs, model, specialists, outcome.families)["max"]
            values[model] = [*(aucs[model][column] for column in columns), worst]
    return Table("AUC", [*columns, WORST_DROP], outcome.groups, values, lower_is_better=frozenset({WORST_DROP}))


def _html(outcome: Outcome, aucs: Mapping[str, Mapping[str, float]], table: Table) -> str:
    labels = outcome.table.labels
    real, fake = int((labels == 0).sum()), int((labels == 1).sum())
    merged = outcome.groups["Merged, without training"]
    before = outcome.groups["Before fine-tuning"][0]
    best = max(merged, key=lambda name: aucs[name]["mean"])
    lead = (
        f"{len(outcome.families)} specialists, each fine-tuned on one forgery family, merged without training. "
        f"The best merge here, {best}, reaches a mean AUC of {aucs[best]['mean']:.3f}; the pretrained encoder with "
        f"the same averaged head reaches {aucs[before]['mean']:.3f}."
    )
    names = [name.removeprefix("Specialist ") for name in outcome.groups["Specialists"]]
    shown = [model for models in outcome.groups.values() for model in models]
    grid = np.asarray([[aucs[model][family] for family in [*outcome.families, "mean"]] for model in shown])
    sections = [
        page.Section(
            "Image-level AUC on held-out photographs",
            page.paragraphs(
                [
                    f"{real} real patches and {fake} forgeries, all from photographs no model was trained on "
                    f"({', '.join(outcome.photographs['test'])}). Each family's forgeries are ranked against all "
                    "real patches; worst drop is the largest loss to the best specialist of a family (smaller is "
                    "better). Bold marks the best of a group. Computed from scores.csv."
                ]
            )
            + page.scrolling(table.html())
            + page.drawing(
                heat_map(
                    grid,
                    shown,
                    [*outcome.families, "mean"],
                    title="AUC by model and family",
                    low=0.4,
                    high=1.0,
                ),
                "The same numbers in colour; 0.5 is chance.",
            ),
        ),
        page.Section("What the merges say about themselves", _diagnostics(outcome, names)),
        page.Section("The data", _data(outcome)),
        page.Section(
            "How to read this",
            page.paragraphs(
                [
                    "The encoder is a 3.6-million-parameter stand-in for CLIP and the forgeries are made by simple "
                    "published procedures on patches of a few photographs. The page shows that the whole path "
                    "works, from images to merged models. It does not rank methods: differences of a few "
                    "hundredths are within the noise of one seed and one set of photographs."
                ]
            ),
        ),
        page.Section(
            "Reproduce",
            page.preformatted(yaml.safe_dump(outcome.recipe.model_dump(), sort_keys=False))
            + page.paragraphs(
                [
                    f"{outcome.seconds:.0f} s. " + ", ".join(f"{k} {v}" for k, v in versions().items()) + ". "
                    "Models are in models/, one directory each; `r2m info` describes them."
                ]
            ),
        ),
    ]
    return page.page("r2m demo: specialists, merged", lead, sections)


def _diagnostics(outcome: Outcome, names: Sequence[str]) -> str:
    parts = []
    for model, diagnostics in outcome.diagnostics.items():
        norms = ", ".join(
            f"{name} {norm:.2f}" for name, norm in zip(names, np.asarray(diagnostics.task_norms), strict=True)
        )
        facts = [
            f"Task-vector norms: {norms}.",
            f"Core {float(diagnostics.core_ratio):.2f} of the mean task vector; merged residual "
            f"{float(diagnostics.residual_ratio):.2f} of the specialists' residuals; distance from the pretrained "
            f"weights {float(diagnostics.update_ratio):.2f} of the mean task vector.",
            *explain(diagnostics, names),
        ]
        parts.append(page.paragraphs([f"{model}:"]) + page.bullets(facts))
    return "".join(parts)


def _data(outcome: Outcome) -> str:
    sheet = contact_sheet(outcome.samples)
    rows = ", ".join(["real", *(FAMILY_NAMES[family] for family in outcome.families)])
    used = outcome.recipe.methods
    methods = [
        f"{family} ({FAMILY_NAMES[family]}): "
        + "; ".join(f"{method.replace('_', ' ')}, {METHODS[method].summary}" for method in used[family])
        for family in outcome.families
    ]
    trained_on = f"Trained on patches of {', '.join(outcome.photographs['train'])}."
    return (
        page.picture(sheet, f"Sample patches; rows: {rows}", f"Held-out patches. Rows: {rows}.")
        + page.paragraphs([trained_on])
        + page.bullets(methods)
    )
