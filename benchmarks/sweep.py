"""Twelve merges from one factorisation beside one merge: what a sweep of R²M costs, in memory.

    python benchmarks/sweep.py --tower ViT-B/16 --layers 4
    python benchmarks/sweep.py --tower ViT-L/14 --layers 6 --processor-time     # where others use the machine too

Four α times three ranks through r2m_jax.merging.sweep.Sweep, and one r2m_jax.merging.r2m of the middle of the grid,
each from empty caches, compilation included and by itself. Nothing is asserted. merge_peers.py makes the models.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from merge_peers import FILE, NAMES, folders, prepare  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from r2m_jax import merging
from r2m_jax.merging.r2m import R2M
from r2m_jax.merging.sweep import Sweep
from r2m_jax.parallel import data_mesh, one_device_per_core, one_lapack_thread

ALPHAS = (0.3, 0.5, 0.7, 1.0)
RANKS = (0.3, 0.5, 0.7)


def main(
    tower: Annotated[str, typer.Option(help="tiny, ViT-B/16, ViT-L/14.")] = "ViT-B/16",
    layers: Annotated[int | None, typer.Option(help="Of the tower; its own without.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the tower; its own without.")] = None,
    specialists: Annotated[int, typer.Option(min=1, max=len(NAMES))] = 3,
    processor_time: Annotated[bool, typer.Option("--processor-time", help="Core seconds, not wall seconds.")] = False,
    work: Path = Path("/tmp/sweep-bench"),
) -> None:
    """Time both and print a table."""
    clock = time.process_time if processor_time else time.perf_counter
    folder = work.resolve() / f"{tower.replace('/', '')}-L{layers or ''}-d{width or ''}-N{specialists}"
    prepare(folder, tower=tower, layers=layers, width=width, specialists=specialists)
    one_device_per_core()
    base, *thetas = (load_file(path / FILE) for path in folders(folder, specialists))
    thetas = [{name: theta[name] for name in base} for theta in thetas]  # without heads
    mesh = data_mesh(jax.local_devices())

    def timed(call: Callable[[], Any]) -> tuple[float, Any]:
        start = clock()
        result = call()
        jax.block_until_ready(result)
        return clock() - start, result

    def one() -> Any:
        return merging.r2m(base, thetas, rank=RANKS[1], alpha=ALPHAS[1], mesh=mesh).params

    rows: list[tuple[str, float]] = []
    with one_lapack_thread():
        rows.append(("one merge, compilation included", timed(one)[0]))
        rows.append(("one merge again", timed(one)[0]))
        jax.clear_caches()
        seconds, sweep = timed(lambda: Sweep(base, thetas, mesh=mesh))
        rows.append(("factorisation of the sweep", seconds))
        grid = [R2M(rank=rank, alpha=alpha) for rank in RANKS for alpha in ALPHAS]
        each = [timed(partial(sweep.merge, method))[0] for method in grid]
        rows += [("its first candidate", each[0]), ("the mean of the other eleven", sum(each[1:]) / len(each[1:]))]
        rows.append(("the sweep of twelve", seconds + sum(each)))
    unit = "core s" if processor_time else "wall s"
    table = Table(title=f"R²M, {tower}, {layers or 'all'} layers, N = {specialists}, {mesh.size} devices")
    for name in ("", unit, "by one merge"):
        table.add_column(name, justify="right" if name else "left")
    for name, taken in rows:
        table.add_row(name, f"{taken:.1f}", f"{taken / rows[0][1]:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
