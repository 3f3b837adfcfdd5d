"""Names of a vision tower's tensors in Hugging Face files, and where each sits in our tree.

Hugging Face stores one tensor per layer in torch layout (a linear weight is ``[out, in]``, a convolution
``[out, in, h, w]``); the tree stacks layers on a leading axis in Flax layout. Names here lack the prefix
(``vision_model.`` or ``vit.``), which differs between writers, and are those of transformers' modules: a ViT's files
have others, from before transformers 5, which are read and written by :func:`tower_name` and :func:`stored_name`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from r2m_jax.checkpoints.tensors import LazyTensor, names_in_words
from r2m_jax.errors import InputError
from r2m_jax.models.architecture import CLIP, VIT, Family
from r2m_jax.trees import flatten, unflatten

_PREFIXES = {CLIP: "vision_model.", VIT: "vit."}
"""What model directories put before tower names; transformers reads them with it or without."""


class Layout(Enum):
    """How a torch tensor becomes a Flax one: the permutation of axes, its inverse, leading axes of 1 to leave out."""

    SAME = (None, None, 0)
    LINEAR = ((1, 0), (1, 0), 0)
    CONV = ((2, 3, 1, 0), (3, 2, 0, 1), 0)
    BATCHED = (None, None, 1)
    TOKEN = (None, None, 2)

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """Torch axes to Flax axes."""
        permutation, _, ones = self.value
        array = array.reshape(array.shape[ones:])
        return array if permutation is None else array.transpose(permutation)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Flax axes to torch axes."""
        _, permutation, ones = self.value
        array = array if permutation is None else array.transpose(permutation)
        return array.reshape((1,) * ones + array.shape)


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
_VIT_ONCE: dict[str, tuple[str, Layout]] = {
    "embeddings.cls_token": ("embeddings/class_token", Layout.TOKEN),
    "embeddings.patch_embeddings.projection.weight": ("embeddings/patch/kernel", Layout.CONV),
    "embeddings.patch_embeddings.projection.bias": ("embeddings/patch/bias", Layout.SAME),
    "embeddings.position_embeddings": ("embeddings/position", Layout.BATCHED),
    "layernorm.weight": ("post_norm/scale", Layout.SAME),
    "layernorm.bias": ("post_norm/bias", Layout.SAME),
}
# Of every layer: the name of the module, that in files, and ours.
_VIT_LAYER = (
    ("layernorm_before", "layernorm_before", "norm1"),
    ("layernorm_after", "layernorm_after", "norm2"),
    ("attention.q_proj", "attention.attention.query", "attn/q"),
    ("attention.k_proj", "attention.attention.key", "attn/k"),
    ("attention.v_proj", "attention.attention.value", "attn/v"),
    ("attention.o_proj", "attention.output.dense", "attn/out"),
    ("mlp.fc1", "intermediate.dense", "mlp/fc1"),
    ("mlp.fc2", "output.dense", "mlp/fc2"),
)
_VIT_PER_LAYER: dict[str, tuple[str, Layout]] = {
    f"{name}.{kind}": (f"{ours}/{leaf}", layout)
    for name, _, ours in _VIT_LAYER
    for kind, leaf, layout in (
        ("weight", "scale" if ours.startswith("norm") else "kernel",
         Layout.SAME if ours.startswith("norm") else Layout.LINEAR),
        ("bias", "bias", Layout.SAME),
    )
}  # fmt: skip
_MODULE_TO_FILE = {module: file for module, file, _ in _VIT_LAYER}
_FILE_TO_MODULE = {file: module for module, file, _ in _VIT_LAYER}
_TOWERS = {
    CLIP: (_ONCE, "encoder.layers", _PER_LAYER),
    VIT: (_VIT_ONCE, "layers", _VIT_PER_LAYER),
}

