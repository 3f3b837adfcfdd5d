"""``r2m eval``: scores first, then everything that follows from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.calibration import Calibration, write_calibration
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.data.index import index_file, read_index
from r2m_jax.data.records import Record, select
from r2m_jax.data.selection import evenly
from r2m_jax.errors import InputError
from r2m_jax.evaluation.comparison import Comparison, compare
from r2m_jax.evaluation.metrics import auc, threshold_at_fpr
from r2m_jax.evaluation.protocols import Protocol, protocol
from r2m_jax.evaluation.scores import ScoreTable, read_scores
from r2m_jax.evaluation.tables import Table
from r2m_jax.jobs.evaluation_page import page_of
from r2m_jax.jobs.scoring import score_models
from r2m_jax.models import TowerOptions
from r2m_jax.parallel import common_directory, is_first
from r2m_jax.progress import Reporter
from r2m_jax.recipes.evaluating import BEST, EvalRecipe


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation made.

    Attributes:
        directory: results.
        comparison: every model on every column.
        table: the first metric of the protocol.
        notes: what was left out, dropped or is to be known, a sentence each.
    """

    directory: Path
    comparison: Comparison
    table: Table
    notes: tuple[str, ...]


def evaluate(recipe: EvalRecipe, *, reporter: Reporter, overwrite: bool = False) -> Evaluated:
    """Score models on the images of a protocol (or take scores), compare them, write results; then thresholds.

    Several processes divide the images; all know all scores, and process 0 writes.

    Raises:
        InputError: the recipe names something that is missing or broken, no column has both classes, or the output is
            taken; nothing is written then, also no threshold.
    """
    with common_directory(recipe.out, overwrite) as folder:
        if recipe.from_scores is not None:
            table, hashed, said = _from_scores(recipe.from_scores)
            thresholds: dict[str, Calibration] = {}
        else:
            table, thresholds, hashed, said = _scored(recipe, reporter)
        formed = protocol(recipe.protocol, table.records)
        drawn = {} if recipe.intervals is None else recipe.intervals.model_dump()
        comparison = compare(
            table, formed, video_key=recipe.video_key, reference=None if recipe.reference == BEST else recipe.reference,
            **(drawn or {"resamples": 0}),
        )  # fmt: skip
        notes = tuple(dict.fromkeys((*said, *formed.notes, *comparison.notes, *_on_new_images(table, thresholds))))
        if is_first():
            _write(folder, recipe, comparison, table, thresholds, hashed, notes)
    for name, calibration in thresholds.items() if is_first() else ():
        write_calibration(recipe.models[name], calibration)
    return Evaluated(recipe.out, comparison, comparison.table(formed.metrics[0]), notes)


def _from_scores(file: Path) -> tuple[ScoreTable, list[dict[str, Any]], list[str]]:
    table = read_scores(file)
    splits = sorted({record.split for record in table.records})
    said = [f"{file} holds images of the splits {', '.join(splits)}, all of which count."] if len(splits) > 1 else []
    return table, provenance.input_hashes([file]), said


