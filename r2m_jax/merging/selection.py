"""Which leaves are block matrices, to be truncated layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

Select = Callable[[str, Any], bool]
"""``select(path, leaf)``: is this leaf a (stack of) matrices ``[…, m, n]`` to truncate?"""

_BLOCKS = ("attn", "attention", "mlp")
_WEIGHTS = ("kernel", "weight")


def attention_and_mlp(path: str, leaf: Any) -> bool:
    """The paper's choice (R²M §3.1: "each attention and MLP block"): weight matrices of attention and MLP.

    A leaf counts when its name is ``kernel`` or ``weight``, a part of its path holds ``attn``, ``attention`` or
    ``mlp``, and it has at least two axes. Leading axes are a batch of matrices (stacked layers).
    """
    *parents, name = path.split("/")
    return name in _WEIGHTS and leaf.ndim >= 2 and any(block in part for part in parents for block in _BLOCKS)


def path_of(keys: tuple[Any, ...]) -> str:
    """A leaf's path as ``layers/attn/q/kernel``, from the keys of ``jax.tree_util.tree_map_with_path``."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")