HEAD: dict[str, Place] = {
    "head.weight": Place("head/kernel", None, Layout.LINEAR),
    "head.bias": Place("head/bias", None, Layout.SAME),
}
ATTENTION_HEAD: dict[str, Place] = {
    f"head.{name}.weight": Place(f"head/{name}", None, Layout.LINEAR) for name in ("query", "key", "value")
}
"""What some heads have beside a linear layer: cross-attention, see :mod:`r2m_jax.models.corit.head`."""


def tower_places(layers: int, family: Family = CLIP) -> dict[str, Place]:
    """Every tensor name of a tower of ``layers`` layers (without prefix), and its place under ``backbone/``."""
    once, stack, per_layer = _TOWERS[family]
    places = {name: Place(f"backbone/{path}", None, layout) for name, (path, layout) in once.items()}
    for layer in range(layers):
        for name, (path, layout) in per_layer.items():
            places[f"{stack}.{layer}.{name}"] = Place(f"backbone/layers/{path}", layer, layout)
    return places


def stored_name(name: str) -> str:
    """What model directories call a tensor of a tower; what is none keeps its name.

    A ViT's tensors get the names that every release of transformers reads.
    """
    if name in _VIT_ONCE:
        return _PREFIXES[VIT] + name
    if found := re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name):
        inner = _MODULE_TO_FILE.get(found[2])
        if inner is not None:
            return f"{_PREFIXES[VIT]}encoder.layer.{found[1]}.{inner}.{found[3]}"
    return name if name in HEAD or name in ATTENTION_HEAD else _PREFIXES[CLIP] + name


def tower_name(stored: str) -> str:
    """A name as in this module from one in a file: without prefix, and the newer of two where there are two."""
    for prefix in _PREFIXES.values():
        stored = stored.removeprefix(prefix)
    if found := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", stored):
        inner = _FILE_TO_MODULE.get(found[2])
        if inner is not None:
            return f"layers.{found[1]}.{inner}.{found[3]}"
    return stored


def _family(paths: Collection[str]) -> Family:
    """Whose tree it is, by its paths."""
    return CLIP if "backbone/pre_norm/scale" in paths else VIT


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
    places = tower_places(layers, _family(wanted)) | {
        name: p for name, p in (HEAD | ATTENTION_HEAD).items() if p.path in wanted
    }
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
        value = read_leaf(name, tensor, place, shape, what)
        if place.layer is None:
            filled[place.path] = value
            continue
        stack = filled.setdefault(place.path, np.empty(target.shape, value.dtype))
        if stack.dtype != value.dtype:
            raise InputError(f"{what}: {name} is {value.dtype}, but the layers before it are {stack.dtype}.")
        stack[place.layer] = value
    return unflatten(filled)


def read_leaf(name: str, tensor: LazyTensor, place: Place, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A tensor in Flax layout.

    Args:
        name: of the tensor, for messages.
        tensor: as stored.
        place: its layout.
        shape: that it must have, in Flax layout.
        what: names the source in messages.

    Raises:
        InputError: it has another shape, or is no floating-point tensor.
    """
    stored = place.layout.to_torch(np.broadcast_to(np.empty(()), shape)).shape
    if tensor.shape != stored:
        raise InputError(f"{what}: {name} has shape {tensor.shape}, but this architecture needs {stored}.")
    if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
        raise InputError(f"{what}: {name} is stored as {tensor.dtype}; parameters must be floating point.")
    return place.layout.to_flax(tensor.read())


def disassemble(params: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Our tree as tensors in Hugging Face names and layout; layers are cut and transposed when read.

    The inverse of :func:`assemble`, under the names of :func:`stored_name`.
    """
    flat = flatten(params)
    layers = next(leaf.shape[0] for path, leaf in flat.items() if path.startswith("backbone/layers/"))
    places = {stored_name(name): place for name, place in tower_places(layers, _family(flat)).items()}
    places |= {name: place for name, place in (HEAD | ATTENTION_HEAD).items() if place.path in flat}
    return {name: torch_tensor(flat[place.path], place) for name, place in places.items()}


def torch_tensor(leaf: Any, place: Place) -> LazyTensor:
    """A leaf, or its layer on the stacked axis, in torch layout; cut and transposed when read."""
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
