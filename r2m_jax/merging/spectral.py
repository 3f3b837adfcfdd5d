"""Rank truncation of batches of matrices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from r2m_jax.errors import InputError


def kept_rank(rank: float | int, m: int, n: int) -> int:
    """How many singular components an ``m × n`` matrix keeps.

    A float is a ratio r of min(m, n), giving max(1, int(r·min(m, n))) as CART's code rounds it; r = 0 keeps
    nothing and r = 1 everything. An int is a count, capped at min(m, n).

    Raises:
        InputError: a ratio outside 0…1, or a negative count.
    """
    smaller = min(m, n)
    if isinstance(rank, int):
        if rank < 0:
            raise InputError(f"rank={rank} is negative; give a count ≥ 0 or a ratio as a float in 0…1.")
        return min(rank, smaller)
    if not 0.0 <= rank <= 1.0:
        raise InputError(f"rank={rank} is no ratio in 0…1; give an int to mean a count.")
    return 0 if rank == 0 else max(1, int(rank * smaller))


def discarded_tail(
    matrices: Float[Array, "*batch m n"], rank: int
) -> tuple[Float[Array, "*batch m n"], Float[Array, "*batch s"]]:
    """What truncation to ``rank`` singular components throws away, and the whole spectrum.

    The tail W - W_r rather than W_r: centred residuals cancel in their sum, so a merge built from the kept parts
    would amplify their rounding errors about tenfold, one built from the tails does not.

    Returns:
        The tail in float32, and the singular values in descending order (s = min(m, n)).
    """
    *batch, m, n = matrices.shape

    def one(matrix: Float[Array, "m n"]) -> tuple[Array, Array]:
        u, s, vt = jnp.linalg.svd(matrix.astype(jnp.float32), full_matrices=False)
        return jnp.matmul(u[:, rank:] * s[rank:], vt[rank:], precision="highest"), s

    # One matrix at a time: a batched LAPACK call on the CPU spreads over the thread pool and waits there for its parts,
    # and two such calls in flight (two leaves, or two merges) on two cores wait for each other for ever.
    tails, spectra = jax.lax.map(one, matrices.reshape(-1, m, n))
    return tails.reshape(matrices.shape), spectra.reshape(*batch, min(m, n))
