"""TIES on models larger than memory, with the threshold over all leaves together.

The k-th largest of some hundred million magnitudes without sorting or keeping them: a sample brackets it closely, one
pass counts what lies above the bracket and keeps what lies inside, where the answer is then found exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from r2m_jax.merging.streaming import Model, Plan, Write, culprit, read_ahead, write_behind
from r2m_jax.merging.ties import agreed, check, kept_entries, trim, vote

_SAMPLE = 2**20
_DEVIATIONS = 6.0
"""Half width of the bracket in standard deviations of the sample's quantile; a bracket that misses is widened."""


def ties_stream(
    cut: Plan,
    base: Model,
    specialists: Sequence[Model],
    write: Write,
    *,
    density: float = 0.2,
    scale: float = 1.0,
    variant: Literal["original", "paper"] = "original",
    names: Sequence[str],
    dtype: np.dtype | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Float[np.ndarray, " n"]:
    """Write the merge of :func:`r2m_jax.merging.ties.ties`, chunk by chunk.

    Args:
        cut: of a method that truncates nothing (:func:`r2m_jax.merging.streaming.plan`).
        base, specialists, write, names, dtype, advance: as in :func:`r2m_jax.merging.streaming.apply_stream`.
        density, scale, variant: of TIES.

    Returns:
        The threshold of every task vector.

    Raises:
        InputError: a setting is out of range, or a value is NaN or Inf.
    """
    check(density, variant)
    size = sum(piece.size for chunk in cut.chunks for piece in chunk.pieces)
    least = _thresholds(cut, [base, *specialists], names, kept_entries(size, density), size, advance)
    majority = 0.0
    while True:
        votes, undecided = _merge(cut, base, specialists, write, least, majority, scale, variant, names, dtype, advance)
        # Only entries that cancel exactly ask for the majority's sign, so it is not counted before one is seen.
        if not undecided or majority:
            return least
        majority = float(np.sign(votes)) or 1.0


def _thresholds(
    cut: Plan,
    models: Sequence[Model],
    names: Sequence[str],
    kept: int,
    size: int,
    advance: Callable[[int], None],
) -> Float[np.ndarray, " n"]:
    stride = max(1, size // _SAMPLE)
    parts: list[np.ndarray] = []
    for number, values in read_ahead(cut.chunks, models):
        start, thetas = (part.astype(np.float32, copy=False) for part in values)
        flat = np.moveaxis(thetas - start[:, None], 1, 0).reshape(len(names), -1)
        if not np.isfinite(flat).all():
            raise culprit(cut.chunks[number], values, names)
        parts.append(np.abs(flat[:, ::stride]))
        advance(len(cut.chunks[number].pieces))
    sample = np.sort(np.concatenate(parts, axis=1), axis=1)[:, ::-1]
    drawn = sample.shape[1]
    share = kept / size
    width = _DEVIATIONS * np.sqrt(drawn * share * (1 - share)) + 2
    while True:
        first, last = int(share * drawn - width), int(share * drawn + width)
        high = sample[:, first] if first >= 0 else np.full(len(sample), np.inf, np.float32)
        low = sample[:, last] if last < drawn else np.zeros(len(sample), np.float32)
        above, inside = _count(cut, models, low, high, advance)
        places = kept - above
        if all(0 < place <= len(found) for place, found in zip(places, inside, strict=True)):
            return np.asarray(
                [-np.partition(-found, place - 1)[place - 1] for place, found in zip(places, inside, strict=True)]
            )
        width *= 8


def _count(
    cut: Plan, models: Sequence[Model], low: np.ndarray, high: np.ndarray, advance: Callable[[int], None]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """How many magnitudes lie above ``high``, and those from ``low`` to ``high``, of every task vector."""
    above = np.zeros(len(models) - 1, np.int64)
    inside: list[list[np.ndarray]] = [[] for _ in models[1:]]
    for number, values in read_ahead(cut.chunks, models):
        start, thetas = values
        for index in range(len(above)):
            size = thetas[:, index].astype(np.float32) - start.astype(np.float32, copy=False)
            np.abs(size, out=size)
            over = size > high[index]
            above[index] += np.count_nonzero(over)
            inside[index].append(size[(size >= low[index]) & ~over])
        advance(len(cut.chunks[number].pieces))
    return above, [np.concatenate(found) for found in inside]


def _merge(
    cut: Plan,
    base: Model,
    specialists: Sequence[Model],
    write: Write,
    least: np.ndarray,
    majority: float,
    scale: float,
    variant: Literal["original", "paper"],
    names: Sequence[str],
    dtype: np.dtype | None,
    advance: Callable[[int], None],
) -> tuple[float, bool]:
    votes, undecided = 0.0, False
    with write_behind(base, write) as put:
        for number, values in read_ahead(cut.chunks, [base, *specialists]):
            chunk = cut.chunks[number]
            target = np.dtype(dtype or base[chunk.pieces[0].unit.paths[0]].dtype)
            out, finite, here, open_ = _elect(*values, least, majority, scale, variant, target)
            if not bool(finite):
                raise culprit(chunk, values, names, np.asarray(out))
            votes, undecided = votes + float(here), undecided or bool(open_)
            put(chunk, np.asarray(out))
            advance(len(chunk.pieces))
    return votes, undecided


@partial(jax.jit, static_argnums=(5, 6))
def _elect(
    theta0: Float[Array, " l *shape"],
    thetas: Float[Array, " l n *shape"],
    least: Float[Array, " n"],
    majority: Float[Array, ""],
    scale: Float[Array, ""],
    variant: Literal["original", "paper"],
    dtype: np.dtype,
) -> tuple[Array, Array, Array, Array]:
    start = theta0.astype(jnp.float32)
    vectors = jnp.moveaxis(thetas.astype(jnp.float32), 1, 0) - start
    trimmed = trim(vectors, least)
    votes = vote(trimmed)
    update = scale * agreed(trimmed, majority, variant)
    if variant == "paper":
        update = update + vectors.mean(axis=0)
    out = (start + update).astype(dtype)
    cancels = (votes == 0) & (trimmed != 0).any(axis=0)
    return out, jnp.isfinite(out).all(), votes.sum(), cancels.any()
