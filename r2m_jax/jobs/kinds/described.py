"""What every kind of model says of itself before it is loaded, and what it gives when it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

from r2m_jax.checkpoints.tensors import LazyTensor
from r2m_jax.data.device import normalise
from r2m_jax.data.pairs import Pairs
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError
from r2m_jax.models import Params, TowerOptions

Inputs: TypeAlias = Any
"""What a batch gives: uint8 images, or a tuple of them and of other arrays."""
Source: TypeAlias = Any
"""The path of a model directory, or a detector in memory of any kind."""


@dataclass(frozen=True)
class Ready:
    """A loaded model as pure functions of its parameters.

    Attributes:
        detector: the object of its kind.
        params: nested dicts.
        processor: transformers' image processor.
        provenance: content of ``r2m.json``.
        width: numbers the head reads of an image.
        trained: whether it has a head that tells anything.
        features: what the head reads, ``features(params, images, *others)`` of normalised images ``[b, …, h, w, 3]``
            and whatever else a batch gives, ``[b, width]``.
        head: ``head(params, features)``, logits ``[b, 2]``.
        facts: what is to be told of its kind and architecture, JSON values by name.
    """

    detector: Any
    params: Params
    processor: Any
    provenance: Mapping[str, Any]
    width: int
    trained: bool
    features: Callable[..., Float[Array, "b d"]]
    head: Callable[[Params, Array], Float[Array, "b 2"]]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, params: Params, inputs: Inputs) -> Float[Array, "b d"]:
        """What the head reads, of what a batch gives (images uint8)."""
        images, *others = inputs if isinstance(inputs, tuple) else (inputs,)
        return self.features(params, normalise(images, self.processor.image_mean, self.processor.image_std), *others)

    def logits(self, params: Params, images: Float[Array, ...], *others: Array) -> Float[Array, "b 2"]:
        """Of normalised images."""
        return self.head(params, self.features(params, images, *others))


def _nothing(records: Sequence[Record]) -> str:
    return ""


@dataclass(frozen=True)
class Described:
    """A model that is not loaded yet.

    Attributes:
        kind: its name in the registry.
        size: sides of its input in pixels.
        patch: sides of what its input is divided into, 1 for none.
        bytes: of its parameters in float32.
        headed: whether a head is stored.
        alike: equal for models that share compiled functions (those of the first serve all).
        load: loads it.
        prepare: makes its inputs of pictures; None where pixels are all.
        inputs: names of what it takes of a batch.
        remark: what is to be said of records before they are scored, empty for nothing.
    """

    kind: str
    size: int
    patch: int
    bytes: int
    headed: bool
    alike: tuple[Any, ...]
    load: Callable[[], Ready]
    prepare: Pairs | None = None
    inputs: tuple[str, ...] = ("image",)
    remark: Callable[[Sequence[Record]], str] = _nothing

    def given(self, batch: Mapping[str, Any]) -> Inputs:
        """Its inputs in a batch."""
        return itemgetter(*self.inputs)(batch)


class Kind(Protocol):
    """What a module of this package has."""

    NAME: str
    """In messages and records."""

    def holds(self, source: Any) -> bool:
        """Whether a directory or an object in memory is of this kind."""

    def describe(self, source: Any, options: TowerOptions | None, dtype: str | None, name: str) -> Described:
        """See :func:`r2m_jax.jobs.kinds.describe`."""


def forward(ready: Ready, *, features: bool = False) -> Callable[[Params, Inputs], tuple[Array, Array]]:
    """Scores of a batch: ``(params, inputs) -> (fake-minus-real logits [b], features float32 [b, d])``, compiled.

    Args:
        ready: parameters are an argument all the same, so that alike models share the function.
        features: return them; else nothing, ``[0]``, comes in their place.
    """

    @jax.jit
    def scores(params: Params, inputs: Inputs) -> tuple[Array, Array]:
        read = ready.encode(params, inputs)
        both = ready.head(params, read)
        return both[:, 1] - both[:, 0], read.astype(np.float32) if features else both[:0, 0]

    return scores


def stored_bytes(tensors: Mapping[str, LazyTensor]) -> int:
    """Of parameters in a file once they are float32."""
    return sum(4 * math.prod(tensor.shape) for tensor in tensors.values())


def held_bytes(params: Params) -> int:
    """Of parameters in memory once they are float32."""
    return sum(4 * leaf.size for leaf in jax.tree.leaves(params))


def says_something(head: Params) -> bool:
    """Whether a head's kernel is anything but zeros."""
    return bool(np.any(np.asarray(head["kernel"], np.float32)))


def square_input(processor: Any, name: str) -> int:
    """Side of a model's input, for processors that resize the shorter side and crop the centre to it.

    Raises:
        InputError: the processor does something else.
    """
    crop, shortest = dict(processor.crop_size), dict(processor.size).get("shortest_edge")
    if crop["height"] != crop["width"] or shortest != crop["height"]:
        raise InputError(
            f"{name} resizes images to {shortest} px and crops {crop['height']} x {crop['width']}; only a resize and a "
            "square crop of one size are supported (size.shortest_edge and crop_size of preprocessor_config.json)."
        )
    return int(crop["height"])
