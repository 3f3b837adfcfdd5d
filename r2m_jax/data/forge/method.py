"""What a forging method is, and what it works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True, eq=False)
class Face:
    """A real image to forge, or to take content from.

    Attributes:
        pixels: uint8 RGB ``[h, w, 3]``.
        landmarks: float ``[68, 2]``, x and y in pixels, in the order of the iBUG 300-W annotation
            (https://ibug.doc.ic.ac.uk/resources/300-W/): jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, mouth 48-67.
            None where no face is known; methods then take the middle of the image for one.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    landmarks: Float[np.ndarray, "68 2"] | None = None


State: TypeAlias = Mapping[str, np.ndarray]
"""What a method has learned: named arrays, so that it can be stored and sent to other processes."""

Forge: TypeAlias = Callable[[Face, Sequence[Face], State, np.random.Generator], UInt8[np.ndarray, "h w 3"]]
"""``(face, donors, state, rng) -> forgery`` of the face's shape; donors are other real images, maybe none."""

Fit: TypeAlias = Callable[[UInt8[np.ndarray, "n h w 3"], int, float], State]
"""``(generator_images, seed, effort) -> state``; ``effort`` scales the steps of training, 1 is the full budget."""


@dataclass(frozen=True)
class Method:
    """A forging method.

    Attributes:
        name: as in the index of a data set.
        family: key of :data:`r2m_jax.data.forge.FAMILY_NAMES`.
        source: paper, equation and address of the technique.
        summary: one line on what it does to an image.
        forge: makes one forgery.
        fit: learns from images what ``forge`` needs, before anything is forged; None for methods that learn nothing.
    """

    name: str
    family: str
    source: str
    summary: str
    forge: Forge
    fit: Fit | None = None
