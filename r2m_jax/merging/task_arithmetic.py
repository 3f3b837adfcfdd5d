"""Task arithmetic (Ilharco et al. 2022, https://arxiv.org/abs/2212.04089)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp

from r2m_jax.errors import InputError
from r2m_jax.merging.selection import Select, attention_and_mlp
from r2m_jax.merging.task_vectors import add_to, combine, task_vectors

Tree = Any


def task_arithmetic(
    theta0: Tree,
    thetas: Sequence[Tree],
    *,
    alpha: float = 1.0,
    reduce: Literal["mean", "sum"] = "mean",
    select: Select = attention_and_mlp,
) -> Tree:
    """Add scaled task vectors to the origin.

    ``reduce="sum"`` is the original θ₀ + α Σ τᵢ. ``"mean"`` is what the R²M paper's text says, θ₀ + α mean τᵢ,
    which at α = 1 is weight averaging; the paper's tables differ from weight averaging all the same, which fits
    the sum.

    Args:
        theta0: the pretrained origin; gives the result its dtypes.
        thetas: N specialists of the same structure.
        alpha: scale; the paper sweeps 0.5 and 1.
        reduce: ``"mean"`` or ``"sum"``.
        select: unused, all leaves are treated alike; taken because all methods take it.

    Raises:
        InputError: no specialist, differing trees, or an unknown ``reduce``.
    """
    if reduce not in ("mean", "sum"):
        raise InputError(f"reduce={reduce!r} is unknown; task arithmetic reduces by 'mean' or 'sum'.")
    vectors = task_vectors(theta0, thetas)
    each = alpha / len(thetas) if reduce == "mean" else alpha
    return add_to(theta0, combine(vectors, jnp.full(len(thetas), each, jnp.float32)))
