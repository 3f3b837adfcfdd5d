"""Fine-tuning what was pruned: weights that are zero stay zero.

Han et al. 2015, https://arxiv.org/abs/1506.02626, section 3; torch's ``torch.nn.utils.prune`` holds a mask to the same
end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from r2m_jax.models import Params
from r2m_jax.trees import flatten


class Kept(NamedTuple):
    """State of :func:`keep_zeros`: which entries move, by path, and the state of the optimiser inside."""

    moving: dict[str, Bool[Array, ...]]
    inside: Any


def prunable(path: str) -> bool:
    """Whether a leaf is one that pruning thins out: a kernel, not a bias nor a norm."""
    return path.endswith("/kernel")


def zeros(params: Params) -> int:
    """How many entries of prunable leaves are zero."""
    return sum(int((leaf == 0).sum()) for path, leaf in flatten(params).items() if prunable(path))


def keep_zeros(
    optimizer: optax.GradientTransformation, which: Callable[[str], bool] = prunable
) -> optax.GradientTransformation:
    """An optimiser under which entries that are zero at its start stay zero, bit for bit.

    Their gradients are removed before moments, norms and clipping see them, and their updates after.

    Args:
        optimizer: of a dict from leaf path to leaf.
        which: leaves in which zeros are kept; in others they move.
    """

    def init(params: Mapping[str, Any]) -> Kept:
        moving = {path: leaf != 0 for path, leaf in params.items() if which(path)}
        return Kept(moving, optimizer.init(params))

    def update(updates: Mapping[str, Any], state: Kept, params: Any = None) -> tuple[dict[str, Any], Kept]:
        inner, inside = optimizer.update(_masked(updates, state.moving), state.inside, params)
        return _masked(inner, state.moving), Kept(state.moving, inside)

    return optax.GradientTransformation(init, update)


def _masked(updates: Mapping[str, Any], moving: Mapping[str, Any]) -> dict[str, Any]:
    return {
        path: jnp.where(moving[path], leaf, jnp.zeros_like(leaf)) if path in moving else leaf
        for path, leaf in updates.items()
    }
