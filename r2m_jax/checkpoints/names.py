"""Names of a CLIP vision tower's tensors in Hugging Face files, and where each sits in our tree.

Hugging Face stores one tensor per layer in torch layout (a linear weight is ``[out, in]``, a convolution
``[out, in, h, w]``); the tree stacks layers on a leading axis in Flax layout. Names here lack the prefix
(``vision_model.``), which differs between writers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from r2m_jax.checkpoints.tensors import LazyTensor, names_in_words
from r2m_jax.errors import InputError
from r2m_jax.trees import flatten, unflatten

PREFIX = "vision_model."
"""What model directories put before tower names; transformers reads them with it or without."""


class Layout(Enum):
    """How a torch tensor becomes a Flax one: the permutation of axes, and its inverse."""

    SAME = (None, None)
    LINEAR = ((1, 0), (1, 0))
    CONV = ((2, 3, 1, 0), (3, 2, 0, 1))

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """Torch axes to Flax axes."""
        return array if self.value[0] is None else array.transpose(self.value[0])

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Flax axes to torch axes."""
        return array if self.value[1] is None else array.transpose(self.value[1])


@dataclass(frozen=True)
class Place:
    """Where a stored tensor sits: leaf path, layer on the stacked axis (or None), axis layout."""

    path: str
    layer: int | None
    layout: Layout


_ONCE: dict[str, tuple[str, Layout]] = {
    "embeddings.class_embedding": ("embeddings/class_token", Layout.SAME),
    "embeddings.patch_embedding.weight": ("embeddings/patch/kernel", Layout.CONV),
    "embeddings.position_embedding.weight": ("embeddings/position", Layout.SAME),
    "pre_layrnorm.weight": ("pre_norm/scale", Layout.SAME),  # sic: the name is misspelt in every file
    "pre_layrnorm.bias": ("pre_norm/bias", Layout.SAME),
    "post_layernorm.weight": ("post_norm/scale", Layout.SAME),
    "post_layernorm.bias": ("post_norm/bias", Layout.SAME),
}
_NORMS = {"layer_norm1": "norm1", "layer_norm2": "norm2"}
_LINEARS = {
    **{f"self_attn.{name}_proj": f"attn/{name}" for name in ("q", "k", "v", "out")},
    "mlp.fc1": "mlp/fc1",
    "mlp.fc2": "mlp/fc2",
}
_PER_LAYER: dict[str, tuple[str, Layout]] = {
    **{f"{hf}.weight": (f"{ours}/scale", Layout.SAME) for hf, ours in _NORMS.items()},
    **{f"{hf}.weight": (f"{ours}/kernel", Layout.LINEAR) for hf, ours in _LINEARS.items()},
    **{f"{hf}.bias": (f"{ours}/bias", Layout.SAME) for hf, ours in (_NORMS | _LINEARS).items()},
}
HEAD: dict[str, Place] = {
    "head.weight": Place("head/kernel", None, Layout.LINEAR),
    "head.bias": Place("head/bias", None, Layout.SAME),
}
ATTENTION_HEAD: dict[str, Place] = {
    f"head.{name}.weight": Place(f"head/{name}", None, Layout.LINEAR) for name in ("query", "key", "value")
}
"""What some heads have beside a linear layer: cross-attention, see :mod:`r2m_jax.models.corit.head`."""


def tower_places(layers: int) -> dict[str, Place]:
    """Every tensor name of a tower of ``layers`` layers (without prefix), and its place under ``backbone/``."""
    places = {name: Place(f"backbone/{path}", None, layout) for name, (path, layout) in _ONCE.items()}
    for layer in range(layers):
        for name, (path, layout) in _PER_LAYER.items():
            places[f"encoder.layers.{layer}.{name}"] = Place(f"backbone/layers/{path}", layer, layout)
    return places


