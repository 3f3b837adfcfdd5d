"""Which leaves are compressed, by path and shape, for our trees (``layers/mlp/fc1/kernel``) and for stored names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from r2m_jax.merging.selection import Select, is_stack

_PARTS = re.compile(r"[/.]")
_WEIGHTS = ("kernel", "weight")
_TABLES = ("position",)
_HEAD = "head"


def kernels(path: str, leaf: Any) -> bool:
    """Kernels of dense and convolution layers, neither of the head nor of the embeddings: what is pruned by default."""
    *parents, name = _PARTS.split(path)
    return name in _WEIGHTS and axes(path, leaf) >= 2 and not {"embeddings", "visual_projection", _HEAD} & {*parents}


def weights(path: str, leaf: Any) -> bool:
    """All kernels but the head's, with those of embeddings, and positions: what becomes integers by default."""
    *parents, name = _PARTS.split(path)
    return name in (*_WEIGHTS, *_TABLES) and axes(path, leaf) >= 2 and _HEAD not in parents


def axes(path: str, leaf: Any) -> int:
    """Axes of a leaf behind the one that counts layers, if it is a stack."""
    return len(leaf.shape) - is_stack(path)


def output_axis(path: str, leaf: Any) -> int:
    """Where a leaf counts output channels: last in kernels of ours, first in those of torch and in tables."""
    return len(leaf.shape) - 1 if _PARTS.split(path)[-1] == "kernel" else int(is_stack(path))


def by_patterns(default: Select, only: Sequence[str], skip: Sequence[str]) -> Select:
    """Narrow or widen a choice by regular expressions looked for in paths.

    Args:
        default: decides where ``only`` is empty.
        only: any leaf of two axes or more that one of these is found in, instead.
        skip: leaves that one of these is found in are left out.
    """

    def select(path: str, leaf: Any) -> bool:
        wanted = axes(path, leaf) >= 2 and any(re.search(each, path) for each in only) if only else default(path, leaf)
        return wanted and not any(re.search(each, path) for each in skip)

    return select
