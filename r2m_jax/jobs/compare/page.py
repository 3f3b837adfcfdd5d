"""The page of ``r2m compare``: task vectors, the readings of R²M, the theory in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import yaml

from r2m_jax.evaluation.report import Section, bullets, drawing, page, paragraphs, preformatted, tabulated
from r2m_jax.evaluation.tables import Table
from r2m_jax.jobs.compare.task_vectors import figures, tables
from r2m_jax.jobs.compare.theory import OnImages
from r2m_jax.merging.diagnostics import MergeDiagnostics
from r2m_jax.merging.interference import TaskVectorReport
from r2m_jax.merging.r2m import R2M
from r2m_jax.merging.screen import Finding
from r2m_jax.merging.theory import Recovery, Tail
from r2m_jax.recipes.comparing import CompareRecipe


@dataclass(frozen=True)
class Reading:
    """One reading of R²M.

    Attributes:
        method: its settings.
        diagnostics: what it makes of the specialists.
        sentences: what it says about itself.
    """

    method: R2M
    diagnostics: MergeDiagnostics
    sentences: tuple[str, ...]

    @property
    def name(self) -> str:
        """In words: the switches that differ from the paper's."""
        own = self.method
        parts: list[str] = [own.centering]
        parts += [] if own.scope == "global" else [f"scope {own.scope}"]
        parts += [] if own.norm_matching == "global" else ["norms per leaf"]
        parts += [] if own.origin == "theta0" else ["from θ_avg"]
        parts += [] if own.eta == "eff" else ["η of eq. 6"]
        return ", ".join(parts)


@dataclass(frozen=True)
class Found:
    """Everything a comparison measured.

    Attributes:
        recipe: what was asked for.
        report: of the task vectors.
        findings: of the screen.
        readings: of R²M.
        recoveries: R2 of the task matrix, centred and not.
        tail: what truncation discards of the residuals.
        on_images: R1, R3 and Proposition 1; None without images.
    """

    recipe: CompareRecipe
    report: TaskVectorReport
    findings: tuple[Finding, ...]
    readings: tuple[Reading, ...]
    recoveries: dict[str, Recovery]
    tail: Tail
    on_images: OnImages | None

    def sentences(self) -> list[str]:
        """What stands out."""
        said = [f"warning: {finding.sentence}" for finding in self.findings]
        said = said or ["The screen found nothing odd about the specialists."]
        for reading in self.readings:
            if reading.name == reading.method.centering:
                said += [f"R²M, {reading.name}: {sentence}" for sentence in reading.sentences]
        return said + list(self.on_images.notes if self.on_images else ())


def page_of(found: Found) -> str:
    """The whole page."""
    names = ", ".join(found.report.names)
    of_vectors, of_theory = tables(found.report), theory_tables(found)
    drawn = [drawing(svg, caption) for caption, svg in figures(found.report).items()]
    many = len(found.report.names) > 1
    sections = [
        Section("What stands out", bullets(found.sentences())),
        Section(
            "Task vectors",
            tabulated(of_vectors["specialists"]) + (tabulated(of_vectors["cosines"]) if many else "") + "".join(drawn),
        ),
        *([Section("By depth", tabulated(of_vectors["layers"]))] if "layers" in of_vectors else []),
        Section("Readings of R²M", tabulated(of_theory["readings"])),
        Section("R2: does one axis stand out?", tabulated(of_theory["recovery"])),
        *(_on_images(found.on_images, of_theory) if found.on_images else []),
        Section("Leaf by leaf", tabulated(of_vectors["leaves"])),
        Section("Made by", preformatted(yaml.safe_dump(found.recipe.model_dump(mode="json"), sort_keys=False))),
    ]
    measured = (
        "" if found.on_images else " Without images (--data), R1, R3 and Proposition 1 of the paper are not measured."
    )
    lead = (
        f"{names}, fine-tuned from {found.recipe.base}. Task vectors are the specialists' weights minus the base's. "
        f"compare.json has every number, tables/ the tables as Markdown and LaTeX.{measured}"
    )
    return page(f"Comparison of {names}", lead, sections)


