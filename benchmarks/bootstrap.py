"""Time of a bootstrapped AUC beside a loop over scikit-learn on the same resamples.

    python benchmarks/bootstrap.py --images 100000 --frames 8

Clips of --frames frames with levels of their own, half of them fake; --frames 1 is stills. The loop repeats the rows of
drawn clips by index and calls roc_auc_score, for --loop resamples only, whose draws are its own; rates are per
resample, so they compare. The largest difference is that between the two ways on the loop's draws. One core. Nothing
is asserted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from r2m_jax.evaluation.resampling import WeightedAuc, bootstrap_auc


def main(
    images: Annotated[list[int] | None, typer.Option(help="May repeat.")] = None,
    frames: Annotated[list[int] | None, typer.Option(help="Per clip; may repeat.")] = None,
    models: int = 1,
    resamples: int = 1000,
    loop: int = 10,
) -> None:
    table = Table(title=f"{resamples} resamples, {models} models; NumPy {np.__version__}")
    for name in ("images", "clips", "seconds", "resamples/s", "scikit-learn, resamples/s", "times", "difference"):
        table.add_column(name, justify="right")
    with threadpool_limits(1):
        for count in images or [1_000, 10_000, 100_000]:
            for each in frames or [1, 8]:
                table.add_row(*one(count, each, models, resamples, loop))
    Console(width=120).print(table)


def one(images: int, frames: int, models: int, resamples: int, loop: int) -> tuple[str, ...]:
    rng = np.random.default_rng(0)
    clips = np.arange(images) // frames
    labels = clips % 2
    level = rng.normal(size=clips[-1] + 1)[clips]
    scores = (labels + level + rng.normal(size=(models, images))).astype(np.float32)
    ours = timed(lambda: bootstrap_auc(labels, scores, clips, resamples=resamples))
    drawn = rng.multinomial(clips[-1] + 1, np.full(clips[-1] + 1, 1 / (clips[-1] + 1)), size=loop)
    curves = [WeightedAuc(labels, row, clips) for row in scores]

    def by_hand() -> np.ndarray:
        found = []
        for counts in drawn:
            rows = np.repeat(np.arange(images), counts[clips])
            found.append([roc_auc_score(labels[rows], row[rows]) for row in scores])
        return np.asarray(found)

    theirs = timed(by_hand) / loop
    exact = np.asarray([[curve(counts) for curve in curves] for counts in drawn])
    rate = resamples / ours
    difference = np.abs(exact - by_hand()).max()
    return (
        f"{images:,}", f"{clips[-1] + 1:,}", f"{ours:.2f}", f"{rate:,.0f}", f"{1 / theirs:,.0f}",
        f"{rate * theirs:.0f}", f"{difference:.0e}",
    )  # fmt: skip


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
