"""The demo's stages, each on top of the library: data, training, merging, evaluation, report."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from r2m_jax.atomic import atomic_directory
from r2m_jax.checkpoints import load_detector, provenance, save_detector, tiny_base
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.data.images import load_images
from r2m_jax.data.records import Record, select
from r2m_jax.demo.data import make_dataset, photographs
from r2m_jax.demo.page import Outcome, write_results
from r2m_jax.demo.recipe import DemoRecipe
from r2m_jax.evaluation import ScoreTable, score
from r2m_jax.merging import (
    MergeDiagnostics,
    average_heads,
    r2m,
    task_arithmetic,
    weight_averaging,
)
from r2m_jax.models import Detector, Params, apply_detector, init_head
from r2m_jax.parallel import data_mesh
from r2m_jax.progress import Reporter
from r2m_jax.training import FineTuner, FineTuning, Window

PRETRAINED = "Pretrained, averaged head"
ALL_IN_ONE = "All-in-one"


@dataclass
class Split:
    """Decoded images of one split, in the order of their records."""

    records: list[Record]
    images: np.ndarray

    def of(self, families: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        """Images and labels of the real photographs and of some families' forgeries."""
        kept = set(select(self.records, families=families))
        picked = [index for index, record in enumerate(self.records) if record in kept]
        return self.images[picked], [self.records[index].label for index in picked]


def run_demo(
    out: Path, recipe: DemoRecipe, *, images: Path | None, reporter: Reporter, overwrite: bool = False
) -> Outcome:
    """Run everything and write ``out``; it appears when all of it is done.

    Args:
        out: directory for data, models, scores, tables and report.html.
        recipe: settings.
        images: a folder of photographs; the embedded ones when None.
        reporter: told what happens.
        overwrite: replace ``out``.

    Raises:
        InputError: the photographs or the output directory are unusable.
    """
    start = time.monotonic()
    source = photographs(images, recipe)
    with atomic_directory(out, overwrite) as folder:
        base = load_detector(tiny_base())
        size = base.config.image_size
        train, test = _data(source, recipe, size, folder / "data", reporter)
        families = list(dict.fromkeys(r.family for r in test.records if r.family))

        head = init_head(base.config.hidden_size, jax.random.key(recipe.seed))
        begin = base.replace_params({**base.params, "head": head})
        trained = _train_all(begin, families, train, recipe, reporter)
        thetas = [trained[_specialist(family)]["backbone"] for family in families]
        merged, diagnostics = _merge_all(base.params["backbone"], thetas, recipe, reporter)
        averaged_head = average_heads([trained[_specialist(family)]["head"] for family in families])
        models = {
            PRETRAINED: {**base.params, "head": averaged_head},
            **trained,
            **{name: {"backbone": backbone, "head": averaged_head} for name, backbone in merged.items()},
        }

        scores = _evaluate(base, models, test, reporter)
        _save_models(base, models, recipe, folder)
        outcome = Outcome(
            table=scores,
            groups={
                "Before fine-tuning": [PRETRAINED],
                "Specialists": [_specialist(family) for family in families],
                "Joint training": [ALL_IN_ONE],
                "Merged, without training": list(merged),
            },
            families=families,
            diagnostics=diagnostics,
            photographs={"train": [p.name for p in source.train], "test": [p.name for p in source.test]},
            samples=_samples(test, families),
            recipe=recipe,
            seconds=time.monotonic() - start,
        )
        _write_run_record(folder, recipe, images, outcome.seconds)
        write_results(outcome, folder)
    return outcome


def _specialist(family: str) -> str:
    return f"Specialist {family}"


def _data(source: Any, recipe: DemoRecipe, size: int, folder: Path, reporter: Reporter) -> tuple[Split, Split]:
    reporter.say(f"forging from {len(source.train)} photographs to learn from and {len(source.test)} held out")
    records = make_dataset(source, recipe, size, folder)
    splits = []
    for name in ("train", "test"):
        chosen = select(records, split=name)
        with reporter.track(f"decode {name}", len(chosen)) as advance:
            splits.append(Split(chosen, load_images([r.path for r in chosen], size, on_progress=advance)))
    return splits[0], splits[1]


