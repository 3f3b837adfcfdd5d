"""Task vectors τᵢ = θᵢ - θ₀ (Ilharco et al. 2022, https://arxiv.org/abs/2212.04089) in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from r2m_jax.errors import InputError
from r2m_jax.trees import same_structure

Tree = Any


def task_vectors(theta0: Tree, thetas: Sequence[Tree]) -> Tree:
    """All task vectors, stacked: every leaf ``[N, *shape]`` in float32.

    Raises:
        InputError: there is no specialist, or one differs from ``theta0`` in its leaves or shapes.
    """
    if not thetas:
        raise InputError("there is nothing to merge: give at least one specialist.")
    for index, theta in enumerate(thetas):
        same_structure(theta0, theta, f"specialist {index}")
    return jax.tree.map(
        lambda origin, *leaves: jnp.stack([leaf.astype(jnp.float32) - _float32(origin) for leaf in leaves]),
        theta0,
        *thetas,
    )


def add_to(theta0: Tree, update: Tree) -> Tree:
    """Return θ₀ + update, added in float32 and stored in the dtype of θ₀."""
    return jax.tree.map(lambda origin, leaf: (_float32(origin) + leaf).astype(origin.dtype), theta0, update)


def _float32(leaf: Array) -> Array:
    return leaf.astype(jnp.float32)
