"""CART: the average plus the leading singular components of what each specialist is beyond it.

Choi et al., "Revisiting Weight Averaging for Model Merging", https://arxiv.org/abs/2412.12153.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from r2m_jax.errors import InputError
from r2m_jax.merging.selection import Select, attention_and_mlp, path_of
from r2m_jax.merging.spectral import discarded_tail, kept_rank
from r2m_jax.merging.task_vectors import add_to, task_vectors

Tree = Any


def cart(
    theta0: Tree,
    thetas: Sequence[Tree],
    *,
    rank: float | int = 0.3,
    scale: float = 1.0,
    reduce: Literal["sum", "mean"] = "sum",
    select: Select = attention_and_mlp,
) -> Tree:
    """Add truncated centred task vectors to the average of the specialists: θ_avg + λ Σᵢ SVD_r(θᵢ - θ_avg).

    The centred task vectors add up to zero, so their kept parts add up to minus their discarded tails, from which the
    result is computed without cancellation; it also shows that at full rank CART is weight averaging, and that leaves
    that are not truncated are plain averages.

    Args:
        theta0: gives the result its structure and dtypes, and nothing else.
        thetas: N specialists of the same structure.
        rank: singular components a matrix keeps, a ratio as float or a count as int
            (:func:`~r2m_jax.merging.spectral.kept_rank`); CART's best are ratios of 0.08 to 0.16.
        scale: λ; 1 to 2 in CART, 0.5 and 1 in R²M.
        reduce: ``"sum"`` as CART, ``"mean"`` as R²M's text can be read.
        select: which leaves are truncated.

    Raises:
        InputError: no specialist, differing trees, or a setting out of range.
    """
    if reduce not in ("sum", "mean"):
        raise InputError(f"reduce={reduce!r} is unknown; CART reduces by 'sum' or 'mean'.")
    vectors = task_vectors(theta0, thetas)
    share = scale / len(thetas) if reduce == "mean" else scale

    def merged(keys: tuple[Any, ...], leaf: Float[Array, "n ..."]) -> Array:
        mean = leaf.mean(axis=0)
        if not select(path_of(keys), leaf[0]):
            return mean
        tails, _ = discarded_tail(leaf - mean, kept_rank(rank, *leaf.shape[-2:]))
        return mean - share * tails.sum(axis=0)

    return add_to(theta0, jax.tree_util.tree_map_with_path(merged, vectors))
