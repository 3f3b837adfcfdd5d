"""Unstructured magnitude pruning, as ``torch.nn.utils.prune.l1_unstructured`` does it, on trees of kernels.

Compression & transfer (https://arxiv.org/abs/2504.21066) prunes every convolution and linear weight by itself; one
threshold for all tensors is offered beside it. Entries become zero; a file shrinks only once it is packed or zipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from r2m_jax.compression.selection import kernels
from r2m_jax.errors import InputError
from r2m_jax.merging.selection import Select, is_stack
from r2m_jax.trees import flatten, refuse_non_finite, unflatten

Scope = Literal["tensor", "global"]
Masks = dict[str, Any]
"""A tree of booleans, True where an entry is kept; of a parameter tree it has the leaves that are pruned."""


def magnitude_masks(
    params: Mapping[str, Any], rate: float, *, scope: Scope = "tensor", select: Select = kernels
) -> Masks:
    """Masks that prune the entries of least magnitude.

    Args:
        params: nested dicts of arrays; a leaf under ``layers/`` is a stack of tensors, one a layer.
        rate: share of entries to prune, 0…1; ``round(rate · n)`` of n entries are.
        scope: n counts the entries of each ``tensor`` by itself or of all of them together (``global``).
        select: the leaves to prune.

    Returns:
        Masks of the leaves selected. Of equal magnitudes the first in memory are pruned (torch picks arbitrarily).

    Raises:
        InputError: the rate is no share, nothing is selected, or a leaf holds NaN or infinity.
    """
    if not 0 <= rate <= 1:
        raise InputError(f"rate={rate} is no share of entries to prune in 0…1.")
    flat = selected(params, select)
    refuse_non_finite(flat, "the parameters to prune")
    sizes = {path: np.abs(np.asarray(leaf, np.float32)) for path, leaf in flat.items()}
    if scope == "global":
        kept = _keep(np.concatenate([size.reshape(-1) for size in sizes.values()]), rate)
        parts = np.split(kept, np.cumsum([size.size for size in sizes.values()])[:-1])
        masks = {path: part.reshape(sizes[path].shape) for path, part in zip(sizes, parts, strict=True)}
    else:
        masks = {path: _each(path, size, rate) for path, size in sizes.items()}
    return unflatten(masks)


def zero_masks(params: Mapping[str, Any], select: Select = kernels) -> Masks:
    """Masks that keep what is not zero: those of a model that was pruned before.

    Raises:
        InputError: nothing is selected.
    """
    return unflatten({path: np.asarray(leaf) != 0 for path, leaf in selected(params, select).items()})


def apply_masks(params: Mapping[str, Any], masks: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, or their gradients, with zeros where a mask says so; works on traced arrays too."""
    flat = flatten(masks)
    return unflatten(
        {path: leaf * flat[path].astype(leaf.dtype) if path in flat else leaf for path, leaf in flatten(params).items()}
    )


def sparsity(params: Mapping[str, Any], select: Select = kernels) -> float:
    """Share of zeros among the entries selected: the compression rate of a pruned model.

    Raises:
        InputError: nothing is selected.
    """
    leaves = [np.asarray(leaf) for leaf in selected(params, select).values()]
    return sum(int((leaf == 0).sum()) for leaf in leaves) / sum(leaf.size for leaf in leaves)


def selected(params: Mapping[str, Any], select: Select) -> dict[str, Any]:
    """The leaves selected, by path.

    Raises:
        InputError: there is none.
    """
    flat = {path: leaf for path, leaf in flatten(params).items() if select(path, leaf)}
    if not flat:
        raise InputError("no tensor of the model is chosen to be compressed; change only and skip.")
    return flat


def _each(path: str, size: Float[np.ndarray, ...], rate: float) -> Bool[np.ndarray, ...]:
    tensors = size.reshape(size.shape[0] if is_stack(path) else 1, -1)
    return np.stack([_keep(tensor, rate) for tensor in tensors]).reshape(size.shape)


def _keep(size: Float[np.ndarray, " n"], rate: float) -> Bool[np.ndarray, " n"]:
    pruned = round(rate * size.size)
    kept = np.ones(size.size, np.bool_)
    if pruned:
        # A partition instead of a sort: linear in time, and ties in order of memory as a stable sort has them.
        threshold = np.partition(size, pruned - 1)[pruned - 1]
        below = size < threshold
        kept[below] = False
        kept[np.flatnonzero(size == threshold)[: pruned - int(below.sum())]] = False
    return kept