def _on_images(on_images: OnImages, of_theory: dict[str, Table]) -> list[Section]:
    counted = [f"{task}: {real} real, {fake} fake images" for task, (real, fake) in on_images.counts.items()]
    first = tabulated(of_theory["linearity"])
    if on_images.counts:
        first += tabulated(of_theory["separation"])
    sections = [
        Section("R1: are features linear in the weights?", paragraphs(["; ".join(counted)] if counted else []) + first),
        Section("R3: does the residual leave the axis alone?", tabulated(of_theory["off_axis"])),
    ]
    if on_images.propositions:
        body = tabulated(of_theory["proposition"]) + tabulated(of_theory["proposition_tasks"])
        sections.append(Section("Proposition 1: does one head serve all?", body))
    return sections


def theory_tables(found: Found) -> dict[str, Table]:
    """Tables of the readings and of the theory by name; those that need images are left out without."""
    made = {"readings": _readings(found), "recovery": _recovery(found)}
    measured = found.on_images
    if measured is None:
        return made
    made |= {"linearity": _linearity(measured), "off_axis": _off_axis(measured, found.tail)}
    if measured.separations:
        made["separation"] = _separation(measured)
    if measured.propositions:
        made |= {"proposition": _proposition(measured), "proposition_tasks": _on_tasks(measured)}
    return made


def _readings(found: Found) -> Table:
    groups: dict[str, list[str]] = {}
    values = {}
    for reading in found.readings:
        groups.setdefault(reading.method.centering, []).append(reading.name)
        d = reading.diagnostics
        values[reading.name] = [
            float(d.core_ratio), float(d.residual_ratio), float(d.update_ratio),
            *np.asarray(d.core_coefficients, np.float64).tolist(),
        ]  # fmt: skip
    return Table(
        "Readings of R²M", ["core", "residual", "update", *(f"core on {name}" for name in found.report.names)],
        groups, values,
        caption=f"At rank {found.recipe.rank} and α = {found.readings[0].method.alpha}. Core: its length over that of "
        "the mean task vector. Residual: its length over the mean length of the truncated residuals. Update: distance "
        "of the merge from θ₀ over the length of the mean task vector. Core on …: coefficients of the core on the task "
        "vectors; a negative one moves away from that specialist.",
        heading="Reading", mark_best=False,
    )  # fmt: skip


def _recovery(found: Found) -> Table:
    rows = {}
    for name, each in found.recoveries.items():
        second = float(each.singular_values[1]) if len(each.singular_values) > 1 else math.nan
        rows[name] = [float(each.singular_values[0]), second, each.gap, each.gamma, each.gamma_floor, each.shared]
    return Table(
        "R2: the task matrix", ["σ₁", "σ₂", "gap", "γ", "σ₂/σ₁", "of the mean"],
        {"Task matrix": list(rows)}, {name: _finite(row) for name, row in rows.items()},
        caption="γ bounds how far the leading direction is from the shared axis (A.10): from 1 on it says nothing, a "
        "dash is no bound at all, and two centred specialists give 0 whatever they are. Of the mean: the share of the "
        "mean task vector on the leading direction.",
        heading="Rows", mark_best=False,
    )  # fmt: skip


def _linearity(measured: OnImages) -> Table:
    rows = {
        name: [each.step, each.change, each.linear, each.remainder, each.relative, each.constant, measured.orders[name]]
        for name, each in measured.remainders.items()
    }
    return Table(
        "R1: features of single images",
        ["step", "change", "linear part", "remainder", "relative", "C", "order"],
        {"Models": list(rows)}, {name: _finite(row) for name, row in rows.items()},
        caption="Root mean squares over the images, in the units of the features; step is the length of the change of "
        "the weights. Relative: remainder over change, 0 where the features are linear and 1 where the linear part "
        "explains nothing; more than 1 where the features do not go on as they start. C: what eq. 10 needs at this "
        "step. Order: the power of the step that the remainder grows with, 2 where the step is small, near 1 where the "
        "linear part outgrows the change.",
        mark_best=False,
    )  # fmt: skip


