"""Which record stands at which place of the stream: a pure function of (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Int

from r2m_jax.data.records import Record
from r2m_jax.errors import InputError

Sampling = Literal["natural", "balanced", "per_method"]
"""``natural``: every record once an epoch. ``balanced``: as many real as fake images. ``per_method``: as many real as
fake images, and as many fake images of every method."""

_BLOCKS, _DRAWS, _SUBSTITUTES = range(3)  # separate the random streams of one seed
# Grain's cipher permutes a place without the others, but on blocks of 2¹⁶ and more: shorter permutations cost it
# up to a millisecond a place, and NumPy's are cached (at most 32 MB of them).
_LARGE = 2**16
# Grain's own 4 rounds leave order: of a million places, neighbours' targets correlate 80 standard deviations from 0
# (8 rounds: 5 at distance 4; 16 rounds: none).
_ROUNDS = 16


@dataclass(frozen=True, eq=False)
class Plan:
    """The order of an endless stream of records.

    The stream is cut into blocks that hold each group's share exactly, in an order drawn per block. A group is walked
    through in random order, and no record of it comes a second time before all have come once; so a rare group
    repeats within an epoch and a frequent one is seen whole over several.

    Attributes:
        groups: record numbers of each group.
        block: group of each slot of a block.
        length: samples of an epoch, the number of records whatever the sampling.
        seed: of every draw; None keeps the order of the records.
    """

    groups: tuple[Int[np.ndarray, "?n"], ...]
    block: tuple[int, ...]
    length: int
    seed: int | None

    def record(self, epoch: int, index: int) -> int:
        """Number of the record at place ``index`` (0 … length − 1) of an epoch."""
        block, slot = self._slot(epoch, index)
        group = self.block[slot]
        draw = block * self.block.count(group) + self.block[:slot].count(group)
        members = self.groups[group]
        turn, place = divmod(draw, len(members))
        return int(members[_shuffled(place, len(members), self.seed, _DRAWS, group, turn)])

    def substitute(self, epoch: int, index: int, attempt: int) -> int:
        """Another record of the same group, for a place whose record cannot be read."""
        members = self.groups[self.block[self._slot(epoch, index)[1]]]
        rng = np.random.default_rng((self.seed or 0, _SUBSTITUTES, epoch, index, attempt))
        return int(members[rng.integers(len(members))])

    def _slot(self, epoch: int, index: int) -> tuple[int, int]:
        block, slot = divmod(epoch * self.length + index, len(self.block))
        return block, _shuffled(slot, len(self.block), self.seed, _BLOCKS, block)


def in_order(count: int) -> Plan:
    """Every record in the order of the index."""
    return Plan((np.arange(count),), (0,), count, None)


def plan(records: Sequence[Record], sampling: Sampling, seed: int) -> Plan:
    """The order of a stream over ``records``.

    Raises:
        InputError: the sampling is unknown, there is no record, a class is absent that the sampling needs, or the
            seed is not within 0 … 2³² − 1.
    """
    if sampling not in get_args(Sampling):
        raise InputError(f"the sampling {sampling!r} is unknown; choose one of {', '.join(get_args(Sampling))}.")
    if not 0 <= seed < 2**32:
        raise InputError(f"the seed {seed} is not within 0 and 2³² − 1.")
    if not records:
        raise InputError("there is no image to sample from.")
    if sampling == "natural":
        return Plan((np.arange(len(records)),), (0,), len(records), seed)
    members: dict[str, list[int]] = {"real": []}
    for number, record in enumerate(records):
        kind = "fake" if sampling == "balanced" else f"fake {record.method or record.family}"
        members.setdefault(kind if record.label else "real", []).append(number)
    if not members["real"] or len(members) == 1:
        absent = "fake" if len(members) == 1 else "real"
        raise InputError(f"there is no {absent} image; {sampling} sampling needs both classes.")
    groups = tuple(np.asarray(numbers) for numbers in members.values())
    fakes = range(1, len(groups))
    return Plan(groups, (0,) * len(fakes) + tuple(fakes), len(records), seed)


def _shuffled(place: int, count: int, seed: int | None, *key: int) -> int:
    """Where ``place`` of ``count`` goes in the permutation that (seed, key) names."""
    if seed is None or count == 1:
        return place
    if count < _LARGE:
        return int(_permutation(count, seed, *key)[place])
    word = int(np.random.SeedSequence((seed, *key)).generate_state(1)[0])
    return index_shuffle(place, max_index=count - 1, seed=word, rounds=_ROUNDS)


@lru_cache(maxsize=128)
def _permutation(count: int, seed: int, *key: int) -> Int[np.ndarray, " count"]:
    return np.random.default_rng((seed, *key)).permutation(np.arange(count, dtype=np.int32))
