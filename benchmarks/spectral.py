"""Time and error of every truncation kernel, which `auto` was chosen by.

    python benchmarks/spectral.py --size 768x768 --size 768x3072 --size 3072x768 --size 1024x1024

Matrices have singular values that fall by --decades over the spectrum, as residuals of trained specialists do. Error is
that of the discarded tail against a float64 SVD, relative; gap is how far its norm exceeds the least possible one
(Eckart and Young), relative. One device, one BLAS thread. Nothing is asserted.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg.cython_lapack  # noqa: F401  (the LAPACK jax calls: loaded, so that its threads can be limited)
import typer
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from r2m_jax.merging.ranks import kept_rank
from r2m_jax.merging.spectral import Kernel, discarded_tail

KERNELS: tuple[Kernel, ...] = ("gram", "svd", "randomized", "matmul")


def main(
    size: Annotated[list[str] | None, typer.Option(help="MxN; may repeat.")] = None,
    rank: Annotated[list[float] | None, typer.Option(help="Ratio kept; may repeat.")] = None,
    decades: float = 2.5,
    repeat: int = 3,
) -> None:
    table = Table(title=f"{jax.devices()[0].device_kind}, jax {jax.__version__}, spectra over {decades:g} decades")
    for name in ("matrix", "kept", "kernel", "seconds", "error of the tail", "gap", "compile s"):
        table.add_column(name, justify="right")
    with threadpool_limits(1, user_api="blas"):
        for each in size or ["768x768", "768x3072", "3072x768"]:
            m, n = map(int, each.split("x"))
            matrix = spread_out(m, n, decades)
            u, values, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
            for ratio in rank or [0.1, 0.7]:
                kept = kept_rank(ratio, m, n)
                wanted = (u[:, kept:] * values[kept:]) @ vt[kept:]
                for kernel in KERNELS:
                    if kernel != "randomized" or 2 * kept <= min(m, n):
                        table.add_row(each, str(kept), kernel, *one(matrix, wanted, kept, kernel, repeat))
    Console(width=120).print(table)


def spread_out(m: int, n: int, decades: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    small = min(m, n)
    u, v = (np.linalg.qr(rng.normal(size=(side, small)))[0] for side in (m, n))
    return np.asarray((u * 10 ** np.linspace(0, -decades, small)) @ v.T, np.float32)


def one(matrix: np.ndarray, wanted: np.ndarray, kept: int, kernel: Kernel, repeat: int) -> tuple[str, ...]:
    start = time.perf_counter()
    compiled = jax.jit(lambda x: discarded_tail(x, kept, kernel)).lower(jnp.asarray(matrix)).compile()
    compiling = time.perf_counter() - start
    seconds = []
    for _ in range(repeat + 1):  # the first is a warm-up
        start = time.perf_counter()
        tail = np.asarray(jax.block_until_ready(compiled(jnp.asarray(matrix))), np.float64)
        seconds.append(time.perf_counter() - start)
    least = np.linalg.norm(wanted)
    error, gap = np.linalg.norm(tail - wanted) / least, np.linalg.norm(tail) / least - 1
    return f"{statistics.median(seconds[1:]):.3f}", f"{error:.1e}", f"{gap:.1e}", f"{compiling:.1f}"


if __name__ == "__main__":
    typer.run(main)
