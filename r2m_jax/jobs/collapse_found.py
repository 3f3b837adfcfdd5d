"""What ``r2m collapse`` found, as numbers and as sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from r2m_jax.evaluation.collapse import EmpiricalRadius, Landscape, RankAgreement, Trajectory, agreement
from r2m_jax.evaluation.collapse.empirical import CRITERIA
from r2m_jax.jobs.collapse_features import LayerFeatures
from r2m_jax.merging.interference import plain
from r2m_jax.recipes.collapsing import CollapseRecipe

RADII = {"COR by AUC": "auc", "COR by loss": "loss"}
THEORY = "COR of theory"
SIGNALS = ("GSNR at t*", "median GSNR of phase 1")
_COLLAPSE_ZONE = 0.05
"""Of CoRIT §V-C1: the paper calls radii below it the collapse zone."""


@dataclass(frozen=True)
class Cell:
    """One layer and family.

    Attributes:
        empirical: probes of all radii.
        trajectory: the followed training.
    """

    empirical: EmpiricalRadius
    trajectory: Trajectory

    def number(self, name: str) -> float:
        """A radius or signal by its name; infinite above the grid, 0 below it."""
        if name in RADII:
            return self.empirical.brackets[RADII[name]].median
        found = self.trajectory
        if name == THEORY:
            return found.critical.radius
        values = np.asarray(found.gsnr.plug_in)
        at_bottleneck = name == SIGNALS[0]
        return float(values[found.critical.step] if at_bottleneck else np.median(values[found.phases.number == 1]))


@dataclass(frozen=True)
class Found:
    """Everything that was measured.

    Attributes:
        recipe: what was asked for.
        features: of the images.
        cells: by layer and family.
        others: per family the AUC of its last layer's probe on the other families, at every radius of the grid.
        surfaces: per family the loss around its last layer's probe.
    """

    recipe: CollapseRecipe
    features: LayerFeatures
    cells: dict[tuple[int, str], Cell]
    others: dict[str, np.ndarray]
    surfaces: dict[str, Landscape]

    def grid(self, name: str) -> np.ndarray:
        """A number of every cell, [layers, families]."""
        return np.asarray(
            [[self.cells[layer, f].number(name) for f in self.features.names] for layer in self.features.layers]
        )

    @cached_property
    def agreements(self) -> dict[tuple[str, str, str], RankAgreement]:
        """(radius, signal, over what) to how far they rank alike."""
        found = {}
        for radius in (*RADII, THEORY):
            for signal in SIGNALS:
                a, b = self.grid(radius), self.grid(signal)
                more = {"resamples": self.recipe.resamples}
                found[radius, signal, "layers"] = agreement(a.T, b.T, draw="members", **more)
                found[radius, signal, "families"] = agreement(a, b, draw="groups", **more)
        return found

    def sentences(self) -> list[str]:
        """What stands out."""
        said = []
        cells = list(self.cells.values())
        ends = self.recipe.radii
        what = {
            "auc": f"the test AUC falls below {0.5 + ends.margin:g}",
            "loss": "the training loss is no lower than log 2",
        }
        called = {"auc": "AUC", "loss": "loss"}
        for name in CRITERIA:
            brackets = [cell.empirical.brackets[name] for cell in cells]
            count = {kind: sum(b.outcome == kind for b in brackets) for kind in ("collapses", "holds", "never learns")}
            recovering = sum(bool(b.recovers.any()) for b in brackets)
            said.append(
                f"By {called[name]} ({what[name]}), of {len(cells)} pairs of layer and family {count['collapses']} "
                f"collapse within radii of {ends.least:g} to {ends.most:g}, {count['holds']} hold up to the largest "
                f"and {count['never learns']} are collapsed from the smallest on; in {recovering} a larger radius than "
                "the first collapsed one was not collapsed for some seed, and the first counts."
            )
        low = [b for cell in cells if 0 < (b := cell.number("COR by AUC")) < _COLLAPSE_ZONE]
        if low:
            said.append(f"{len(low)} critical radii by AUC are in the paper's collapse zone below {_COLLAPSE_ZONE:g}.")
        unstable = np.mean([cell.trajectory.critical.unstable.mean() for cell in cells])
        said.append(
            f"The followed training (ρ = {self.recipe.probe.rho:g}) exceeds the stability bound (8) at {unstable:.0%} "
            "of its evaluations. The bound is sufficient, not necessary: a linear probe's loss is convex, so SAM's "
            "step descends on its batch at any radius."
        )
        stuck = sum(cell.trajectory.phases.left_first is None for cell in cells)
        said.append(
            f"In {stuck} of {len(cells)} trainings GSNR never doubles for good, so that all steps count as phase 1."
        )
        gap = max(cell.trajectory.gap for cell in cells)
        said.append(f"The two sides of Theorem 1 differ by at most {gap:.1e} of themselves.")
        for (radius, signal, over), each in self.agreements.items():
            value = (
                "undefined, as one of them is the same everywhere"
                if math.isnan(each.value)
                else f"{each.value:.2f} (95% interval {each.low:.2f} to {each.high:.2f})"
            )
            if radius in RADII:
                said.append(f"Over {over}, Spearman's ρ of {radius} and {signal} is {value}.")
        if self.recipe.feature_norm == "none":
            said.append(
                "Features are not normalised. Critical radii are inversely proportional to their scale, so layers "
                "compare only as far as their scales do; see the table of layers, or choose --feature-norm unit_rms."
            )
        return said

    def as_json(self) -> dict[str, Any]:
        """All numbers; infinite ones are null, beside the outcome that says why."""
        probes = []
        for (layer, family), cell in self.cells.items():
            path, found = cell.trajectory, cell.empirical
            decomposition = path.decomposition._asdict()
            brackets = {
                name: {
                    "outcome": b.outcome, "median": b.median, "by_seed": b.by_seed, "low": b.low, "high": b.high,
                    "recovers": b.recovers, "collapsed_at_zero": b.at_zero,
                }
                for name, b in found.brackets.items()
            }  # fmt: skip
            probes.append(
                {
                    "layer": layer, "family": family, "critical_radius": brackets,
                    "radii": found.grid, "auc": found.auc, "train_auc": found.train_auc, "loss": found.loss,
                    "trajectory": {
                        "steps": path.steps, "gsnr": path.gsnr.plug_in, "gsnr_unbiased": path.gsnr.unbiased,
                        "phase": path.phases.number, "bounds": path.critical.bounds,
                        "unstable": path.critical.unstable, "loss": path.loss, "auc": path.auc,
                        "radius": path.critical.radius, "bottleneck": path.critical.step,
                        "radius_everywhere": path.everywhere.radius, "theorem_gap": path.gap, **decomposition,
                    },
                }
            )  # fmt: skip
        agreements = [
            {"radius": r, "signal": s, "over": o, "spearman": a.value, "low": a.low, "high": a.high, "groups": a.groups}
            for (r, s, o), a in self.agreements.items()
        ]
        found_json: dict[str, Any] = plain(
            {
                "images": self.features.counts(), "image_size": self.features.size,
                "layers": [
                    {"layer": layer, "rms": scale}
                    for layer, scale in zip(self.features.layers, self.features.scales, strict=True)
                ],
                "probes": probes, "agreements": agreements, "other_families": self.others,
                "landscapes": {name: {"seeds": s.seeds, "rise": s.rise} for name, s in self.surfaces.items()},
                "says": self.sentences(),
            }
        )  # fmt: skip
        return found_json
