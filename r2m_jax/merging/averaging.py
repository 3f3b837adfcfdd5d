"""Weight averaging (model soups, Wortsman et al. 2022, https://arxiv.org/abs/2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from r2m_jax.merging.selection import Select, attention_and_mlp
from r2m_jax.merging.task_arithmetic import TaskArithmetic, task_arithmetic

Tree = Any

WeightAveraging = partial(TaskArithmetic, 1.0, "mean")
"""θ₀ + Σ wᵢ τᵢ is task arithmetic at α = 1 with the mean; takes the weights."""


def weight_averaging(
    theta0: Tree,
    thetas: Sequence[Tree] | Tree,
    *,
    weights: Sequence[float] | None = None,
    select: Select = attention_and_mlp,
) -> Tree:
    """Average the specialists: θ₀ + Σ wᵢ τᵢ with wᵢ summing to 1, which is Σ wᵢ θᵢ.

    Args:
        theta0: the pretrained origin; gives the result its dtypes.
        thetas: N specialists of the same structure, or their leaves stacked.
        weights: one number ≥ 0 per specialist, normalised here; uniform when omitted.
        select: unused, averaging treats all leaves alike; taken because all methods take it.

    Raises:
        InputError: no specialist, differing trees, or weights of a wrong count, sign or sum.
    """
    return task_arithmetic(theta0, thetas, weights=weights, select=select)
