"""The page of ``r2m collapse``: critical radii, signal, curvature, and figures after those of CoRIT."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from r2m_jax.evaluation.plots import contours, lines
from r2m_jax.evaluation.report import Section, bullets, drawing, page, preformatted, tabulated
from r2m_jax.evaluation.tables import Table
from r2m_jax.jobs.collapse_found import RADII, SIGNALS, THEORY, Found
from r2m_jax.recipes.collapsing import CollapseRecipe

Drawn = Mapping[str, tuple[str, str]]
"""Name of a figure to its SVG and caption."""

_SHOWN_LAYERS = 6


def tables(found: Found) -> dict[str, Table]:
    """Every table by the name of its file."""
    radii = found.recipe.radii
    beyond = (
        f"Median of {found.recipe.seeds} seeds. A dash: no collapse up to the largest radius, {radii.most:g}. 0: "
        f"collapsed from the smallest on, {radii.least:g}."
    )
    names = list(found.features.names)

    def by_layer(title: str, name: str, caption: str, decimals: int = 4) -> Table:
        return _layers(found, title, names, found.grid(name), caption, decimals)

    return {
        "cor_auc": by_layer(
            "Critical radius by AUC", "COR by AUC",
            f"Test AUC below {0.5 + radii.margin:g}, the paper's criterion (Table VII). {beyond}",
        ),
        "cor_loss": by_layer(
            "Critical radius by loss", "COR by loss", f"Training loss no lower than log 2 after training. {beyond}"
        ),
        "cor_theory": by_layer(
            "Critical radius of theory", THEORY,
            f"Least ‖∇L‖ / λ_max in phase 1 of a training with ρ = {found.recipe.probe.rho:g} (11): sufficient for "
            "descent, no prediction of where a convex probe fails.", 5,
        ),
        "gsnr": by_layer(
            "GSNR at the bottleneck", SIGNALS[0], "Plug-in GSNR (4) where the bound of theory is least (12).", 6
        ),
        "gsnr_phase1": by_layer("Median GSNR of phase 1", SIGNALS[1], "Plug-in GSNR over the steps of phase 1.", 6),
        "curvature": _curvature(found),
        "agreement": _agreement(found),
        "layers": _scales(found),
    }  # fmt: skip


def _layers(
    found: Found, title: str, columns: Sequence[str], values: np.ndarray, caption: str, decimals: int = 4
) -> Table:
    rows = [f"layer {layer}" for layer in found.features.layers]
    finite = [[v if math.isfinite(v) else math.nan for v in row] for row in values.tolist()]
    return Table(
        title, columns, {"Class token after block": rows}, dict(zip(rows, finite, strict=True)), caption=caption,
        heading="Layer", decimals=decimals, mark_best=False,
    )  # fmt: skip


def _curvature(found: Found) -> Table:
    columns = ["‖∇L‖", "λ_max", "tr H", "stable rank", "flatness", "misspecification", "signal", "product", "t*"]
    groups, values = {}, {}
    for family in found.features.names:
        groups[family] = [f"{family}, layer {layer}" for layer in found.features.layers]
        for layer, row in zip(found.features.layers, groups[family], strict=True):
            path = found.cells[layer, family].trajectory
            at, d = path.critical.step, path.decomposition
            squared, top, trace = (float(each[at]) for each in (d.squared_gradient, d.top, d.trace))
            signal = math.sqrt(squared / (squared + float(d.variance[at])))
            geometric = math.sqrt(trace) / top if top else math.nan
            misfit = math.sqrt(max(1 + float(d.residual[at]) / trace, 0)) if trace else math.nan
            values[row] = [
                math.sqrt(squared), top, trace, trace / top if top else math.nan, geometric, misfit, signal,
                geometric * misfit * signal, float(path.steps[at]),
            ]  # fmt: skip
    return Table(
        "Theorem 1 at the bottleneck", columns, groups, values, caption="Product of the three factors of (13), which "
        "is ‖∇L‖ / λ_max; t* is the step of the optimiser.", heading="Probe", decimals=4, mark_best=False,
    )  # fmt: skip


def _agreement(found: Found) -> Table:
    groups: dict[str, list[str]] = {}
    values, intervals = {}, {}
    for (radius, signal, over), each in found.agreements.items():
        row = f"{radius}, {signal}, over {over}"
        groups.setdefault(f"Over {over}", []).append(row)
        values[row], intervals[row] = [each.value, float(each.groups)], [(each.low, each.high), None]
    return Table(
        "Do radius and signal rank alike?", ["Spearman's ρ", "groups"], groups, values, intervals=intervals,
        caption="Over layers: mean over families of the correlation over layers, layers drawn. Over families: mean "
        "over layers of the correlation over families, layers drawn. Groups: those in which it is defined. "
        "The radius of theory and GSNR at t* hold the same ‖∇L‖, so that they agree proves little.",
        heading="Pair", decimals=2, mark_best=False,
    )  # fmt: skip


def _scales(found: Found) -> Table:
    return _layers(
        found, "Scale of the features", ["root mean square"], found.features.scales[:, None],
        "Over the training images, before any normalisation.",
    )  # fmt: skip


def figures(found: Found) -> dict[str, tuple[str, str]]:
    """Every figure by the name of its file, with its caption."""
    names, layers = found.features.names, found.features.layers
    last = layers[-1]
    some = [layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, _SHOWN_LAYERS).round().astype(int))]
    hardest = min(names, key=lambda family: float(found.cells[last, family].empirical.auc[0].mean()))
    cell = {family: found.cells[last, family] for family in names}
    first = cell[names[0]]
    steps = first.trajectory.steps.tolist()
    powers = np.log10(first.empirical.grid[1:]).tolist()
    drawn: dict[str, tuple[str, str]] = {}

    def add(name: str, caption: str, svg: str) -> None:
        drawn[name] = (svg, caption)

    for radius, name in (*RADII.items(), (THEORY, "theory")):
        values = found.grid(radius)
        shown = np.minimum(values, found.recipe.radii.most) if radius in RADII else values
        if not np.isfinite(shown).all():
            continue  # a layer without any curvature has no radius of theory to draw
        add(
            f"radius_{name}",
            f"{radius} by layer (Fig. 1b of the paper){', at most the end of the grid' * (radius in RADII)}.",
            lines([str(layer) for layer in layers] if len(layers) <= 12 else list(map(float, layers)),
                  {family: shown[:, i] for i, family in enumerate(names)},
                  title=f"{radius} by layer", x_label="layer", y_label="critical radius", low=0.0),
        )  # fmt: skip
    add(
        "auc_by_radius", f"Median test AUC after training with SAM, layer {last} (Fig. 2a).",
        lines(powers, {family: np.median(each.empirical.auc[1:], axis=1) for family, each in cell.items()},
              title=f"AUC by radius, layer {last}", x_label="log₁₀ ρ", reference=0.5),
    )  # fmt: skip
    add(
        "loss_by_radius", f"Median training loss after training with SAM, layer {last}; the line is log 2.",
        lines(powers, {family: np.median(each.empirical.loss[1:], axis=1) for family, each in cell.items()},
              title=f"Training loss by radius, layer {last}", x_label="log₁₀ ρ", y_label="loss", reference=math.log(2)),
    )  # fmt: skip
    if found.others:
        add(
            "other_families_by_radius", f"Median AUC on the families not trained on, layer {last} (Fig. 2b).",
            lines(powers, {f"trained on {family}": aucs[1:] for family, aucs in found.others.items()},
                  title=f"AUC on other families by radius, layer {last}", x_label="log₁₀ ρ", reference=0.5),
        )  # fmt: skip
    add(
        "gsnr_by_family", f"GSNR along the followed training, layer {last} (Fig. 3a).",
        lines(steps, {family: _log(each.trajectory.gsnr.plug_in) for family, each in cell.items()},
              title=f"GSNR along training, layer {last}", x_label="step", y_label="log₁₀ GSNR"),
    )  # fmt: skip
    add(
        "gsnr_by_layer", f"GSNR along the followed training by layer, {hardest} (Figs. 3b and 6).",
        lines(steps, {f"layer {i}": _log(found.cells[i, hardest].trajectory.gsnr.plug_in) for i in some},
              title=f"GSNR along training by layer, {hardest}", x_label="step", y_label="log₁₀ GSNR"),
    )  # fmt: skip
    add(
        "auc_by_step", f"Test AUC along the followed training, layer {last} (Figs. 1a and 5).",
        lines(steps, {family: each.trajectory.auc for family, each in cell.items()},
              title=f"AUC along training, layer {last}", x_label="step", reference=0.5),
    )  # fmt: skip
    top = max(float(surface.losses.max()) for surface in found.surfaces.values())
    for number, (family, surface) in enumerate(found.surfaces.items(), start=1):
        add(
            f"landscape_{number}_{re.sub(r'[^A-Za-z0-9]+', '-', family)}",
            f"Training loss around the probe of {family}, layer {last} (Fig. 7); it rises by {surface.rise:.3g} to the "
            "border. All surfaces share their colours.",
            contours(surface.axis, surface.losses, title=f"Loss around the probe, {family}, layer {last}",
                     label="loss", low=0.0, high=top),
        )  # fmt: skip
    return drawn


def _log(values: Any) -> np.ndarray:
    return np.log10(np.maximum(np.asarray(values, np.float64), 1e-12))


def page_of(found: Found, made: Mapping[str, Table], drawn: Drawn) -> str:
    """The whole page."""

    def show(*names: str) -> str:
        return "".join(drawing(*drawn[name]) for name in names if name in drawn)

    recipe: CollapseRecipe = found.recipe
    counts = "; ".join(f"{a} and {b} of {name}" for name, (a, b) in found.features.counts().items())
    sections = [
        Section("What stands out", bullets(found.sentences())),
        Section(
            "Critical radii by layer",
            tabulated(made["cor_auc"]) + tabulated(made["cor_loss"]) + show("radius_auc", "radius_loss"),
        ),
        Section("By radius", show("auc_by_radius", "loss_by_radius", "other_families_by_radius")),
        Section(
            "Signal and noise",
            tabulated(made["gsnr"]) + tabulated(made["gsnr_phase1"])
            + show("gsnr_by_family", "gsnr_by_layer", "auc_by_step"),
        ),
        Section(
            "Theory", tabulated(made["cor_theory"]) + show("radius_theory") + tabulated(made["curvature"])
        ),
        Section("Do they rank alike?", tabulated(made["agreement"])),
        Section("Loss surfaces", show(*(name for name in drawn if name.startswith("landscape_")))),
        Section("Layers", tabulated(made["layers"])),
        Section("Made by", preformatted(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))),
    ]  # fmt: skip
    lead = (
        f"Linear probes on the class token of the frozen tower {recipe.model}, each family against the real images. "
        f"Images to train and to test on: {counts}, at {found.features.size} px. Features: {recipe.feature_norm}. "
        "collapse.json has every number. Definitions follow CoRIT, https://arxiv.org/abs/2603.24057."
    )
    return page("Optimisation collapse", lead, sections)