def _train_all(
    begin: Detector, families: Sequence[str], train: Split, recipe: DemoRecipe, reporter: Reporter
) -> dict[str, Params]:
    """One specialist per family and one model on all of them, from one start, with the same passes."""
    settings = FineTuning(recipe.passes, recipe.batch_size, recipe.learning_rate, recipe.weight_decay, recipe.seed)
    tuner = FineTuner(begin, settings, data_mesh())
    trained = {}
    jobs = {_specialist(family): [family] for family in families} | {ALL_IN_ONE: list(families)}
    for name, learnt in jobs.items():
        images, labels = train.of(learnt)
        with reporter.track(f"train {name}", tuner.steps(len(images)), each=recipe.batch_size) as advance:

            def on_window(window: Window, advance: Any = advance) -> None:
                advance(len(window.loss), note=f"loss {window.loss.mean():.3f}")

            trained[name] = tuner.run(images, labels, on_window)
    return trained


def _merge_all(
    theta0: Params, thetas: list[Params], recipe: DemoRecipe, reporter: Reporter
) -> tuple[dict[str, Params], dict[str, MergeDiagnostics]]:
    """Backbones of every merge of the demo; R²M also in the readings of the paper that do not degenerate."""
    plain: dict[str, Callable[..., Params]] = {
        "Weight averaging": weight_averaging,
        f"Task arithmetic (sum, α = {recipe.task_arithmetic_alpha:g})": partial(
            task_arithmetic, alpha=recipe.task_arithmetic_alpha, reduce="sum"
        ),
    }
    readings: dict[str, dict[str, Any]] = {
        "R²M (as printed: centred, from θ₀)": {},
        "R²M, uncentred core": {"centering": "uncentered"},
        "R²M, from the average": {"origin": "theta_avg"},
    }
    merged, diagnostics = {}, {}
    with reporter.track("merge", len(plain) + len(readings), unit="models") as advance:
        for name, method in plain.items():
            merged[name] = jax.jit(method)(theta0, thetas)
            advance()
        for name, reading in readings.items():
            run = jax.jit(partial(r2m, rank=recipe.rank, alpha=recipe.alpha, **reading))
            merged[name], diagnostics[name] = run(theta0, thetas)
            advance()
    return merged, diagnostics


def _evaluate(base: Detector, models: dict[str, Params], test: Split, reporter: Reporter) -> ScoreTable:
    score_all = score(apply_detector(base.config, base.options), base.processor.image_mean, base.processor.image_std)
    scores = ScoreTable(test.records)
    with reporter.track("evaluate", len(models) * len(test.images)) as advance:
        for name, params in models.items():
            scores.add(name, score_all(params, test.images))
            advance(len(test.images))
    return scores


def _samples(test: Split, families: Sequence[str], columns: int = 12) -> list[np.ndarray]:
    """Rows for a contact sheet: real test patches, and below each its forgery by every family."""
    rows = []
    for family in ["", *families]:
        picked = [index for index, record in enumerate(test.records) if record.family == family]
        step = max(1, len(picked) // columns)
        rows.append(test.images[picked[: step * columns : step][:columns]])
    return rows


def _save_models(base: Detector, models: dict[str, Params], recipe: DemoRecipe, folder: Path) -> None:
    origin = provenance.input_hashes(safetensors_files(tiny_base()))
    for item in origin:
        item["path"] = f"tiny_base/{Path(item['path']).name}"
    for name, params in models.items():
        kind = {PRETRAINED: "base", ALL_IN_ONE: "all_in_one"}.get(name, "merged")
        kind = "specialist" if name.startswith(_specialist("")) else kind
        made = provenance.record(kind, inputs=origin, recipe=recipe.model_dump(), seed=recipe.seed, name=name)
        save_detector(base.replace_params(params), folder / "models" / _folder_name(name), provenance=made)


def _folder_name(model: str) -> str:
    """A model's name as a plain ASCII folder name: ``r2m-from-the-average``."""
    spelt = model.lower().replace("²", "2").replace("θ₀", "theta0").replace("α", "alpha")
    return re.sub(r"[^a-z0-9.]+", "-", spelt).strip("-")


def _write_run_record(folder: Path, recipe: DemoRecipe, images: Path | None, seconds: float) -> None:
    inputs = provenance.input_hashes([folder / "data" / "index.csv"])
    inputs[0]["path"] = "data/index.csv"
    made = provenance.record(
        "demo",
        inputs=inputs,
        recipe=recipe.model_dump(),
        seed=recipe.seed,
        photographs="embedded" if images is None else str(images),
        seconds=round(seconds, 1),
        devices=[str(device) for device in jax.devices()],
    )
    (folder / provenance.FILE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(), sort_keys=False), encoding="utf-8")
