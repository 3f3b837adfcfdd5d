"""Model directories of convolutional detectors, and their import from torch checkpoints.

``config.json`` holds the plan under a ``model_type`` of its own; ``model.safetensors`` is in torch layout, named as a
torch module of these parts names its tensors: ``layer1.conv.weight``, ``layer1.pointwise.weight``,
``layer1.norm.running_mean``, ``adapter.conv.weight``, ``fc1.weight``, ``head.weight``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from r2m_jax.checkpoints import preprocessing
from r2m_jax.checkpoints.directory import (
    CONFIG_FILE,
    CONVOLUTIONAL,
    cast,
    open_weights,
    read_json_object,
    read_provenance,
    write_directory,
)
from r2m_jax.checkpoints.names import Layout, Place, read_leaf, torch_tensor
from r2m_jax.checkpoints.tensors import MAX_SHARD_BYTES, LazyTensor, names_in_words
from r2m_jax.errors import InputError
from r2m_jax.models import Params
from r2m_jax.models.convolutional import PLANS, ConvolutionalDetector, Plan, convolutional_shapes, parse_plan
from r2m_jax.trees import flatten, refuse_non_finite, same_structure, unflatten

_LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "norm.running_mean", "var": "norm.running_var",
}  # fmt: skip
_COUNTER = ".num_batches_tracked"
"""Ends the name of a tensor that only a momentum of None, which nobody here uses, would need."""


def convolutional_places(plan: Plan) -> dict[str, Place]:
    """Every tensor name of a network, in the order in which torch writes the tensors of a layer, and its place."""
    order = ("conv", "pointwise", "norm")
    flat = flatten(convolutional_shapes(plan))
    layers = [layer.name for layer in plan.layers() if layer.block]
    paths: list[str] = []
    for layer in layers:
        for part in order:
            paths += [f"backbone/{layer}/{part}/{leaf}" for leaf in ("kernel", "scale", "bias")]
        paths += [f"statistics/{layer}/{leaf}" for leaf in ("mean", "var")]
    linear = [f"backbone/fc{number}" for number in range(1, len(plan.hidden) + 1)]
    paths += [f"{layer}/{leaf}" for layer in (*linear, "head") for leaf in ("kernel", "bias")]
    return {_torch_name(path): Place(path, None, _layout(flat[path].shape)) for path in paths if path in flat}


def _torch_name(path: str) -> str:
    *parents, leaf = [part for part in path.split("/") if part not in ("backbone", "statistics")]
    return ".".join((*parents, _LEAVES[leaf]))


def _layout(shape: tuple[int, ...]) -> Layout:
    return {4: Layout.CONV, 2: Layout.LINEAR, 1: Layout.SAME}[len(shape)]


def is_convolutional(directory: str | Path) -> bool:
    """Whether a model directory holds a convolutional detector."""
    path = Path(directory) / CONFIG_FILE
    return path.is_file() and read_json_object(path).get("model_type") == CONVOLUTIONAL["model_type"]


def read_plan(directory: str | Path) -> Plan:
    """The plan of a convolutional model directory.

    Raises:
        InputError: the file is missing or damaged, or of another kind of model.
    """
    path = Path(directory) / CONFIG_FILE
    settings = read_json_object(path)
    if settings.get("model_type") != CONVOLUTIONAL["model_type"]:
        raise InputError(f"{path} describes no convolutional network; r2m_jax.load_detector reads other models.")
    return parse_plan({key: value for key, value in settings.items() if key not in CONVOLUTIONAL}, str(path))


def load_convolutional(
    path: str | Path, *, dtype: str | None = "float32", compute: DTypeLike = jnp.float32
) -> ConvolutionalDetector:
    """Load a convolutional model directory.

    Args:
        path: what :func:`save_convolutional`, ``r2m train student`` or ``r2m convert`` wrote.
        dtype: of the parameters in memory; None keeps what is stored.
        compute: dtype of activations and products.

    Raises:
        InputError: the directory is wrong or damaged; the message names the file or tensor.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise InputError(f"{directory} does not exist; give the directory of a convolutional model.")
    plan = read_plan(directory)
    params = assemble_convolutional(open_weights(directory), plan, str(directory))
    refuse_non_finite(params, str(directory))
    return ConvolutionalDetector.create(
        plan,
        cast(params, dtype),
        preprocessing.read_processor(directory),
        dtype=compute,
        provenance=read_provenance(directory),
    )


