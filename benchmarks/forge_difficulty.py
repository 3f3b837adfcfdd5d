"""How hard forged methods are to tell: trivial statistics, a linear probe on frozen CLIP, the tiny base fine-tuned.

    r2m data forge ../shared/data/faces_ffhq --out /tmp/forged --size 128 --per-image 0
    python benchmarks/forge_difficulty.py /tmp/forged/index.csv --clip CLIP_B16_DIRECTORY

For every method: AUC on test images of (a) logistic regression on each channel's mean and variance, (b) logistic
regression on the pooled output of a frozen CLIP tower, (c) the tiny base fully fine-tuned on the method, on unscaled
tiles of each image (an image's score is the mean over its tiles).
Real and forged images of one photograph are always on the same side of the split.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from r2m_jax.checkpoints import load_detector, tiny_base
from r2m_jax.data.device import normalise
from r2m_jax.data.images import decode_image, load_images
from r2m_jax.data.index import read_index
from r2m_jax.data.pipeline import training_batches
from r2m_jax.data.records import Record
from r2m_jax.evaluation import score
from r2m_jax.models import Detector, apply_detector
from r2m_jax.parallel import data_mesh
from r2m_jax.progress import Reporter
from r2m_jax.training import Window, adam_coupled_l2, fit, image_inputs, init_state, train_step, warmup_cosine


def main(
    index: Path,
    clip: Annotated[Path | None, typer.Option(help="Model directory of a CLIP tower; no probe without.")] = None,
    train: Annotated[int, typer.Option(help="Images of each kind to train on, at most.")] = 240,
    test: Annotated[int, typer.Option(help="Images of each kind to test on, at most.")] = 150,
    tiles: Annotated[bool, typer.Option(help="Fine-tune the tiny base on tiles.")] = True,
    passes: Annotated[int, typer.Option(help="Over a method's tiles.")] = 4,
    rate: Annotated[float, typer.Option(help="Peak learning rate of the tiny base.")] = 1e-4,
    only: Annotated[list[str] | None, typer.Option(help="Methods to look at; all without.")] = None,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file of the results.")] = None,
) -> None:
    """Print one row per method."""
    reporter = Reporter()
    records = [r for r in read_index(index) if not only or not r.method or r.method in only]
    records = _sample(records, train, test, seed)
    methods = {r.method: r.family for r in records if r.method}
    results: dict[str, dict[str, float]] = {name: {} for name in methods}
    statistics = _statistics(records)
    for name in methods:
        results[name]["mean and variance"] = _probe_auc(records, statistics, name)
    if clip:
        features = _features(load_detector(clip), records, reporter)
        for name in methods:
            results[name]["CLIP probe"] = _probe_auc(records, features, name)
    for name in methods if tiles else ():
        chosen = [r for r in records if r.method in ("", name)]
        results[name]["tiny base"] = _fine_tuned_auc(chosen, passes, rate, seed, reporter, name)
    columns = list(next(iter(results.values())))
    print(f"{'method':<26}{'family':<8}" + "".join(f"{column:>20}" for column in columns))
    for name, row in results.items():
        print(f"{name:<26}{methods[name]:<8}" + "".join(f"{row[column]:>20.3f}" for column in columns))
    if out:
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _sample(records: Sequence[Record], train: int, test: int, seed: int) -> list[Record]:
    rng = np.random.default_rng(seed)
    chosen: list[Record] = []
    for split, most in (("train", train), ("test", test)):
        kinds: dict[str, list[Record]] = {}
        for record in records:
            if record.split == split:
                kinds.setdefault(record.method, []).append(record)
        for name, kind in kinds.items():
            # More real images than forgeries of one method: they are shared by all of them.
            count = min(len(kind), most if name else 2 * most)
            chosen += [kind[i] for i in rng.permutation(len(kind))[:count]]
    return chosen


def _statistics(records: Sequence[Record]) -> np.ndarray:
    images = load_images([r.path for r in records], 128).astype(np.float32)
    return np.concatenate([images.mean(axis=(1, 2)), images.var(axis=(1, 2))], axis=1)


def _features(detector: Detector, records: Sequence[Record], reporter: Reporter) -> np.ndarray:
    side, batch = detector.config.image_size, 32
    mean, std = detector.processor.image_mean, detector.processor.image_std
    features = []
    pooled = jax.jit(lambda images: detector.features(normalise(images, mean, std)))
    with reporter.track("CLIP features", len(records)) as advance:
        for start in range(0, len(records), batch):
            images = load_images([r.path for r in records[start : start + batch]], side)
            padded = np.zeros((batch, side, side, 3), np.uint8)
            padded[: len(images)] = images
            features.append(np.asarray(pooled(padded))[: len(images)])
            advance(len(images))
    return np.concatenate(features)


def _probe_auc(records: Sequence[Record], features: np.ndarray, method: str) -> float:
    def part(split: str) -> tuple[np.ndarray, np.ndarray]:
        rows = [i for i, r in enumerate(records) if r.split == split and r.method in ("", method)]
        return features[rows], np.array([records[i].label for i in rows])

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2000, class_weight="balanced"))
    model.fit(*part("train"))
    images, labels = part("test")
    return float(roc_auc_score(labels, model.decision_function(images)))


def _fine_tuned_auc(
    records: Sequence[Record], passes: int, rate: float, seed: int, reporter: Reporter, name: str
) -> float:
    base = load_detector(tiny_base())
    mean, std = base.processor.image_mean, base.processor.image_std
    logits = apply_detector(base.config, base.options)
    learnt = [r for r in records if r.split == "train"]
    images, tiles = _tiles(learnt, base.config.image_size)
    labels = np.repeat([r.label for r in learnt], tiles)
    batches, steps = training_batches(images, labels.tolist(), batch_size=32, passes=passes, seed=seed)
    optimizer = adam_coupled_l2(warmup_cosine(rate, steps), 0.0)
    step = jax.jit(train_step(logits, optimizer, image_inputs(mean, std)), donate_argnums=0)
    with reporter.track(f"fine-tune on {name}", steps, each=32) as advance:

        def on_window(window: Window) -> None:
            advance(len(window.loss), note=f"loss {window.loss.mean():.3f}")

        state = fit(step, init_state(base.params, optimizer, seed), batches, mesh=data_mesh(), on_window=on_window)
    held = [r for r in records if r.split == "test"]
    scores = score(logits, mean, std)(state.params, _tiles(held, base.config.image_size)[0])
    return float(roc_auc_score([r.label for r in held], np.reshape(scores, (len(held), tiles)).mean(axis=1)))


def _tiles(records: Sequence[Record], side: int) -> tuple[np.ndarray, int]:
    """Unscaled tiles of the middle of each image, and how many an image gives.

    Shrinking a whole face to the tiny base's 64 pixels would smooth most traces away.
    """
    size = decode_image(records[0].path).width
    count, edge = size // side, size % side // 2
    images = load_images([r.path for r in records], size)[:, edge : edge + count * side, edge : edge + count * side]
    grid = images.reshape(len(images), count, side, count, side, 3).swapaxes(2, 3)
    return grid.reshape(-1, side, side, 3), count**2


if __name__ == "__main__":
    typer.run(main)