def _separation(measured: OnImages) -> Table:
    tasks = list(measured.separations)
    models = list(measured.remainders)
    return Table(
        "R1: separation vectors", tasks, {"Models": models},
        {name: _finite([measured.separations[task][name].relative for task in tasks]) for name in models},
        caption="Relative remainder of the difference of class means (eqs. 9 and 10), task by task.",
        mark_best=False,
    )  # fmt: skip


def _off_axis(measured: OnImages, tail: Tail) -> Table:
    tasks = list(next(iter(measured.off_axis.values())).tasks)
    return Table(
        "R3: the residual off the axis",
        ["κ", "tail energy", "‖H‖", "bound of ε'", "ε', all images", *(f"ε', {task}" for task in tasks)],
        {"Merges": list(measured.off_axis)},
        {
            name: _finite(
                [each.kappa, tail.tail_energy, measured.response_norm, each.bound, each.all_images]
                + [each.tasks[task] for task in tasks]
            )
            for name, each in measured.off_axis.items()
        },
        caption="ε' is what of the residual's effect on the separation vector is off the axis of the core's effect, "
        "over that effect (eq. 12). The bound is A.20 on all images with the truncation's C; it takes for granted that "
        "the core's effect is the axis, and ‖H‖ is found by a few power steps, from below.",
        heading="Merge", mark_best=False,
    )  # fmt: skip


def _proposition(measured: OnImages) -> Table:
    rows = {}
    for name, each in measured.propositions.items():
        rows[name] = [
            each.epsilon, float(np.nanmax(each.separation_angles)), float(sum(each.same_side)),
            float(np.nanmax(each.head_angles)), _largest(each.head_errors), each.auc_loss,
            float(np.min(each.rank_correlations)),
        ]  # fmt: skip
    return Table(
        "Proposition 1",
        ["ε", "angle of separations", "tasks on u's side", "angle of heads", "error of eq. 15", "AUC lost", "least ρ"],
        {"Merges": list(rows)}, {name: _finite(row) for name, row in rows.items()},
        caption="Premise: separation vectors of the tasks on one axis u (small ε, small angles, all tasks on its "
        "side). Conclusion: heads along one direction, and the averaged head ranks as each own head does: no AUC lost, "
        "Spearman's ρ of 1. Angles in degrees, the largest; the worst task counts.",
        heading="Merge", mark_best=False,
    )  # fmt: skip


def _on_tasks(measured: OnImages) -> Table:
    tasks = list(measured.counts)
    groups, values = {}, {}
    for name, each in measured.propositions.items():
        groups[name] = [f"{name}: {task}" for task in tasks]
        for index, row in enumerate(groups[name]):
            values[row] = _finite(
                [
                    float(each.aucs[index, index]), float(each.mean_head_aucs[index]),
                    float(each.rank_correlations[index]), float(each.sines[index]),
                    float(each.head_scales[index]), float(each.head_to_axis[index]),
                ]
            )  # fmt: skip
    return Table(
        "Proposition 1 by task", ["AUC, own head", "AUC, averaged head", "ρ", "sin ∠(Δ, u)", "c", "∠(w, u)"],
        groups, values, caption="On the merged features of each task; c is the head's coefficient in eq. 15.",
        heading="Task", mark_best=False,
    )  # fmt: skip


def _largest(values: np.ndarray) -> float:
    return float(np.nanmax(values)) if np.isfinite(values).any() else math.nan


def _finite(row: list[float]) -> list[float]:
    """A table has a dash for what is no number; there an infinite one is none either."""
    return [value if math.isfinite(value) else math.nan for value in row]
