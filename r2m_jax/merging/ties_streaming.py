"""TIES on models larger than memory, with the threshold over all leaves together.

The k-th largest of some hundred million magnitudes without sorting or keeping them: a sample brackets it closely, one
pass counts what lies above the bracket and keeps what lies inside, where the answer is then found exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    kept = kept_entries(size, density)
    least, majority = _thresholds(cut, [base, *specialists], names, kept, size, advance)
    while True:
        votes, undecided = _merge(cut, base, specialists, write, least, majority, scale, variant, names, dtype, advance)
        # Only entries that cancel exactly ask for the majority's sign. Counting it takes the thresholds, so it is
        # guessed from the sample, counted on the way, and the pass repeated should the guess have been wrong.
        if not undecided or np.sign(votes) == majority:
            return least
        majority = float(np.sign(votes))


def _thresholds(
    cut: Plan,
    models: Sequence[Model],
    names: Sequence[str],
    kept: int,
    size: int,
    advance: Callable[[int], None],
) -> tuple[Float[np.ndarray, " n"], float]:
    """The thresholds, exactly, and the sign most places have, as far as a sample tells."""
    stride = max(1, size // _SAMPLE)
    parts: list[np.ndarray] = []
    for number, (start, thetas) in read_ahead(cut.chunks, models):
        for origin, stack in zip(start, thetas, strict=True):
            drawn_here = stack.reshape(len(stack), -1)[:, ::stride].astype(np.float32)
            parts.append(drawn_here - origin.reshape(-1)[::stride].astype(np.float32))
        advance(len(cut.chunks[number].pieces))
    signed = np.concatenate(parts, axis=1)
    sample = np.sort(np.abs(signed), axis=1)[:, ::-1]
    drawn = sample.shape[1]
    share = kept / size
    width = _DEVIATIONS * np.sqrt(drawn * share * (1 - share)) + 2
    while True:
        first, last = int(share * drawn - width), int(share * drawn + width)
        high = sample[:, first] if first >= 0 else np.full(len(sample), np.inf, np.float32)
        low = sample[:, last] if last < drawn else np.zeros(len(sample), np.float32)
        above, inside = _count(cut, models, names, low, high, advance)
        places = kept - above
        if all(0 < place <= len(found) for place, found in zip(places, inside, strict=True)):
            least = np.asarray(
                [-np.partition(-found, place - 1)[place - 1] for place, found in zip(places, inside, strict=True)]
            )
            votes = np.sign(np.where(np.abs(signed) >= least[:, None], signed, 0).sum(axis=0)).sum()
            return least, float(np.sign(votes)) or 1.0
        width *= 8


def _count(
    cut: Plan,
    models: Sequence[Model],
    names: Sequence[str],
    low: np.ndarray,
    high: np.ndarray,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """How many magnitudes lie above ``high``, and those from ``low`` to ``high``, of every task vector."""
    above = np.zeros(len(names), np.int64)
    inside: list[list[np.ndarray]] = [[] for _ in names]

    def count(index: int, theta: np.ndarray, start: np.ndarray) -> tuple[int, int, np.ndarray, bool]:
        size = np.subtract(theta, start, dtype=np.float32)
        np.abs(size, out=size)
        over = size > high[index]
        found = size[(size >= low[index]) & ~over]
        return index, int(np.count_nonzero(over)), found, bool(np.isfinite(size.sum(dtype=np.float64)))

    with ThreadPoolExecutor(os.cpu_count()) as workers:  # NumPy lets go of the interpreter while it computes
        for number, values in read_ahead(cut.chunks, models):
            tasks = [
                workers.submit(count, index, theta, start)
                for start, stack in zip(*values, strict=True)
                for index, theta in enumerate(stack)
            ]
            for index, over, found, finite in (task.result() for task in tasks):
                if not finite:
                    raise culprit(cut.chunks[number], values, names)
                above[index] += over
                inside[index].append(found)
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
