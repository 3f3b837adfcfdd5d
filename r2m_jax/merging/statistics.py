"""Measure: the small numbers a merge is decided by, leaf by leaf and layer by layer.

With w the specialists' weights, τ̄ = Σ wᵢ τᵢ and δᵢ = τᵢ - τ̄, every layer of every leaf gives inner products of the δᵢ
and τ̄, and, where it is truncated, of the discarded tails. They add up over leaves; a few N × N operations on the sums
then decide a merge (:class:`r2m_jax.merging.engine.Method`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from r2m_jax.merging.ranks import Rank
from r2m_jax.merging.selection import Unit
from r2m_jax.merging.spectral import Kernel, basis, discarded, keeps_basis, one_by_one, wide

_NOTHING = 1e-6


class Statistics(NamedTuple):
    """Of E entries (a layer of a unit each) and N specialists; float64 where there is float64.

    Attributes:
        gram: inner products of δ₁ … δ_N and τ̄, in this order.
        tails: ⟨tailᵢ, tailⱼ⟩; zero where nothing is truncated.
        cross: ⟨δᵢ, tailⱼ⟩, and ⟨τ̄, tailⱼ⟩ in the last row.
        kept: ‖δ̃ᵢ‖², of what truncation keeps.
    """

    gram: Float[Array, "e n+1 n+1"] | Float[np.ndarray, "e n+1 n+1"]
    tails: Float[Array, "e n n"] | Float[np.ndarray, "e n n"]
    cross: Float[Array, "e n+1 n"] | Float[np.ndarray, "e n+1 n"]
    kept: Float[Array, "e n"] | Float[np.ndarray, "e n"]


class Entry(NamedTuple):
    """Where a row of the statistics comes from: a layer of a unit, and the transformer block it is in."""

    name: str
    block: str
    matrix: bool


def entries(units: Sequence[Unit]) -> list[Entry]:
    """The rows of the statistics of these units, in order."""
    return [
        Entry(unit.name if unit.layers == 1 else f"{unit.name}[{layer}]", block, unit.matrix)
        for unit in units
        for layer, block in enumerate(unit.blocks())
    ]


def residuals(
    theta0: Float[Array, l * shape], thetas: Float[Array, "n l *shape"], weights: Float[Array, " n"]
) -> tuple[Float[Array, "n l *shape"], Float[Array, l * shape]]:
    """δᵢ and τ̄, in the widest float (inside :func:`~r2m_jax.merging.spectral.wide_arithmetic`)."""
    vectors = thetas.astype(wide()) - theta0.astype(wide())
    mean = jnp.tensordot(weights.astype(wide()), vectors, 1, precision="highest")
    return vectors - mean, mean


def measure_plain(
    theta0: Float[Array, l * shape], thetas: Float[Array, "n l *shape"], weights: Float[Array, " n"]
) -> Statistics:
    """Statistics of a unit that is not truncated."""
    gram = _gram(*residuals(theta0, thetas, weights))
    count = thetas.shape[0]
    nothing = jnp.zeros((gram.shape[0], count + 1, count), gram.dtype)
    return Statistics(gram, nothing[:, :count], nothing, jnp.diagonal(gram, axis1=1, axis2=2)[:, :count])


def measure_matrices(
    theta0: Float[Array, "l m n"],
    thetas: Float[Array, "k l m n"],
    weights: Float[Array, " k"],
    rank: Rank,
    kernel: Kernel = "auto",
    mesh: Mesh | None = None,
) -> tuple[Statistics, Float[Array, "k l s j"]]:
    """Statistics of matrices, and the bases their tails can be had from again (:func:`tails_of`).

    All k·l matrices are one batch; a mesh divides it over its devices.
    """
    delta, mean = residuals(theta0, thetas, weights)
    count = delta.shape[0]
    bases = bases_of(delta, rank, kernel, mesh)
    tails = tails_of(delta, bases, keeps_basis(rank, *delta.shape[-2:]), mesh)
    gram = _gram(delta, mean)
    of_tails = _products(tails, tails)
    energy = jnp.diagonal(gram, axis1=1, axis2=2)[:, :count]
    # The basis is orthonormal: what is kept and what is discarded share the energy between them. One direction of any
    # matrix holds more than _NOTHING of its energy; less is the rounding of a difference of equal numbers.
    kept = energy - jnp.diagonal(of_tails, axis1=1, axis2=2)
    kept = jnp.where(kept > _NOTHING * energy, kept, 0.0)
    return Statistics(gram, of_tails, _products(jnp.concatenate([delta, mean[None]]), tails), kept), bases


def bases_of(
    delta: Float[Array, "k l m n"], rank: Rank, kernel: Kernel = "auto", mesh: Mesh | None = None
) -> Float[Array, "k l s j"]:
    """Bases of residuals (:func:`~r2m_jax.merging.spectral.basis`), all as one batch."""
    count, layers, m, n = delta.shape
    found = one_by_one(lambda matrix: basis(matrix, rank, kernel), delta.reshape(-1, m, n), mesh=mesh)
    return found.reshape(count, layers, *found.shape[1:])


def tails_of(
    delta: Float[Array, "k l m n"], bases: Float[Array, "k l s j"], keeps: bool, mesh: Mesh | None = None
) -> Float[Array, "k l m n"]:
    """The discarded tails of residuals from their bases, in float32."""
    m, n = delta.shape[-2:]

    def one(matrix: Float[Array, "m n"], found: Float[Array, "s j"]) -> Array:
        return discarded(matrix.astype(jnp.float32), found, keeps)

    batch = delta.shape[0] * delta.shape[1]
    flat = one_by_one(one, delta.reshape(batch, m, n), bases.reshape(batch, *bases.shape[2:]), mesh=mesh)
    return flat.reshape(delta.shape)


def concatenate(parts: Sequence[Statistics]) -> Statistics:
    """Rows of several measurements, one after the other."""
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)


def _gram(delta: Float[Array, "n l *shape"], mean: Float[Array, l * shape]) -> Float[Array, "l n+1 n+1"]:
    both = jnp.concatenate([delta, mean[None]])
    return _products(both, both)


def _products(a: Float[Array, "n l *shape"], b: Float[Array, "k l *shape"]) -> Float[Array, "l n k"]:
    """⟨aᵢ, bⱼ⟩ of every layer."""
    a, b = (x.astype(wide()).reshape(*x.shape[:2], -1) for x in (a, b))
    return jnp.einsum("nlx,klx->lnk", a, b, precision="highest")
