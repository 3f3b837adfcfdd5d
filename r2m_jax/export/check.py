"""Whether an artifact says what the model says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.special import expit

from r2m_jax.data.embedded import embedded_photographs
from r2m_jax.data.images import resize_and_crop
from r2m_jax.errors import InputError
from r2m_jax.export.program import Run

_GROUP = 15
"""Images at a time where their number is open."""


@dataclass(frozen=True)
class Difference:
    """The largest differences between an artifact and its model.

    Attributes:
        images: how many were compared.
        probability, logit: largest absolute difference.
    """

    images: int
    probability: float
    logit: float


def check_images(size: int) -> UInt8[np.ndarray, "n size size 3"]:
    """Sixteen images, always the same: the embedded photographs, noise, ramps, stripes, black and white.

    Raises:
        InputError: an installed package comes without its photograph.
    """
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    across, down = np.broadcast_to(ramp, (size, size)), np.broadcast_to(ramp[:, None], (size, size))
    made = [
        rng.integers(0, 256, (size, size, 3), np.uint8),
        np.clip(rng.normal(128, 40, (size, size, 3)), 0, 255).astype(np.uint8),
        np.stack([across, down, across[::-1, ::-1]], axis=-1),
        np.stack([np.where(np.arange(size) // 4 % 2, 255, 0) * np.ones((size, 1))] * 3, axis=-1).astype(np.uint8),
        np.stack([down, np.zeros_like(down), 255 - down], axis=-1),
        np.zeros((size, size, 3), np.uint8),
        np.full((size, size, 3), 255, np.uint8),
    ]
    photographs = [resize_and_crop(Image.fromarray(p.pixels), size) for p in embedded_photographs()]
    return np.stack([*photographs, *made])


def rows(inputs: Sequence[np.ndarray], first: int, last: int, size: int) -> list[np.ndarray]:
    """Rows ``first`` to ``last`` of every array, the last of them repeated until there are ``size``."""
    return [
        np.concatenate([a[first:last], np.repeat(a[last - 1 : last], size - (last - first), axis=0)]) for a in inputs
    ]


def compare(
    run: Run, inputs: Sequence[np.ndarray], expected: Float[np.ndarray, " n"], *, batch: int | None
) -> Iterator[Difference]:
    """Run an artifact on images and what belongs to them, batch by batch, and yield the largest differences so far.

    Args:
        run: the artifact, loaded back.
        inputs: what it takes, ``[n, …]`` each.
        expected: the model's logits.
        batch: images the artifact takes at a time; None where it takes any number, of which several are tried.

    Raises:
        InputError: a score is NaN or infinite, or the artifact gives another number of scores than images.
    """
    probability = logit = 0.0
    for first, last in _groups(len(expected), batch):
        count, wanted = last - first, expected[first:last].astype(np.float64)
        got = [values[:count].astype(np.float64) for values in run(*rows(inputs, first, last, batch or count))]
        if any(values.shape != wanted.shape for values in got):
            raise InputError(f"the artifact gives scores of shape {got[0].shape} for {count} images.")
        if not all(np.isfinite(values).all() for values in got):
            raise InputError("the artifact gives scores that are NaN or infinite; choose --dtype float32.")
        probability = max(probability, float(np.abs(got[0] - expit(wanted)).max()))
        logit = max(logit, float(np.abs(got[1] - wanted).max()))
        yield Difference(last, probability, logit)


def _groups(count: int, batch: int | None) -> Iterator[tuple[int, int]]:
    # One alone, then several: a program whose batch is open must take both.
    starts = range(0, count, batch) if batch else [0, *range(1, count, _GROUP)]
    yield from zip(starts, [*starts[1:], count], strict=True)
