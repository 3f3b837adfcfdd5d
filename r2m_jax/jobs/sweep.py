"""``r2m sweep``: many merges of the same specialists, scored, and the best of them."""

from __future__ import annotations

import csv
import io
import json
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from r2m_jax import merging
from r2m_jax.checkpoints import load_detector, provenance
from r2m_jax.checkpoints.directory import read_config
from r2m_jax.checkpoints.preprocessing import read_processor
from r2m_jax.data.images import load_images
from r2m_jax.data.index import index_file, read_index
from r2m_jax.data.records import Record, select
from r2m_jax.data.selection import evenly
from r2m_jax.errors import InputError
from r2m_jax.evaluation import ScoreTable, family_auc, score
from r2m_jax.evaluation.plots import heat_map
from r2m_jax.evaluation.tables import Table
from r2m_jax.jobs.merge_inputs import Inputs, open_inputs
from r2m_jax.merging.diagnostics import as_json
from r2m_jax.merging.sweep import Sweep
from r2m_jax.models import apply_detector
from r2m_jax.parallel import check, common_directory, data_mesh, gather_arrays, is_first, one_lapack_thread, own_part
from r2m_jax.progress import Reporter
from r2m_jax.recipes.merging import MergeRecipe
from r2m_jax.recipes.sweeping import SweepRecipe


@dataclass(frozen=True)
class Outcome:
    """What a sweep found.

    Attributes:
        directory: results.
        best: name of the best candidate.
        value: its macro mean of the families' AUC.
    """

    directory: Path
    best: str
    value: float


def sweep(recipe: SweepRecipe, *, reporter: Reporter, overwrite: bool = False) -> Outcome:
    """Merge by every setting of the grid, score each on the same images, and write table, map and best recipe.

    The specialists are factorised once; their parameters and the decoded images are kept in memory. Of several
    processes each factorises and merges for itself, and decodes and scores its part of the images.

    Raises:
        InputError: models do not belong together, the split is empty or has one class, or the output is taken.
    """
    inputs = open_inputs(recipe.base, {name: entry.path for name, entry in recipe.models.items()})
    hashed = provenance.input_hashes([*inputs.files, index_file(recipe.data.index)])
    inputs.check_origin({item["sha256"] for item in hashed})
    records = _records(recipe)
    processor = read_processor(next(iter(recipe.models.values())).path)
    size = processor.crop_size["height"]
    own = records[own_part(len(records))]
    with reporter.track(f"decode at {size} px", len(own)) as advance:
        images = load_images([record.path for record in own], size, on_progress=advance)
    scorer = score(
        apply_detector(read_config(recipe.base)), processor.image_mean, processor.image_std,
        batch_size=recipe.batch_size,
    )  # fmt: skip
    candidates, mine, found = recipe.candidates(), dict[str, np.ndarray](), dict[str, Any]()
    start = time.monotonic()
    with one_lapack_thread(), reporter.track("merge and score", len(candidates), "merges") as advance:
        for name, params, diagnostics in _merged(recipe, inputs, candidates, reporter):
            mine[name] = scorer(params, images)
            found[name] = diagnostics
            advance(note=name)
            check()
    each, scores = gather_arrays(mine), ScoreTable(records)
    for name in candidates:
        scores.add(name, np.concatenate([theirs[name] for theirs in each]))
    aucs = family_auc(scores)
    values = {name: float(aucs[name]["mean"]) for name in candidates}
    with common_directory(recipe.out, overwrite) as folder:
        if is_first():
            _write(recipe, folder, candidates, scores, aucs, values, found, hashed, time.monotonic() - start)
    best = max(values, key=lambda name: values[name])
    return Outcome(recipe.out, best, values[best])


