"""What a forging method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8

Forger: TypeAlias = Callable[
    [UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "n h w 3"], np.random.Generator],
    UInt8[np.ndarray, "h w 3"],
]
"""``(image, donors, rng) -> forgery`` of the image's shape; donors are other real images, maybe none."""

Prepare: TypeAlias = Callable[[UInt8[np.ndarray, "n h w 3"], int], Forger]
"""``(generator_images, seed) -> forger``: fits what a method learns from images, before it forges any."""


@dataclass(frozen=True)
class Method:
    """A forging method.

    Attributes:
        name: as in the index of a data set.
        family: key of :data:`r2m_jax.data.forge.FAMILY_NAMES`.
        source: paper, equation and address of the technique.
        summary: one line on what it does to an image.
        prepare: fits the method on generator images and returns its forger; methods that learn nothing ignore them.
    """

    name: str
    family: str
    source: str
    summary: str
    prepare: Prepare


def unfitted(forger: Forger) -> Prepare:
    """The ``prepare`` of a method that learns nothing."""

    def prepare(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int) -> Forger:
        return forger

    return prepare
