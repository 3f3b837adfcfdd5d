"""TIES on models larger than memory, with the threshold over all leaves together.

The k-th largest of some hundred million magnitudes without sorting or keeping them: a sample brackets it closely, one
pass counts what lies above the bracket and keeps what lies inside, where the answer is then found exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from r2m_jax.merging.chunks import Model, Plan, Write
from r2m_jax.merging.streaming import Exchange, alone, culprit, read_ahead, write_behind
from r2m_jax.merging.ties import agreed, check, kept_entries, trim, vote

_SAMPLE = 2**22
"""Values of a task vector that are drawn, about."""

_BLOCK = 2**17

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
    exchange: Exchange = alone,
) -> Float[np.ndarray, " n"]:
    """Write the merge of :func:`r2m_jax.merging.ties.ties`, chunk by chunk; of several processes, this one's part.

    Args:
        cut: of a method that truncates nothing (:func:`r2m_jax.merging.chunks.plan`).
        base, specialists, write, names, dtype, advance: as in :func:`r2m_jax.merging.streaming.apply_stream`.
        density, scale, variant: of TIES.
        exchange: tells what is counted in every process; thresholds are those of all leaves of all.

    Returns:
        The threshold of every task vector.

    Raises:
        InputError: a setting is out of range, or a value is NaN or Inf.
    """
    check(density, variant)
    own = np.asarray(sum(piece.size for chunk in cut.chunks for piece in chunk.pieces), np.int64)
    size = sum(int(theirs["size"]) for theirs in exchange({"size": own}))
    kept = kept_entries(size, density)
    least, majority = _thresholds(cut, [base, *specialists], names, kept, size, advance, exchange)
    while True:
        mine = _merge(cut, base, specialists, write, least, majority, scale, variant, names, dtype, advance)
        each = exchange(dict(zip(("votes", "undecided"), map(np.asarray, mine), strict=True)))
        votes = sum(float(theirs["votes"]) for theirs in each)
        undecided = any(bool(theirs["undecided"]) for theirs in each)
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
    exchange: Exchange,
) -> tuple[Float[np.ndarray, " n"], float]:
    """The thresholds, exactly, and the sign most places have, as far as a sample tells."""
    parts = _everyones(_drawn(cut, models, size), len(names), exchange)
    signed = np.concatenate(parts, axis=1)
    sample = np.sort(np.abs(signed), axis=1)[:, ::-1]
    drawn = sample.shape[1]
    share = kept / size
    width = _DEVIATIONS * _deviation(parts, sample[:, min(drawn - 1, int(share * drawn))], share) + 2
    while True:
        first, last = int(share * drawn - width), int(share * drawn + width)
        high = sample[:, first] if first >= 0 else np.full(len(sample), np.inf, np.float32)
        low = sample[:, last] if last < drawn else np.zeros(len(sample), np.float32)
        counted, kept_inside = _count(cut, models, names, low, high, advance)
        each = exchange({"above": counted, **{str(number): part for number, part in enumerate(kept_inside)}})
        above = np.sum([theirs["above"] for theirs in each], axis=0)
        inside = [np.concatenate([theirs[str(number)] for theirs in each]) for number in range(len(names))]
        places = kept - above
        if all(0 < place <= len(found) for place, found in zip(places, inside, strict=True)):
            least = np.asarray(
                [-np.partition(-found, place - 1)[place - 1] for place, found in zip(places, inside, strict=True)]
            )
            votes = np.sign(np.where(np.abs(signed) >= least[:, None], signed, 0).sum(axis=0)).sum()
            return least, float(np.sign(votes)) or 1.0
        width *= 8


def _drawn(cut: Plan, models: Sequence[Model], size: int) -> list[np.ndarray]:
    """Some rows of every leaf, evenly spaced, as task vectors [n, values]: nothing else of the files is read."""
    every = max(1, size // _SAMPLE)
    parts = []
    for piece in (piece for chunk in cut.chunks for piece in chunk.pieces):
        leaf = [model[piece.unit.paths[0]] for model in models]
        shape = leaf[0].shape
        for row in range(piece.start + (piece.stop - piece.start - 1) % every // 2, piece.stop, every):
            values = np.empty((len(models), *shape[1:]), np.float32)
            for tensor, out in zip(leaf, values[:, None], strict=True):
                tensor.read_into(out if shape else out[0], slice(row, row + 1) if shape else None)
            flat = values.reshape(len(models), -1)
            parts.append(flat[1:] - flat[0])
    return parts


def _everyones(parts: Sequence[np.ndarray], count: int, exchange: Exchange) -> list[np.ndarray]:
    """The rows that all processes drew."""
    each = exchange(
        {
            "values": np.concatenate([np.empty((count, 0), np.float32), *parts], axis=1),
            "ends": np.cumsum([0, *(part.shape[1] for part in parts)])[1:],
        }
    )
    return [part for theirs in each for part in np.split(theirs["values"], theirs["ends"][:-1], axis=1)]


def _deviation(parts: Sequence[np.ndarray], threshold: np.ndarray, share: float) -> float:
    """Standard deviation of how many of the drawn values exceed what a share of all does, drawn row by row.

    Values of a row are alike (a neuron that moved has moved in most of them), which makes a sample of rows vary more
    than one of values.
    """
    above = [(np.abs(part) >= threshold[:, None]).sum(axis=1) - share * part.shape[1] for part in parts]
    return float(np.sqrt(np.square(above).sum(axis=0)).max())


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

    def count(index: int, theta: np.ndarray, start: np.ndarray) -> tuple[int, int, list[np.ndarray], bool]:
        theta, start = theta.reshape(-1), start.reshape(-1)
        room = np.empty(min(_BLOCK, theta.size), np.float32)
        over, found, finite = 0, [], True
        for at in range(0, theta.size, _BLOCK):  # what stays in the cache is read and written several times for nothing
            size = room[: min(_BLOCK, theta.size - at)]
            np.subtract(theta[at : at + _BLOCK], start[at : at + _BLOCK], out=size, dtype=np.float32)
            np.abs(size, out=size)
            # One comparison leaves few values; a NaN fails it, and shows in the largest.
            near = size[size >= low[index]]
            among = near[near <= high[index]]
            over += near.size - among.size
            found.append(among)
            finite = finite and bool(np.isfinite(size.max()))
        return index, over, found, finite

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
                inside[index] += found
            advance(len(cut.chunks[number].pieces))
    return above, [np.concatenate([np.empty(0, np.float32), *found]) for found in inside]


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
    vectors = [thetas[:, i].astype(jnp.float32) - start for i in range(thetas.shape[1])]
    trimmed = trim(vectors, least)
    votes = vote(trimmed)
    update = scale * agreed(trimmed, majority, variant)
    if variant == "paper":
        update = update + sum(vectors[1:], start=vectors[0]) / len(vectors)
    out = (start + update).astype(dtype)
    cancels = (votes == 0) & reduce(jnp.logical_or, [part != 0 for part in trimmed])
    return out, jnp.isfinite(out).all(), votes.sum(), cancels.any()