def assemble_convolutional(tensors: Mapping[str, LazyTensor], plan: Plan, what: str) -> Params:
    """Read tensors named as in this module into the tree of a plan, as NumPy arrays of the dtype stored.

    Raises:
        InputError: tensors are missing, unknown, or of another shape or dtype.
    """
    places = convolutional_places(plan)
    known = {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTER)}
    if missing := places.keys() - known.keys():
        raise InputError(f"{what} lacks {names_in_words(missing)}.")
    if unknown := known.keys() - places.keys():
        raise InputError(f"{what} has tensors that are no part of its plan: {names_in_words(unknown)}.")
    shapes = flatten(convolutional_shapes(plan))
    return unflatten(
        {
            place.path: read_leaf(name, known[name], place, shapes[place.path].shape, what)
            for name, place in places.items()
        }
    )


def disassemble_convolutional(params: Params, plan: Plan) -> dict[str, LazyTensor]:
    """The inverse of :func:`assemble_convolutional`."""
    flat = flatten(params)
    return {name: torch_tensor(flat[place.path], place) for name, place in convolutional_places(plan).items()}


def save_convolutional(
    detector: ConvolutionalDetector,
    path: str | Path,
    *,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a convolutional model directory; it appears whole or not at all.

    Args:
        detector: what to store; parameters keep their dtype.
        path: the directory to make.
        provenance: content of ``r2m.json``; the detector's own when omitted.
        overwrite: replace an existing directory.
        max_shard_bytes: larger models are split over several safetensors files.

    Raises:
        InputError: the place is taken or cannot be written, or a leaf is NaN, infinite or of a wrong shape.
    """
    what = "the convolutional detector to save"
    same_structure(convolutional_shapes(detector.config), detector.params, what)
    refuse_non_finite(detector.params, what)
    write_directory(
        Path(path),
        config=detector.config,
        tensors=disassemble_convolutional(detector.params, detector.config),
        processor=detector.processor,
        provenance=provenance if provenance is not None else detector.provenance,
        overwrite=overwrite,
        max_shard_bytes=max_shard_bytes,
        called=CONVOLUTIONAL,
    )


def recognise_convolutional(tensors: Mapping[str, LazyTensor]) -> tuple[Plan, dict[str, str]] | None:
    """The plan that ships whose tensors these are, by order and shape, whatever a torch module calls them.

    Names differ between programs, but a module lists its tensors in the order in which it makes its layers. The side of
    the images follows from the first linear layer.

    Args:
        tensors: in the order of the file.

    Returns:
        The plan, and this module's name of every tensor; None where no plan fits.
    """
    names = [name for name in tensors if not name.endswith(_COUNTER)]
    shapes = [tensors[name].shape for name in names]
    reads = next((shape[1] for shape in shapes if len(shape) == 2), 0)
    for plan in PLANS.values():
        side = math.isqrt(reads // plan.blocks[-1].out)
        if not side:
            continue
        sized = replace(plan, image_size=side * 2 ** plan.body.count("pool"))
        flat, places = flatten(convolutional_shapes(sized)), convolutional_places(sized)
        if shapes == [_torch_shape(flat[place.path].shape, place) for place in places.values()]:
            return sized, dict(zip(names, places, strict=True))
    return None


def _torch_shape(shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
    return place.layout.to_torch(np.broadcast_to(np.empty(()), shape)).shape
