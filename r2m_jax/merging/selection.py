"""Which leaves are block matrices, to be truncated layer by layer, and which belong together."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax

Select = Callable[[str, Any], bool]
"""``select(path, leaf)``: is this leaf a (stack of) matrices ``[…, m, n]`` to truncate?"""

_BLOCKS = ("attn", "attention", "mlp")
_WEIGHTS = ("kernel", "weight")
_PARTS = re.compile(r"[/.]")
_QKV = re.compile(r"^(?P<before>.*[/.])(?P<which>q|k|v|q_proj|k_proj|v_proj)[/.](?P<leaf>kernel|weight)$")
_NUMBERED_LAYER = re.compile(r"^(.*?\blayers?[/.]\d+)[/.]")


def attention_and_mlp(path: str, leaf: Any) -> bool:
    """The paper's choice (R²M §3.1: "each attention and MLP block"): weight matrices of attention and MLP.

    A leaf counts when its name is ``kernel`` or ``weight``, a part of its path holds ``attn``, ``attention`` or
    ``mlp``, and it has at least two axes. Leading axes are a batch of matrices (stacked layers).
    """
    *parents, name = _PARTS.split(path)
    return name in _WEIGHTS and len(leaf.shape) >= 2 and any(block in part for part in parents for block in _BLOCKS)


def path_of(keys: tuple[Any, ...]) -> str:
    """A leaf's path as ``layers/attn/q/kernel``, from the keys of ``jax.tree_util.tree_map_with_path``."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


@dataclass(frozen=True)
class Unit:
    """Leaves that are handled as one: a single leaf, or query, key and value side by side.

    Attributes:
        paths: of the leaves.
        shape: of the leaves side by side, behind the layers' axis.
        layers: how many of ``shape`` there are; 1 for a leaf that is no stack.
        matrix: whether it is truncated.
        axis: where the leaves are joined, counted from the end; None for a single one.
    """

    paths: tuple[str, ...]
    shape: tuple[int, ...]
    layers: int
    matrix: bool
    axis: int | None = None

    @property
    def name(self) -> str:
        """What to call it."""
        return self.paths[0] if len(self.paths) == 1 else f"{self.paths[0]} + {len(self.paths) - 1}"

    @property
    def size(self) -> int:
        """Numbers in one layer."""
        return math.prod(self.shape)

    def blocks(self) -> list[str]:
        """The transformer block of every layer; what lies outside of blocks is called ``""``."""
        if is_stack(self.paths[0]):
            return [f"layers/{layer}" for layer in range(self.layers)]
        found = _NUMBERED_LAYER.match(self.paths[0])
        return [found.group(1) if found else ""] * self.layers


def is_stack(path: str) -> bool:
    """Whether the leaf's first axis counts layers: it lies under ``layers``, which are not numbered there."""
    parts = _PARTS.split(path)
    return any(part == "layers" and not after.isdigit() for part, after in pairwise(parts))


def units(leaves: Mapping[str, Any], select: Select = attention_and_mlp, fused_qkv: bool = False) -> list[Unit]:
    """Divide leaves (anything with a ``shape``) into units.

    Args:
        leaves: by path.
        select: which are truncated.
        fused_qkv: truncate the query, key and value matrices of a layer as one matrix with three times the outputs,
            as open_clip stores them and CART's code truncates them; leaves called ``kernel`` are ``[in, out]``,
            leaves called ``weight`` ``[out, in]``.
    """
    joined: dict[str, tuple[str, ...]] = {}
    if fused_qkv:
        together: dict[tuple[str, str], list[str]] = {}
        for path, leaf in leaves.items():
            found = _QKV.match(path)
            if found and select(path, leaf):
                together.setdefault((found["before"], found["leaf"]), []).append(path)
        for three in together.values():
            if len(three) == 3:
                joined |= dict.fromkeys(three, tuple(sorted(three)))
    out = []
    for path, leaf in leaves.items():
        paths = joined.get(path, (path,))
        if path != paths[0]:  # k is the first of k, q, v
            continue
        out.append(_unit(paths, [tuple(leaves[each].shape) for each in paths], select(path, leaf)))
    return out


def _unit(paths: tuple[str, ...], shapes: list[tuple[int, ...]], matrix: bool) -> Unit:
    shape, axis = shapes[0], None
    if len(paths) > 1:
        axis = -1 if paths[0].endswith("kernel") else -2
        widths = sum(each[axis] for each in shapes)
        shape = (*shape[:axis], widths) if axis == -1 else (*shape[:axis], widths, shape[-1])
    batch = len(shape) - 2 if matrix else int(is_stack(paths[0]) and len(shape) > 0)
    return Unit(paths, shape[batch:], math.prod(shape[:batch]), matrix, axis)
