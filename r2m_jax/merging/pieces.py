"""Task vectors τᵢ = θᵢ - θ₀ one matrix of all specialists at a time, on the host and in float64.

What looks at every weight of every specialist goes through here, so that the memory needed is that of the trees plus
N + 1 matrices, whatever the model's size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from r2m_jax.errors import InputError
from r2m_jax.merging.selection import Select, attention_and_mlp
from r2m_jax.trees import flatten, same_structure

Tree = Mapping[str, Any]

# Layers are stacked below this prefix, unless the next part of the path is already a layer's number.
_STACKED = re.compile(r"layers/(?!\d+/)")
_NUMBERED = re.compile(r"layers/(\d+)/")


@dataclass(frozen=True)
class Piece:
    """One leaf, or one layer of a stacked leaf, of the origin and of all specialists.

    Attributes:
        path: the leaf's path.
        layer: the layer's number, None outside the layers.
        matrix: the leaf is one that is truncated layer by layer (``select``).
        origin: θ₀, float64.
        taus: the task vectors, stacked, float64.
    """

    path: str
    layer: int | None
    matrix: bool
    origin: Float[np.ndarray, " *shape"]
    taus: Float[np.ndarray, " n *shape"]


def where(path: str, layer: int | None) -> str:
    """A piece in words: ``layers/attn/q/kernel, layer 3``."""
    return path if layer is None or _NUMBERED.match(path) else f"{path}, layer {layer}"


def pieces(theta0: Tree, thetas: Sequence[Tree], select: Select = attention_and_mlp) -> Iterator[Piece]:
    """Go through the task vectors in bounded memory, a stacked leaf one layer at a time, in order of path."""
    flat = [flatten(theta) for theta in thetas]
    for path, leaf in flatten(theta0).items():
        leaves = [np.asarray(leaf), *(np.asarray(tree[path]) for tree in flat)]
        matrix = select(path, leaves[0]) and leaves[0].ndim >= 2
        if _is_stack(path, leaves[0]):
            for layer in range(leaves[0].shape[0]):
                yield _piece(path, layer, matrix, [stack[layer] for stack in leaves])
        else:
            number = _NUMBERED.match(path)
            yield _piece(path, int(number.group(1)) if number else None, matrix, leaves)


def _is_stack(path: str, leaf: Any) -> bool:
    return bool(_STACKED.match(path)) and len(leaf.shape) >= 1


def _piece(path: str, layer: int | None, matrix: bool, leaves: Sequence[np.ndarray]) -> Piece:
    origin = leaves[0].astype(np.float64)
    taus = np.stack([leaf.astype(np.float64) - origin for leaf in leaves[1:]])
    return Piece(path, layer, bool(matrix) and origin.ndim >= 2, origin, taus)


def count_pieces(theta0: Tree) -> int:
    """How many pieces :func:`pieces` goes through."""
    return sum(leaf.shape[0] if _is_stack(path, leaf) else 1 for path, leaf in flatten(theta0).items())


def check_specialists(theta0: Tree, thetas: Sequence[Tree], names: Sequence[str]) -> None:
    """Check that there are specialists, each with a name of its own and the leaves of ``theta0``.

    Raises:
        InputError: otherwise.
    """
    if not thetas:
        raise InputError("there are no specialists: give at least one.")
    if len(names) != len(thetas) or len(set(names)) != len(names):
        raise InputError(f"{len(thetas)} specialists need as many different names, not {', '.join(names) or 'none'}.")
    for name, theta in zip(names, thetas, strict=True):
        same_structure(theta0, theta, f"specialist {name}")


def ratio(part: float | int, whole: float | int) -> float:
    """Part over whole; NaN with nothing below the line."""
    return part / whole if whole > 0 else float("nan")
