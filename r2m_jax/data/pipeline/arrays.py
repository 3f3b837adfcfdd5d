"""Batches of what was computed once and fits into memory, in the same order as images would come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from r2m_jax.data.pipeline.sampling import Sampling, plan
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError


class FeatureBatches:
    """Iterates over ``{"feature" float32 [b, d], "label" int32 [b], "index" int32 [b]}``; resumes anywhere.

    Args:
        records: whose features they are.
        features: one row per record.
        batch_size: rows of a batch over all processes.
        seed, epochs, sampling, shard: as of :func:`r2m_jax.data.pipeline.batches`.

    Raises:
        InputError: the records do not fill one batch, or the options do not fit each other.
    """

    def __init__(
        self,
        records: Sequence[Record],
        features: Float32[np.ndarray, "n d"],
        *,
        batch_size: int,
        seed: int,
        epochs: int,
        sampling: Sampling = "natural",
        shard: tuple[int, int] = (0, 1),
    ):
        process, processes = shard
        if batch_size % processes:
            raise InputError(
                f"a batch of {batch_size} cannot be divided among {processes} processes; choose a multiple."
            )
        self._features, self._order = features, plan(records, sampling, seed)
        self._labels = np.asarray([record.label for record in records], np.int32)
        self._batch_size, self._length = batch_size, len(records) * epochs // batch_size
        if not self._length:
            raise InputError(f"{len(records)} images do not fill one batch of {batch_size}; choose a smaller batch.")
        rows = batch_size // processes
        self._rows = range(process * rows, (process + 1) * rows)
        self._settings = {"records": len(records), "batch_size": batch_size, "seed": seed, "sampling": sampling}
        self._next = 0
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        """Batches of the whole run."""
        return self._length

    def __iter__(self) -> FeatureBatches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._next >= self._length:
            raise StopIteration
        start, count = self._next * self._batch_size, self._order.length
        chosen = np.asarray([self._order.record(*divmod(start + row, count)) for row in self._rows], np.int32)
        self._next += 1
        return {"feature": self._features[chosen], "label": self._labels[chosen], "index": chosen}

    def get_state(self) -> dict[str, Any]:
        """Where the iterator stands; can be written as JSON."""
        return {"next": self._next, **self._settings}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to where ``get_state`` was called.

        Raises:
            InputError: the state is of a stream with other settings.
        """
        if any(state.get(name) != value for name, value in self._settings.items()):
            raise InputError(
                "the saved place in the data is of other features; resume with the settings that saved it."
            )
        self._next = state["next"]

    def close(self) -> None:
        """Nothing runs in the background."""
