"""Over how many directions the change of a matrix is spread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

GRID = np.linspace(0.0, 1.0, 51)
"""Shares of a matrix's directions at which energy curves are given."""


@dataclass(frozen=True)
class Spectrum:
    """How many directions a matrix of one task vector uses; σ are its singular values, NaN where it is zero.

    For a stack of matrices within one layer the numbers are means over the stack.

    Attributes:
        stable_rank: ‖W‖_F² / ‖W‖₂² (Rudelson and Vershynin 2007, https://arxiv.org/abs/math/0503442).
        effective_rank: exp of the entropy of σ²/Σσ² (Roy and Vetterli 2007, who take σ instead of the energy σ²).
        leading: share of the energy Σσ² in the first direction.
        tenth: share in the leading 10 % of the directions.
        seventy: share in the leading 70 %, what R²M keeps at the paper's r = 0.7.
    """

    stable_rank: float
    effective_rank: float
    leading: float
    tenth: float
    seventy: float


def squared_singular_values(matrices: Float[np.ndarray, "*batch m n"]) -> Float[np.ndarray, "count k"]:
    """σ² of every matrix, descending, ``k = min(m, n)``.

    They are eigenvalues of the smaller Gram matrix, which is exact to 1e-16 of the largest σ² and several times
    faster than an SVD.
    """
    stack = matrices.reshape(-1, *matrices.shape[-2:])
    transposed = stack.swapaxes(1, 2)
    products = stack @ transposed if stack.shape[1] <= stack.shape[2] else transposed @ stack
    return np.maximum(np.linalg.eigvalsh(products)[:, ::-1], 0.0)


def spectrum(energies: Float[np.ndarray, "count k"]) -> Spectrum:
    """What :class:`Spectrum` says of σ² of a stack of matrices, descending."""
    used = energies[energies[:, 0] > 0]
    if not len(used):
        return Spectrum(*[float("nan")] * 5)
    shares = used / used.sum(axis=1, keepdims=True)
    logs = np.log(np.where(shares > 0, shares, 1.0))  # 0·log 0 counts as 0
    count = shares.shape[1]
    # The number of directions is counted as R²M's rank ratio is: rounded down, at least one.
    tenth, seventy = (max(1, int(ratio * count)) for ratio in (0.1, 0.7))
    return Spectrum(
        stable_rank=float((1 / shares[:, 0]).mean()),
        effective_rank=float(np.exp(-(shares * logs).sum(axis=1)).mean()),
        leading=float(shares[:, 0].mean()),
        tenth=float(shares[:, :tenth].sum(axis=1).mean()),
        seventy=float(shares[:, :seventy].sum(axis=1).mean()),
    )


def energy_curve(energies: Float[np.ndarray, " k"]) -> Float[np.ndarray, " grid"]:
    """Share of a matrix's energy in its leading directions, at the shares of directions :data:`GRID`."""
    total = np.concatenate([[0.0], np.cumsum(energies)])
    return np.interp(GRID, np.linspace(0, 1, len(total)), total / total[-1])
