"""Kernels as products of two thinner ones: W ≈ U V by truncated singular value decomposition.

Compression & transfer (https://arxiv.org/abs/2504.21066) tried it on linear layers (and put dropout and ReLU between
the factors, which no longer computes the same; here is nothing between them). A convolution kernel is the matrix
``[height · width · in, out]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from r2m_jax.compression.pruning import selected
from r2m_jax.compression.selection import kernels, output_axis
from r2m_jax.merging.ranks import Energy, Rank, kept_rank
from r2m_jax.merging.selection import Select, is_stack
from r2m_jax.merging.spectral import basis, wide, wide_arithmetic
from r2m_jax.trees import flatten, refuse_non_finite, unflatten


class Factors(NamedTuple):
    """A kernel as two factors.

    Attributes:
        left: ``[m, k]``.
        right: ``[k, n]``.
        shape: of the kernel, whose output axis is n, or m where it comes first.
    """

    left: Float[np.ndarray, "m k"]
    right: Float[np.ndarray, "k n"]
    shape: tuple[int, ...]

    def product(self) -> Float[np.ndarray, ...]:
        """The kernel."""
        return (self.left @ self.right).reshape(self.shape)


def factorise(kernel: Float[Array | np.ndarray, ...], rank: Rank, *, output: int = -1) -> Factors | None:
    """The best two factors of a rank, or None where they are no smaller than the kernel.

    Args:
        kernel: two axes or more, finite.
        rank: a count, a ratio of the smaller side, or a share of the energy.
        output: the output axis, the first or the last; all others make up the other side of the matrix.
    """
    array = np.asarray(kernel)
    output %= array.ndim
    outputs = array.shape[output]
    m, n = (outputs, array.size // outputs) if output == 0 else (array.size // outputs, outputs)
    if not isinstance(rank, Energy) and not _smaller(kept_rank(rank, m, n), m, n):
        return None
    matrix = array.reshape(m, n).astype(np.float32)
    with wide_arithmetic():
        found = np.asarray(_leading(jnp.asarray(matrix), rank.share if isinstance(rank, Energy) else 1.0))
    kept = int(found.any(axis=0).sum()) if isinstance(rank, Energy) else kept_rank(rank, m, n)
    if not _smaller(kept, m, n):
        return None
    found = found[:, :kept]
    left, right = (found, found.T @ matrix) if m <= n else (matrix @ found, np.ascontiguousarray(found.T))
    return Factors(left.astype(array.dtype), right.astype(array.dtype), array.shape)


def factorise_tree(params: Mapping[str, Any], rank: Rank, select: Select = kernels) -> dict[str, Any]:
    """The tree with :class:`Factors` in place of the leaves selected that get smaller; a stack has a tuple of them.

    A stack becomes a tuple only where every layer gets smaller.

    Raises:
        InputError: nothing is selected, a leaf holds NaN or infinity, or the rank is out of range.
    """
    flat = dict(flatten(params))
    chosen = selected(params, select)
    refuse_non_finite(chosen, "the parameters to factorise")
    for path, leaf in chosen.items():
        tensors = np.asarray(leaf) if is_stack(path) else np.asarray(leaf)[None]
        axis = output_axis(path, leaf) - is_stack(path)
        made = tuple(factorise(tensor, rank, output=axis) for tensor in tensors)
        if all(each is not None for each in made):
            flat[path] = made if is_stack(path) else made[0]
    return unflatten(flat)


def multiply_tree(params: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with kernels in place of their factors."""

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, Factors):
            return leaf.product()
        return np.stack([each.product() for each in leaf]) if isinstance(leaf, tuple) else leaf

    return unflatten({path: whole(leaf) for path, leaf in flatten(params).items()})


def _smaller(kept: int, m: int, n: int) -> bool:
    return kept > 0 and kept * (m + n) < m * n


@partial(jax.jit, static_argnames="share")
def _leading(matrix: Float[Array, "m n"], share: float) -> Float[Array, "s s"]:
    """Leading singular vectors of the smaller side in order, zeros beyond a share of the energy."""
    return basis(matrix.astype(wide()), Energy(share))
