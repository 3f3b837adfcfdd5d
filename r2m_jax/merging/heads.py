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
