"""``r2m collapse``: where SAM stops working on each layer of a frozen tower, and what signal the layer holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r2m_jax.atomic import atomic_directory
from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.data.index import index_file
from r2m_jax.errors import InputError
from r2m_jax.evaluation.collapse import Landscape, critical_radius, landscape, trajectory
from r2m_jax.evaluation.collapse.probes import cross_entropy
from r2m_jax.evaluation.tables import Table
from r2m_jax.jobs.collapse_features import LayerFeatures, layer_features
from r2m_jax.jobs.collapse_found import Cell, Found
from r2m_jax.jobs.collapse_page import figures, page_of, tables
from r2m_jax.progress import Reporter
from r2m_jax.recipes.collapsing import CollapseRecipe


@dataclass(frozen=True)
class Collapsed:
    """What a measurement made.

    Attributes:
        directory: results.
        found: every number.
        tables: of critical radii, by each criterion, and of GSNR.
        sentences: what stands out.
    """

    directory: Path
    found: Found
    tables: tuple[Table, ...]
    sentences: list[str]


def collapse(recipe: CollapseRecipe, *, reporter: Reporter, overwrite: bool = False) -> Collapsed:
    """Encode the images once, train probes on every layer for every family, write page, tables, figures and numbers.

    Raises:
        InputError: the model, the index or an image cannot be read, there are too few images, a layer or family does
            not exist, a probe diverged, or the output is taken.
    """
    with atomic_directory(recipe.out, overwrite) as folder:
        if not recipe.model.is_dir():
            raise InputError(f"the model {recipe.model} is no directory; give one that has a config.json.")
        hashed = provenance.input_hashes([*safetensors_files(recipe.model), index_file(recipe.data.index)])
        features = layer_features(recipe, reporter)
        cells = _probed(recipe, features, reporter)
        last = features.layers[-1]
        others = _on_other_families(recipe, features, last, reporter)
        surfaces = _surfaces(recipe, features, cells, last, reporter)
        found = Found(recipe, features, cells, others, surfaces)
        _write(folder, found, hashed)
    made = tables(found)
    shown = tuple(made[name] for name in ("cor_auc", "cor_loss", "gsnr"))
    return Collapsed(recipe.out, found, shown, found.sentences())


def _probed(recipe: CollapseRecipe, features: LayerFeatures, reporter: Reporter) -> dict[tuple[int, str], Cell]:
    search, probe = recipe.radii.search(recipe.seeds), recipe.probe
    cells = {}
    total = len(features.layers) * len(features.names)
    each = (search.points + 1 + 2 * search.bisections) * search.seeds + 1
    with reporter.track("train probes", total, "probes", each) as advance:
        for layer in features.layers:
            for family in features.names:
                data = features.data(layer, family)
                cells[layer, family] = Cell(
                    critical_radius(data, search, probe.training),
                    trajectory(data, rho=probe.rho, points=probe.points, training=probe.training),
                )
                advance(1, f"layer {layer}, {family}")
    return cells


def _on_other_families(
    recipe: CollapseRecipe, features: LayerFeatures, layer: int, reporter: Reporter
) -> dict[str, np.ndarray]:
    """Median AUC over the seeds, at every radius, on the families a probe was not trained on; the paper's Fig. 2(b)."""
    if len(features.names) < 2:
        return {}
    search = recipe.radii.model_copy(update={"bisections": 0}).search(recipe.seeds)
    found = {}
    with reporter.track("test on other families", len(features.names), "families") as advance:
        for family in features.names:
            rest = [name for name in features.names if name != family]
            data = features.data(layer, family, tested_on=rest)
            found[family] = np.median(critical_radius(data, search, recipe.probe.training).auc, axis=1)
            advance()
    return found


def _surfaces(
    recipe: CollapseRecipe, features: LayerFeatures, cells: dict[tuple[int, str], Cell], layer: int, reporter: Reporter
) -> dict[str, Landscape]:
    found = {}
    with reporter.track("loss surfaces", len(features.names), "surfaces") as advance:
        for family in features.names:
            data = features.data(layer, family)
            loss = partial(cross_entropy, features=jnp.asarray(data.features), labels=jnp.asarray(data.labels))
            head = jax.tree.map(jnp.asarray, cells[layer, family].trajectory.head)
            found[family] = landscape(loss, head, points=recipe.landscape)
            advance()
    return found


def _write(folder: Path, found: Found, hashed: list[dict[str, Any]]) -> None:
    made_tables, drawn = tables(found), figures(found)
    recipe = found.recipe.model_dump(mode="json")
    made = provenance.record("collapse", inputs=hashed, recipe=recipe, seed=0)
    for name, text in (
        ("collapse.json", json.dumps(found.as_json(), indent=2, allow_nan=False) + "\n"),
        ("report.html", page_of(found, made_tables, drawn)),
        (provenance.FILE, json.dumps(made, indent=2) + "\n"),
    ):
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("tables", "figures"):
        (folder / name).mkdir()
    for name, table in made_tables.items():
        (folder / "tables" / f"{name}.md").write_text(table.markdown(), encoding="utf-8")
        (folder / "tables" / f"{name}.tex").write_text(table.latex(), encoding="utf-8")
    for name, (svg, _) in drawn.items():
        (folder / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
    first = next(iter(found.surfaces.values()))
    np.savez(
        folder / "figures" / "landscapes.npz",
        axis=first.axis,
        seeds=np.asarray(first.seeds),
        families=np.asarray(list(found.surfaces)),
        losses=np.stack([surface.losses for surface in found.surfaces.values()]),
    )
