"""Scoring decoded images with a detector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from r2m_jax.data.device import normalise
from r2m_jax.errors import InputError
from r2m_jax.models import Params
from r2m_jax.parallel import gather_rows, own_rows, shard_batch


def score(
    logits: Callable[[Params, Float[Array, "b h w 3"]], Float[Array, "b 2"]],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int = 64,
) -> Callable[[Params, UInt8[np.ndarray, "n h w 3"]], Float32[np.ndarray, n]]:
    """Build ``score(params, images)``: the fake-minus-real logit of every image.

    One compiled function serves any number of models of this architecture and any number of images: the last batch
    is filled up and cut off again. ``sigmoid`` of a score is the probability of fake.

    Raises:
        InputError: (when called) a score is NaN or infinite.
    """

    @jax.jit
    def difference(params: Params, images: Any) -> Array:
        both = logits(params, normalise(images, mean, std))
        return both[:, 1] - both[:, 0]

    def scores(params: Params, images: np.ndarray) -> np.ndarray:
        parts = []
        for filled, count in filled_batches(images, np.arange(len(images)), batch_size):
            parts.append(np.asarray(difference(params, filled))[:count])
        out = np.concatenate(parts) if parts else np.empty(0, np.float32)
        if not np.isfinite(out).all():
            raise InputError(
                f"{int((~np.isfinite(out)).sum())} of {len(out)} scores are NaN or infinite; the model is broken."
            )
        return out

    return scores


def filled_batches(
    images: UInt8[np.ndarray, "n h w 3"], places: Int[np.ndarray, " k"], size: int
) -> Iterator[tuple[UInt8[np.ndarray, "size h w 3"], int]]:
    """Images at some places in batches of one size, and how many of each count: the last is filled by repetition."""
    for first in range(0, len(places), size):
        part = images[places[first : first + size]]
        yield np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)]), len(part)


def score_batches(
    margins: Callable[[Params, Any], Float[Array, " b"]],
    params: Params,
    batches: Iterable[Any],
    count: int,
    *,
    mesh: Mesh,
    given: Callable[[Any], Any] = itemgetter("image"),
) -> tuple[Float32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Fake-minus-real logits of every record of a source, over all devices and processes.

    Args:
        margins: jitted ``margins(params, inputs)``.
        params: placed on ``mesh``.
        batches: of :func:`r2m_jax.data.pipeline.evaluation_batches`, this process's shard.
        count: records n.
        mesh: devices to split batches over.
        given: the inputs in a batch, uint8 images ``[b, h, w, 3]`` unless said otherwise.

    Returns:
        Logits in the order of the records, the same in every process, and whether each was read; 0 where not.

    Raises:
        InputError: a logit is NaN or infinite.
    """
    parts, index, valid = [], [], []
    for batch in batches:
        parts.append(margins(params, shard_batch(mesh, given(batch))))
        index.append(batch["index"])
        valid.append(batch["valid"])
    rows = np.concatenate([own_rows(part) for part in parts])
    rows, places, read = gather_rows((rows, np.concatenate(index), np.concatenate(valid)))
    logits, seen = np.zeros(count, np.float32), np.zeros(count, np.bool_)
    logits[places[read]], seen[places[read]] = rows[read], True
    if not np.isfinite(logits).all():
        raise InputError(
            f"{int((~np.isfinite(logits)).sum())} of {count} scores are NaN or infinite; the model is broken."
        )
    return logits, seen
