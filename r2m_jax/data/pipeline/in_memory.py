"""Batches for training: shuffled per (seed, pass), every sample once a pass, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import grain.python as grain
import numpy as np
from jaxtyping import Int32, UInt8

from r2m_jax.errors import InputError


class Batch(TypedDict):
    """``image`` uint8 [B, H, W, 3], ``label`` int32 [B] (1 = fake)."""

    image: UInt8[np.ndarray, "b h w 3"]
    label: Int32[np.ndarray, b]


class _Samples:
    """Random access to decoded images and labels, the form Grain reads."""

    def __init__(self, images: UInt8[np.ndarray, "n h w 3"], labels: Sequence[int]):
        self._images, self._labels = images, np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Batch:
        return {"image": self._images[index], "label": self._labels[index]}


def training_batches(
    images: UInt8[np.ndarray, "n h w 3"],
    labels: Sequence[int],
    *,
    batch_size: int,
    passes: int,
    seed: int,
) -> tuple[Any, int]:
    """A Grain iterator over ``passes`` shuffled passes, and how many batches it gives.

    Batches run over the borders of passes, so only the last incomplete one of the whole run is dropped. The order
    depends on the seed alone. The iterator has Grain's ``get_state``/``set_state``.

    Raises:
        InputError: images and labels differ in number, a class is absent, or there are fewer images than one batch.
    """
    if len(images) != len(labels):
        raise InputError(f"{len(images)} images came with {len(labels)} labels.")
    absent = {0: "real", 1: "fake"}.keys() - set(labels)
    if absent:
        name = "fake" if 1 in absent else "real"
        raise InputError(f"there is no {name} image to train on; a detector needs both classes.")
    if len(images) * passes < batch_size:
        raise InputError(f"{len(images)} images do not fill one batch of {batch_size}; choose a smaller batch.")
    dataset = (
        grain.MapDataset.source(_Samples(images, labels))
        .seed(seed)
        .shuffle()
        .repeat(passes)
        .batch(batch_size, drop_remainder=True)
    )
    steps = len(images) * passes // batch_size
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))), steps