def _scored(
    recipe: EvalRecipe, reporter: Reporter
) -> tuple[ScoreTable, dict[str, Calibration], list[dict[str, Any]], list[str]]:
    """Scores of the protocol's images, thresholds from those for calibration, hashes of the inputs, sentences."""
    assert recipe.data is not None
    index = index_file(recipe.data.index)
    hashed = provenance.input_hashes([index, *(f for path in recipe.models.values() for f in _weights(path))])
    records = read_index(index)
    chosen = select(records, split=recipe.data.split)
    if not chosen:
        found = ", ".join(dict.fromkeys(record.split for record in records))
        raise InputError(f"{index} has no image of the split {recipe.data.split!r}; there are {found}.")
    chosen = evenly(chosen, recipe.data.limit)
    wanted = _in_any_column(protocol(recipe.protocol, chosen), chosen)
    said = []
    if not wanted.all():
        said.append(f"{int((~wanted).sum())} of {len(chosen)} images are in no column and were not scored.")
        chosen = [record for record, inside in zip(chosen, wanted, strict=True) if inside]
    held: list[Record] = []
    if recipe.calibrate is not None:
        held = select(records, split=recipe.calibrate.split)
        if not any(record.label == 0 for record in held):
            raise InputError(f"{index} has no real image of the split {recipe.calibrate.split!r} to calibrate on.")
    scored = score_models(
        recipe.models, [*chosen, *held], reporter=reporter, batch_size=recipe.batch_size, workers=recipe.workers,
        memory=recipe.memory, options=TowerOptions(dtype=recipe.dtype), strict=recipe.strict,
    )  # fmt: skip
    if scored.left_out:
        said.append(
            f"{scored.left_out} images could not be read and count nowhere; the first: "
            f"{next(iter(scored.unreadable.values()))}"
        )
    splits = np.asarray([record.split for record in scored.table.records])
    thresholds = {}
    if recipe.calibrate is not None:
        held_out = scored.table.where(splits == recipe.calibrate.split)
        thresholds = {
            name: _calibration(held_out, name, recipe.calibrate.fpr, recipe.calibrate.split, hashed[0]["sha256"])
            for name in recipe.models
        }
    return scored.table.where(splits == recipe.data.split), thresholds, hashed, said


def _weights(directory: Path) -> Sequence[Path]:
    if not directory.is_dir():
        raise InputError(f"the model {directory} is no directory; give one that `r2m train` or `r2m merge` made.")
    return safetensors_files(directory)


def _in_any_column(formed: Protocol, records: Sequence[Record]) -> Bool[np.ndarray, " n"]:
    return np.logical_or.reduce(list(formed.masks(records).values()))


def _calibration(held_out: ScoreTable, model: str, fpr: float, split: str, sha256: str) -> Calibration:
    labels, probabilities = held_out.labels, held_out.probabilities(model)
    real = int((labels == 0).sum())
    if not real:
        raise InputError(f"no real image of the split {split!r} could be read, so there is no threshold.")
    return Calibration(
        threshold=threshold_at_fpr(labels, probabilities, fpr),
        fpr=fpr,
        split=split,
        images=len(labels),
        real=real,
        sha256=sha256,
        auc=auc(labels, probabilities) if real < len(labels) else None,
    )


def _on_new_images(table: ScoreTable, thresholds: dict[str, Calibration]) -> list[str]:
    """What became of each threshold on the images the models are compared on, in words."""
    fake = table.labels == 1
    said = []
    for name, calibration in thresholds.items():
        called = table.probabilities(name) > calibration.threshold
        said.append(
            f"{name}: the threshold {calibration.threshold:.6f} for a false-positive rate of {calibration.fpr:g} on "
            f"{calibration.split} calls {called[~fake].mean():.4f} of the real and {called[fake].mean():.4f} of the "
            "fake images compared here fake."
        )
    return said


def _write(
    folder: Path,
    recipe: EvalRecipe,
    comparison: Comparison,
    table: ScoreTable,
    thresholds: dict[str, Calibration],
    hashed: list[dict[str, Any]],
    notes: tuple[str, ...],
) -> None:
    images = None if recipe.data is None else index_file(recipe.data.index).parent
    scores = f"scores.{recipe.scores}"
    table.write(folder / scores, relative_to=images)
    metrics = comparison.as_json() | {
        "video_key": recipe.video_key,
        "calibration": {name: calibration.model_dump() for name, calibration in thresholds.items()},
    }
    metrics["protocol"]["notes"] = list(notes)
    tables = [comparison.table(metric) for metric in comparison.protocol.metrics]
    made = provenance.record(
        "evaluation", inputs=hashed, recipe=recipe.model_dump(mode="json"),
        seed=None if recipe.intervals is None else recipe.intervals.seed,
    )  # fmt: skip
    for name, text in (
        ("metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n"),
        ("table.md", "\n".join(each.markdown() for each in tables)),
        ("table.tex", "\n".join(each.latex() for each in tables)),
        ("report.html", page_of(comparison, notes, scores=scores, recipe=recipe)),
        (provenance.FILE, json.dumps(made, indent=2) + "\n"),
    ):
        (folder / name).write_text(text, encoding="utf-8")
