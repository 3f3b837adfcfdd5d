"""Heads of merged detectors, and merging whole detectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from r2m_jax.errors import InputError
from r2m_jax.trees import same_structure

Tree = Any


def average_heads(heads: Sequence[Tree]) -> Tree:
    """Mean of the specialists' heads, weights and biases (R²M eq. 14), in the first head's dtypes.

    Raises:
        InputError: there are no heads, or they differ in shape.
    """
    if not heads:
        raise InputError("there are no heads to average.")
    for index, head in enumerate(heads):
        same_structure(heads[0], head, f"head {index}")
    return jax.tree.map(
        lambda *leaves: jnp.mean(jnp.stack([leaf.astype(jnp.float32) for leaf in leaves]), 0).astype(leaves[0].dtype),
        *heads,
    )


def norm_matched_heads(heads: Sequence[Tree]) -> Tree:
    """Mean of heads whose kernels were first scaled to their mean Frobenius norm, biases with them.

    So that a specialist trained longer or with less decay, whose logits are larger, does not outvote the others.

    Args:
        heads: trees with the leaf ``kernel`` among theirs.

    Raises:
        InputError: there are no heads, they differ in shape, or a kernel is zero.
    """
    if not heads:
        raise InputError("there are no heads to average.")
    norms = jnp.stack([jnp.linalg.norm(head["kernel"].astype(jnp.float32)) for head in heads])
    zero = [index for index, norm in enumerate(norms.tolist()) if norm == 0]
    if zero:
        raise InputError(f"head {zero[0]} is all zero and cannot be scaled; average the heads instead.")
    factors = norms.mean() / norms
    scaled = [
        jax.tree.map(lambda leaf, by=factor: (by * leaf.astype(jnp.float32)).astype(leaf.dtype), head)
        for head, factor in zip(heads, factors, strict=True)
    ]
    return average_heads(scaled)


def merge_detectors(
    method: Callable[[Tree, Sequence[Tree]], Tree],
    base: Mapping[str, Any],
    specialists: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Merge ``{"backbone", "head"}`` trees: backbones by ``method`` from the base's, heads by their mean.

    Args:
        method: ``method(theta0, thetas)`` returning parameters, e.g. ``partial(task_arithmetic, alpha=0.5)``.
        base: the pretrained detector's parameters; its head is not used.
        specialists: the fine-tuned detectors' parameters.
    """
    backbone = method(base["backbone"], [specialist["backbone"] for specialist in specialists])
    return {"backbone": backbone, "head": average_heads([specialist["head"] for specialist in specialists])}
