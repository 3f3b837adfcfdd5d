"""Measure: the small numbers a merge is decided by, leaf by leaf and layer by layer.

With w the specialists' weights, τ̄ = Σ wᵢ τᵢ and δᵢ = τᵢ - τ̄, every layer of every leaf gives inner products of the δᵢ
and τ̄, and, where it is truncated, of the discarded tails. They add up over leaves; a few N × N operations on the sums
then decide a merge (:class:`r2m_jax.merging.engine.Method`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
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
_STRETCH = 1024
_matmul = partial(jnp.matmul, precision="highest")


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


def mean_vector(
    theta0: Float[Array, " *shape"], thetas: Sequence[Float[Array, " *shape"]], weights: Float[Array, " n"]
) -> Float[Array, " *shape"]:
    """τ̄, in the widest float (inside :func:`~r2m_jax.merging.spectral.wide_arithmetic`)."""
    start = theta0.astype(wide())
    terms = [weights[i] * (theta.astype(wide()) - start) for i, theta in enumerate(thetas)]
    return sum(terms[1:], start=terms[0])


def residual(
    theta0: Float[Array, " *shape"], theta: Float[Array, " *shape"], mean: Float[Array, " *shape"]
) -> Float[Array, " *shape"]:
    """δ = τ - τ̄ of one specialist, in the widest float."""
    return theta.astype(wide()) - theta0.astype(wide()) - mean


def measure_plain(
    theta0: Float[Array, " l *shape"], thetas: Float[Array, " l n *shape"], weights: Float[Array, " n"]
) -> Statistics:
    """Statistics of a unit that is not truncated."""
    layers, count = thetas.shape[:2]
    each = [thetas[:, i] for i in range(count)]
    mean = mean_vector(theta0, each, weights)
    gram = _products([*(residual(theta0, theta, mean) for theta in each), mean], layers)
    nothing = jnp.zeros((layers, count + 1, count), gram.dtype)
    return Statistics(gram, nothing[:, :count], nothing, jnp.diagonal(gram, axis1=1, axis2=2)[:, :count])


def measure_matrices(
    theta0: Float[Array, "l m n"],
    thetas: Float[Array, "l k m n"],
    weights: Float[Array, " k"],
    rank: Rank,
    kernel: Kernel = "auto",
    mesh: Mesh | None = None,
    bases: Float[Array, "l k s j"] | None = None,
) -> tuple[Statistics, Float[Array, "l k s j"]]:
    """Statistics of matrices, and the bases their tails can be had from again (:func:`tails_of`).

    A mesh divides the layers over its devices, or the single matrices of all specialists where it has more devices
    than there are layers. ``bases`` that are known are taken as they are.
    """
    layers, count, m, n = thetas.shape
    if bases is None and mesh is not None and layers < mesh.size:
        bases = bases_of(theta0, thetas, weights, rank, kernel, mesh)

    def one(start: Array, stack: Array, found: Array | None) -> tuple[Statistics, Array]:
        mean = mean_vector(start, list(stack), weights)
        if found is None:
            found = bases_of_layer(start, stack, mean, rank, kernel)
        delta = [residual(start, theta, mean).astype(jnp.float32) for theta in stack]
        tails = tails_of(delta, found, keeps_basis(rank, m, n))
        products = _products([*delta, mean, *tails])[0]
        vectors, of_tail = slice(0, count + 1), slice(count + 1, None)
        gram, of_tails = products[vectors, vectors], products[of_tail, of_tail]
        # The basis is orthonormal: what is kept and what is discarded share the energy between them. One direction of
        # any matrix holds more than _NOTHING of its energy; less is the rounding of a difference of equal numbers.
        energy = jnp.diagonal(gram)[:count]
        kept = energy - jnp.diagonal(of_tails)
        kept = jnp.where(kept > _NOTHING * energy, kept, 0.0)
        return Statistics(gram, of_tails, products[vectors, of_tail], kept), found

    measured: tuple[Statistics, Array] = one_by_one(one, theta0, thetas, bases, mesh=mesh)
    return measured


def bases_of(
    theta0: Float[Array, "l m n"],
    thetas: Float[Array, "l k m n"],
    weights: Float[Array, " k"],
    rank: Rank,
    kernel: Kernel = "auto",
    mesh: Mesh | None = None,
) -> Float[Array, "l k s j"]:
    """Bases of all residuals (:func:`~r2m_jax.merging.spectral.basis`), every matrix by itself."""
    layers, count, m, n = thetas.shape
    mean = mean_vector(theta0, [thetas[:, i] for i in range(count)], weights)
    flat = residual(theta0[:, None], thetas, mean[:, None]).reshape(layers * count, m, n)
    found = one_by_one(lambda matrix: basis(matrix, rank, kernel), flat, mesh=mesh)
    return found.reshape(layers, count, *found.shape[1:])


def bases_of_layer(
    theta0: Float[Array, "m n"], thetas: Float[Array, "k m n"], mean: Float[Array, "m n"], rank: Rank, kernel: Kernel
) -> Float[Array, "k s j"]:
    """Bases of one layer's residuals, one after the other: only one is in float64 at a time, however many there are."""
    found: Array = jax.lax.map(lambda theta: basis(residual(theta0, theta, mean), rank, kernel), thetas)
    return found


def tails_of(
    delta: Sequence[Float[Array, "m n"]], bases: Float[Array, "k s j"], keeps: bool
) -> list[Float[Array, "m n"]]:
    """The discarded tails of residuals from their bases, in float32."""
    return [discarded(matrix.astype(jnp.float32), bases[i], keeps) for i, matrix in enumerate(delta)]


def concatenate(parts: Sequence[Statistics]) -> Statistics:
    """Rows of several measurements, one after the other."""
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)


def _stretches_at_once() -> int:
    """How many stretches one step of the sums takes.

    On a CPU one: stacking more for a batched product takes twelve times as long. An accelerator would spend its time
    on launching steps: CLIP L/14 has 295,000 stretches.
    """
    return 1 if jax.default_backend() == "cpu" else 1024


def _products(parts: Sequence[Float[Array, " *shape"]], layers: int = 1) -> Float[Array, "l n n"]:
    """⟨partᵢ, partⱼ⟩ of every layer, where the arrays are stacks of so many.

    In float32 over short stretches, whose sums are added up in the widest float: relative errors of 1e-8, at half the
    memory traffic of float64.
    """
    size = math.prod(parts[0].shape) // layers
    stretch = min(_STRETCH, size)
    block = max(1, min(_stretches_at_once() // layers, -(-size // stretch)))

    def rows(part: Array) -> Array:
        filled = jnp.pad(part.astype(jnp.float32).reshape(layers, -1), ((0, 0), (0, -size % (stretch * block))))
        return jnp.moveaxis(filled.reshape(layers, -1, block, stretch), 1, 0)

    def add(sums: Array, stretches: list[Array]) -> tuple[Array, None]:
        here = jnp.stack(stretches, axis=2)
        return sums + _matmul(here, here.mT).astype(sums.dtype).sum(axis=1), None

    start = jnp.zeros((layers, len(parts), len(parts)), wide())
    total: Array = jax.lax.scan(add, start, [rows(part) for part in parts])[0]
    return total
