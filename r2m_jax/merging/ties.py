"""TIES: trim, elect signs, average what agrees (Yadav et al., NeurIPS 2023, https://arxiv.org/abs/2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from r2m_jax.errors import InputError
from r2m_jax.merging.selection import Select, attention_and_mlp
from r2m_jax.merging.task_vectors import add_to, task_vectors

Tree = Any
_CARRY = 2**30  # of counts in two words


def ties(
    theta0: Tree,
    thetas: Sequence[Tree],
    *,
    density: float = 0.2,
    scale: float = 1.0,
    variant: Literal["original", "paper"] = "original",
    select: Select = attention_and_mlp,
) -> Tree:
    """Merge what specialists agree on.

    Of every task vector the ``density`` largest entries stay (over all leaves together, entries equal to the smallest
    of them included); at every place the sign of their sum is elected, a sum of zero taking the sign that most places
    have; entries of another sign are dropped.

    ``variant="original"`` adds ``scale`` times the mean of what is left, over the specialists that have something
    left there, to θ₀. ``"paper"`` is the wording of R²M, which adds ``scale`` times their sum to the average of the
    specialists, and so counts the mean task vector twice.

    Args:
        theta0: the pretrained origin; gives the result its dtypes.
        thetas: N specialists of the same structure.
        density: share of entries kept, in 0…1; TIES uses 0.2, R²M sweeps 0.1 to 0.7.
        scale: λ.
        variant: see above.
        select: unused, all leaves are treated alike; taken because all methods take it.

    Raises:
        InputError: no specialist, differing trees, or a setting out of range.
    """
    check(density, variant)
    return _ties(theta0, thetas, density, scale, variant)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _ties(
    theta0: Tree, thetas: Sequence[Tree], density: float, scale: float, variant: Literal["original", "paper"]
) -> Tree:
    vectors = task_vectors(theta0, thetas)
    leaves = jax.tree.leaves(vectors)
    thresholds = kth_largest(leaves, kept_entries(sum(leaf[0].size for leaf in leaves), density))
    votes = [vote(trim(list(leaf), thresholds)).sum() for leaf in leaves]
    majority = jnp.sign(_sum(votes))

    def update(leaf: Float[Array, " n *shape"]) -> Array:
        added = scale * agreed(trim(list(leaf), thresholds), majority, variant)
        return added + leaf.mean(axis=0) if variant == "paper" else added

    return add_to(theta0, jax.tree.map(update, vectors))


def check(density: float, variant: str) -> None:
    """Raise what is wrong with the settings."""
    if variant not in ("original", "paper"):
        raise InputError(f"variant={variant!r} is unknown; TIES takes 'original' or 'paper'.")
    if not 0 < density <= 1:
        raise InputError(f"density={density} is no share of entries; give a number above 0 and up to 1.")


def kept_entries(size: int, density: float) -> int:
    """How many entries of a task vector stay."""
    return max(1, int(size * density))


def trim(vectors: Sequence[Float[Array, " *shape"]], thresholds: Float[Array, " n"]) -> list[Float[Array, " *shape"]]:
    """Entries at least as large as the threshold of their task vector; zero elsewhere.

    Here and below specialists are taken one by one rather than stacked: compilers then make one loop of all of TIES,
    and no intermediate result is ever stored.
    """
    return [jnp.where(jnp.abs(vector) >= thresholds[i], vector, 0.0) for i, vector in enumerate(vectors)]


def vote(trimmed: Sequence[Float[Array, " *shape"]]) -> Float[Array, " *shape"]:
    """The sign of the sum at every place; 0 where nothing is left or it cancels."""
    return jnp.sign(_sum(trimmed))


def agreed(
    trimmed: Sequence[Float[Array, " *shape"]], majority: Float[Array, ""], variant: Literal["original", "paper"]
) -> Float[Array, " *shape"]:
    """What has the elected sign: its mean (``original``) or its sum (``paper``).

    Args:
        trimmed: of all task vectors.
        majority: the sign that places without one take.
        variant: see :func:`ties`.
    """
    votes = vote(trimmed)
    elected = jnp.where(votes == 0, majority, votes)
    agreeing = [jnp.where(part * elected > 0, part, 0.0) for part in trimmed]
    if variant == "paper":
        return _sum(agreeing)
    count = _sum([(part != 0).astype(part.dtype) for part in agreeing])
    return _sum(agreeing) / jnp.maximum(count, 1.0)


def _sum(parts: Sequence[Array]) -> Array:
    return sum(parts[1:], start=parts[0])


def kth_largest(leaves: Sequence[Float[Array, "n ..."]], k: int) -> Float[Array, " n"]:
    """Per row of the first axis the k-th largest absolute value over all leaves, exactly and without sorting.

    Floats of one sign are ordered as their bits are, so 31 counts find the bits of the answer from the highest to the
    lowest. Counts add up over leaves and over devices; nothing is gathered or copied.

    Args:
        leaves: float32, of a common first axis.
        k: from 1 to the number of entries of a row.
    """
    high, low = divmod(k, _CARRY)

    def enough(candidate: Int32[Array, " n"]) -> Array:
        """Whether at least k entries have bits at least as large; counts in two words, as a row may pass 2³¹."""
        highs, lows = jnp.zeros_like(candidate), jnp.zeros_like(candidate)
        for leaf in leaves:
            bits = jax.lax.bitcast_convert_type(jnp.abs(leaf).reshape(leaf.shape[0], -1), jnp.int32)
            counted = (bits >= candidate[:, None]).sum(axis=1, dtype=jnp.int32)
            lows = lows + counted % _CARRY
            highs, lows = highs + counted // _CARRY + lows // _CARRY, lows % _CARRY
        return (highs > high) | ((highs == high) & (lows >= low))

    def decide(step: Int32[Array, ""], found: Int32[Array, " n"]) -> Int32[Array, " n"]:
        candidate = found | (1 << (30 - step)).astype(jnp.int32)
        return jnp.where(enough(candidate), candidate, found)

    found = jax.lax.fori_loop(0, 31, decide, jnp.zeros(leaves[0].shape[0], jnp.int32))
    return jax.lax.bitcast_convert_type(found, jnp.float32)