def assemble(tensors: Mapping[str, LazyTensor], shapes: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Read tensors named as in this module into our tree, layers stacked.

    Args:
        tensors: names without prefix; heads under ``head.*``.
        shapes: tree of ``ShapeDtypeStruct`` of the parameters to fill
            (:func:`r2m_jax.models.parameter_shapes`, without ``head`` to read a bare tower).
        what: names the source in messages.

    Returns:
        NumPy arrays in the dtype stored; a stacked leaf takes its first layer's dtype, which all must share.

    Raises:
        InputError: tensors are missing, unknown, or of another shape or dtype.
    """
    wanted = flatten(shapes)
    layers = next(leaf.shape[0] for path, leaf in wanted.items() if path.startswith("backbone/layers/"))
    places = tower_places(layers) | {name: p for name, p in (HEAD | ATTENTION_HEAD).items() if p.path in wanted}
    missing, unknown = places.keys() - tensors.keys(), tensors.keys() - places.keys()
    if missing:
        raise InputError(f"{what} lacks {names_in_words(missing)}.")
    if unknown:
        raise InputError(
            f"{what} has tensors that belong to no part of a detector: {names_in_words(unknown)}; "
            "`r2m convert` makes a model directory of a foreign checkpoint."
        )
    filled: dict[str, np.ndarray] = {}
    for name, place in places.items():
        tensor, target = tensors[name], wanted[place.path]
        shape = target.shape if place.layer is None else target.shape[1:]
        value = _checked(name, tensor, place, shape, what)
        if place.layer is None:
            filled[place.path] = value
            continue
        stack = filled.setdefault(place.path, np.empty(target.shape, value.dtype))
        if stack.dtype != value.dtype:
            raise InputError(f"{what}: {name} is {value.dtype}, but the layers before it are {stack.dtype}.")
        stack[place.layer] = value
    return unflatten(filled)


def _checked(name: str, tensor: LazyTensor, place: Place, shape: tuple[int, ...], what: str) -> np.ndarray:
    stored = place.layout.to_torch(np.broadcast_to(np.empty(()), shape)).shape
    if tensor.shape != stored:
        raise InputError(f"{what}: {name} has shape {tensor.shape}, but this architecture needs {stored}.")
    if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
        raise InputError(f"{what}: {name} is stored as {tensor.dtype}; parameters must be floating point.")
    return place.layout.to_flax(tensor.read())


def disassemble(params: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Our tree as tensors in Hugging Face names and layout; layers are cut and transposed when read.

    The inverse of :func:`assemble`, with :data:`PREFIX` before tower names.
    """
    flat = flatten(params)
    layers = next(leaf.shape[0] for path, leaf in flat.items() if path.startswith("backbone/layers/"))
    places = {PREFIX + name: place for name, place in tower_places(layers).items()}
    places |= {name: place for name, place in (HEAD | ATTENTION_HEAD).items() if place.path in flat}
    return {name: _torch_tensor(flat[place.path], place) for name, place in places.items()}


def _torch_tensor(leaf: Any, place: Place) -> LazyTensor:
    shape = leaf.shape if place.layer is None else leaf.shape[1:]
    axes = np.broadcast_to(np.empty(()), shape)

    def load(rows: slice | None) -> np.ndarray:
        value = place.layout.to_torch(np.asarray(leaf if place.layer is None else leaf[place.layer]))
        return value if rows is None else value[rows]

    return LazyTensor(place.layout.to_torch(axes).shape, np.dtype(leaf.dtype), load)


def without_prefix(tensors: Mapping[str, LazyTensor], landmark: str) -> tuple[str, Callable[[str], str | None]]:
    """Find what stands before a known name, whatever the writer put there.

    Args:
        tensors: by name.
        landmark: a name every file of the format has, without prefix.

    Returns:
        The prefix, and a function that takes it off a name (None for names that do not start with it).

    Raises:
        InputError: no name, or more than one, ends in the landmark.
    """
    found = [name for name in tensors if name == landmark or name.endswith("." + landmark)]
    if len(found) != 1:
        count = "no tensor" if not found else f"{len(found)} tensors ({names_in_words(found)})"
        raise InputError(f"{count} named …{landmark}: the file holds {'no' if not found else 'more than one'} tower.")
    prefix = found[0].removesuffix(landmark)
    return prefix, lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None