def _write(
    recipe: SweepRecipe,
    folder: Path,
    candidates: dict[str, MergeRecipe],
    scores: ScoreTable,
    aucs: Any,
    values: dict[str, float],
    found: dict[str, Any],
    hashed: list[dict[str, Any]],
    seconds: float,
) -> None:
    best = max(values, key=lambda name: values[name])
    columns = [*scores.families, "mean"]
    table = Table("AUC", columns, _groups(candidates), {name: [aucs[name][c] for c in columns] for name in candidates})
    (folder / "table.md").write_text(table.markdown(), encoding="utf-8")
    (folder / "table.tex").write_text(table.latex(), encoding="utf-8")
    (folder / "results.csv").write_text(_csv(candidates, aucs, columns), encoding="utf-8")
    scores.write(folder / "scores.csv", relative_to=index_file(recipe.data.index).parent)
    for title, svg in _maps(candidates, values):
        (folder / f"{title}.svg").write_text(svg, encoding="utf-8")
    chosen = candidates[best].model_dump(mode="json", exclude_none=True)
    (folder / "best.yaml").write_text(
        f"# The best of a sweep, mean AUC {values[best]:.4f} on split {recipe.data.split}: r2m merge best.yaml\n"
        + yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True),
        encoding="utf-8",
    )
    made = provenance.record(
        "sweep",
        inputs=hashed,
        recipe=recipe.model_dump(mode="json"),
        best=best,
        seconds=round(seconds, 1),
        diagnostics=found,
    )
    (folder / provenance.FILE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


def _records(recipe: SweepRecipe) -> list[Record]:
    records = evenly(select(read_index(index_file(recipe.data.index)), split=recipe.data.split), recipe.data.limit)
    if {record.label for record in records} != {0, 1}:
        raise InputError(
            f"{recipe.data.index} has {len(records)} images of split {recipe.data.split!r}, which are not of both "
            "classes; choose another data.split."
        )
    return records


def _merged(
    recipe: SweepRecipe, inputs: Inputs, candidates: dict[str, MergeRecipe], reporter: Reporter
) -> Iterator[tuple[str, Any, Any]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no head", category=UserWarning)  # a base needs none
        base = load_detector(recipe.base).params["backbone"]
    loaded = [load_detector(entry.path).params for entry in recipe.models.values()]
    thetas = [each["backbone"] for each in loaded]
    heads = dict(zip(recipe.models, (each["head"] for each in loaded), strict=True))
    head = {"average": merging.average_heads, "norm_matched": merging.norm_matched_heads}.get(
        recipe.head, lambda _: heads[recipe.head]
    )(list(heads.values()))
    factorised: dict[bool, Sweep] = {}
    for name, candidate in candidates.items():
        settings = candidate.settings()
        fused = bool(settings.get("fused_qkv"))
        if candidate.method == "ties":
            yield name, {"backbone": merging.ties(base, thetas, **settings), "head": head}, None
            continue
        method = candidate.linear_method()
        if fused not in factorised:
            reporter.say("factorise the specialists")
            factorised[fused] = Sweep(
                base, thetas, weights=method.weights(len(thetas)), fused_qkv=fused, mesh=data_mesh(jax.local_devices())
            )
        params, diagnostics = factorised[fused].merge(method)
        yield name, {"backbone": params, "head": head}, None if diagnostics is None else as_json(diagnostics)


def _groups(candidates: dict[str, MergeRecipe]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, candidate in candidates.items():
        groups.setdefault(candidate.method, []).append(name)
    return groups


def _csv(candidates: dict[str, MergeRecipe], aucs: Any, columns: list[str]) -> str:
    settings = {name: c.parameters.model_dump(exclude_none=True) for name, c in candidates.items()}
    keys = list(dict.fromkeys(key for chosen in settings.values() for key in chosen))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["candidate", "method", *keys, *columns])
    for name, candidate in candidates.items():
        chosen = [settings[name].get(key, "") for key in keys]
        writer.writerow([name, candidate.method, *chosen, *(f"{aucs[name][column]:.6f}" for column in columns)])
    return buffer.getvalue()


def _maps(candidates: dict[str, MergeRecipe], values: dict[str, float]) -> Iterator[tuple[str, str]]:
    """α × rank of R²M, one map for every combination of the other switches that has both."""
    cells: dict[str, dict[tuple[float, str], float]] = {}
    for name, candidate in candidates.items():
        chosen = candidate.parameters.model_dump(exclude_none=True)
        if candidate.method == "r2m" and {"alpha", "rank"} <= chosen.keys():
            alpha, rank = chosen.pop("alpha"), chosen.pop("rank")
            others = "-".join(f"{key}-{value}" for key, value in sorted(chosen.items()))
            cells.setdefault(f"r2m-{others}" if others else "r2m", {})[alpha, str(rank)] = values[name]
    low, high = min(values.values()), max(values.values())
    for title, found in cells.items():
        alphas, ranks = sorted({a for a, _ in found}), list(dict.fromkeys(r for _, r in found))
        grid = np.asarray([[found.get((a, r), math.nan) for r in ranks] for a in alphas])
        if len(alphas) > 1 and len(ranks) > 1 and np.isfinite(grid).all():
            rows, heads = [f"α = {a:g}" for a in alphas], [f"r = {r}" for r in ranks]
            yield title, heat_map(grid, rows, heads, title=f"{title}: mean AUC", low=low, high=max(high, low + 1e-3))
