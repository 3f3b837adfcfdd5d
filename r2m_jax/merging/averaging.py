"""Weight averaging (model soups, Wortsman et al. 2022, https://arxiv.org/abs/2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from r2m_jax.errors import InputError
from r2m_jax.merging.selection import Select, attention_and_mlp
from r2m_jax.merging.task_vectors import add_to, combine, task_vectors

Tree = Any


def weight_averaging(
    theta0: Tree,
    thetas: Sequence[Tree],
    *,
    weights: Sequence[float] | None = None,
    select: Select = attention_and_mlp,
) -> Tree:
    """Average the specialists: θ₀ + Σ wᵢ τᵢ with wᵢ summing to 1, which is Σ wᵢ θᵢ.

    Args:
        theta0: the pretrained origin; gives the result its dtypes.
        thetas: N specialists of the same structure.
        weights: one positive number per specialist, normalised here; uniform when omitted.
        select: unused, averaging treats all leaves alike; taken because all methods take it.

    Raises:
        InputError: no specialist, differing trees, or weights of a wrong count, sign or sum.
    """
    count = len(thetas)
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(given) != count or any(weight < 0 for weight in given) or sum(given) <= 0:
        raise InputError(f"weights {given} do not fit: give one number ≥ 0 for each of the {count} specialists.")
    shares = jnp.asarray([weight / sum(given) for weight in given], jnp.float32)
    return add_to(theta0, combine(task_vectors(theta0, thetas), shares))
