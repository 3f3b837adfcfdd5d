"""Loss surfaces around a trained model along two filter-normalised directions.

Li et al., NeurIPS 2018, https://arxiv.org/abs/1712.09913, §4: a Gaussian direction whose filters have the lengths of
the model's own filters, biases and norms' parameters left out, so that surfaces of models of other scales compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from r2m_jax.errors import InputError

_TINY = 1e-10


@dataclass(frozen=True)
class Landscape:
    """Losses on a square of the plane.

    Attributes:
        axis: coordinates along both directions, in units of the filters' lengths.
        losses: first axis along the first direction; the middle is the model itself.
        seeds: of the two directions.
    """

    axis: Float[np.ndarray, " grid"]
    losses: Float[np.ndarray, "grid grid"]
    seeds: tuple[int, int]

    @property
    def rise(self) -> float:
        """Mean loss on the border of the square minus that of the model: how steep the basin is."""
        edge = np.concatenate([self.losses[0], self.losses[-1], self.losses[1:-1, 0], self.losses[1:-1, -1]])
        middle = len(self.axis) // 2
        return float(edge.mean() - self.losses[middle, middle])


def direction(params: Any, key: Key[Array, ""]) -> Any:
    """A Gaussian direction, every filter as long as the model's: d ‖w‖ / (‖d‖ + 1e-10).

    A filter is what leads to one output unit: of a kernel [..., inputs, outputs] all entries of one output. Leaves of
    one axis get zeros.
    """
    leaves, structure = jax.tree.flatten(params)

    def one(leaf: Array, key: Key[Array, ""]) -> Array:
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        drawn = jax.random.normal(key, leaf.shape, leaf.dtype)
        inputs = tuple(range(leaf.ndim - 1))
        own, other = (jnp.sqrt((w**2).sum(axis=inputs, keepdims=True)) for w in (leaf, drawn))
        return drawn * own / (other + _TINY)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [one(leaf, keys[i]) for i, leaf in enumerate(leaves)])


def landscape(
    loss: Callable[[Any], Array], params: Any, *, seeds: tuple[int, int] = (0, 1), points: int = 51, reach: float = 1.0
) -> Landscape:
    """Losses on a grid of ``points`` × ``points`` over [-reach, reach]².

    Args:
        loss: mean over the data, a scalar.
        params: the model in the middle.
        seeds: of the two directions.
        points: of each axis, odd so that the model is one of them.
        reach: of each axis.

    Raises:
        InputError: the number of points is even or below 3, the seeds are equal, or a loss is NaN or infinite.
    """
    if points < 3 or points % 2 == 0 or seeds[0] == seeds[1]:
        raise InputError(f"a landscape needs an odd number of points and two seeds, not {points} and {seeds}.")
    first, second = (direction(params, jax.random.key(seed)) for seed in seeds)
    axis = np.linspace(-reach, reach, points)

    @jax.jit
    def row(a: Array) -> Array:
        def at(b: Array) -> Array:
            return loss(jax.tree.map(lambda w, u, v: (w + a * u + b * v).astype(w.dtype), params, first, second))

        return jax.lax.map(at, jnp.asarray(axis))

    losses = np.stack([np.asarray(row(jnp.asarray(a))) for a in axis]).astype(np.float64)
    if not np.isfinite(losses).all():
        raise InputError(f"{int((~np.isfinite(losses)).sum())} losses of the landscape are NaN or infinite.")
    return Landscape(axis, losses, seeds)
