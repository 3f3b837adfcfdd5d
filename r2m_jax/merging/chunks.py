"""What is read together: models cut into pieces, pieces of one shape into chunks, chunks dealt to processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from r2m_jax.errors import InputError
from r2m_jax.merging.cost import deal, work
from r2m_jax.merging.engine import Method, check_count
from r2m_jax.merging.ranks import Rank
from r2m_jax.merging.selection import Select, Unit, attention_and_mlp, units
from r2m_jax.merging.statistics import Entry, entries
from r2m_jax.trees import same_structure

MEMORY = 320 * 2**20
"""Default budget in bytes for a chunk of all models, counted in float64, in which it is worked with."""

ALIGNMENT = 64
"""Of buffers, in bytes."""

LEAST = 32 * 2**20
"""Of a budget that is divided by the number of processes."""

_MOVE = 200.0
"""Operations of LAPACK in the time that one value is read, moved or written: .02 and 4 ns on a CPU, about."""


class Readable(Protocol):
    """A tensor in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""

    @property
    def dtype(self) -> np.dtype:
        """As stored."""

    def read_into(self, out: np.ndarray, rows: slice | None = None) -> None:
        """Fill an array with the tensor, or with rows of its first axis."""


Model = Mapping[str, Readable]
Write = Callable[[str, np.ndarray, int], None]
"""``write(path, array, row)``: these are the leaf's values from ``row`` of its first axis on."""


@dataclass(frozen=True)
class Piece:
    """A part of a unit: one layer of a stack, some rows of a large leaf, or all of it."""

    unit: Unit
    row: int  # of the statistics
    start: int
    stop: int
    whole: bool
    size: int

    def read_into(self, model: Model, out: np.ndarray) -> None:
        """Fill ``out`` with the values, side by side where the unit has several leaves."""
        rows = None if self.whole else slice(self.start, self.stop)
        if self.unit.axis is None:
            model[self.unit.paths[0]].read_into(out, rows)
            return
        widths = np.cumsum([model[path].shape[self.unit.axis] for path in self.unit.paths])[:-1]
        for path, part in zip(self.unit.paths, np.split(out, widths, axis=self.unit.axis), strict=True):
            model[path].read_into(part, rows)

    def counts(self, model: Model) -> Iterator[tuple[str, int]]:
        """How many values of which leaves it holds."""
        for path in self.unit.paths:
            shape = model[path].shape
            yield path, math.prod(shape) * (self.stop - self.start) // (shape[0] if shape else 1)

    def write(self, values: np.ndarray, model: Model, write: Write) -> None:
        """The inverse of :meth:`read_into`, into the result."""
        shapes = [model[path].shape for path in self.unit.paths]
        if self.unit.axis is None:
            write(self.unit.paths[0], values.reshape(self.stop - self.start, *shapes[0][1:]), self.start)
            return
        widths = np.cumsum([shape[self.unit.axis] for shape in shapes])[:-1]
        for path, part in zip(self.unit.paths, np.split(values, widths, axis=self.unit.axis), strict=True):
            write(path, part.reshape(-1, *model[path].shape[1:]), self.start)


@dataclass(frozen=True)
class Chunk:
    """Pieces of one shape and rank, which go through one compiled function together."""

    pieces: tuple[Piece, ...]
    rank: Rank | None

    @property
    def rows(self) -> np.ndarray:
        """Of the statistics."""
        return np.asarray([piece.row for piece in self.pieces])

    def read_into(self, models: Sequence[Model], room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """θ₀ ``[pieces, *shape]`` and the specialists ``[pieces, N, *shape]``, in the bytes of ``room``."""
        first = self.pieces[0]
        shape = first.unit.shape if first.unit.matrix else (first.size,)
        dtype = _common(models, first.unit)
        many, each = len(self.pieces) * (len(models) - 1), len(self.pieces) * first.size * dtype.itemsize
        theta0 = room[:each].view(dtype).reshape(len(self.pieces), *shape)
        start = -(-each // ALIGNMENT) * ALIGNMENT
        stack = room[start : start + many * first.size * dtype.itemsize].view(dtype)
        thetas = stack.reshape(len(self.pieces), len(models) - 1, *shape)
        for place, piece in enumerate(self.pieces):
            piece.read_into(models[0], theta0[place])
            for number, model in enumerate(models[1:]):
                piece.read_into(model, thetas[place, number])
        return theta0, thetas

    def bytes(self, models: Sequence[Model]) -> int:
        """The room it takes."""
        first = self.pieces[0]
        return (len(models) * len(self.pieces) * first.size) * _common(models, first.unit).itemsize + ALIGNMENT


@dataclass(frozen=True)
class Plan:
    """What one process reads together, in order, and what the rows of the statistics are.

    Attributes:
        chunks: of this process.
        where: the rows, of all processes.
        count: of specialists.
        shares: the leaves of every process.
    """

    chunks: tuple[Chunk, ...]
    where: tuple[Entry, ...]
    count: int
    shares: tuple[tuple[str, ...], ...]


def plan(
    method: Method,
    base: Model,
    specialists: Sequence[Model],
    *,
    select: Select = attention_and_mlp,
    fused_qkv: bool = False,
    memory: int = MEMORY,
    devices: int = 1,
    processes: int = 1,
    process: int = 0,
) -> Plan:
    """Cut models into chunks, those of one process of several.

    Args:
        method: decides what is truncated, and how far.
        base, specialists: tensors by path, of the same paths and shapes.
        select, fused_qkv: see :func:`~r2m_jax.merging.selection.units`.
        memory: budget in bytes for a chunk of all models; a chunk holds at least one matrix. Several processes take
            so much together: a small share in few large chunks would be read, worked on and written in turn.
        devices: chunks have matrices for all of them where the budget allows.
        processes, process: leaves are dealt out, the costliest first; a leaf is one process's.

    Raises:
        InputError: there is no specialist, or one lacks a tensor, has another, or one of another shape.
    """
    check_count(method, len(specialists))
    for number, model in enumerate(specialists):
        same_structure(base, model, f"specialist {number}")
    parts = units(base, select, fused_qkv)
    models = len(specialists) + 1
    memory = max(memory // processes, min(memory, LEAST))
    shares = deal([_cost(unit, method.rank_at(unit), len(specialists)) for unit in parts], processes).shares
    own = set(shares[process])
    batches: dict[tuple[Any, ...], list[Piece]] = {}
    row = 0
    for number, unit in enumerate(parts):
        pieces_of_unit = _pieces(unit, base, row, memory // (8 * models)) if number in own else ()
        for piece in pieces_of_unit:
            shape = unit.shape if unit.matrix else piece.size
            batches.setdefault((method.rank_at(unit), unit.axis, _common([base], unit), shape), []).append(piece)
        row += unit.layers
    chunks = []
    for (rank, *_), pieces in batches.items():
        most = max(1, memory // (8 * models * max(1, pieces[0].size)))
        each = _alike(len(pieces), most, devices // math.gcd(devices, len(specialists)) if rank is not None else 1)
        chunks += [Chunk(tuple(pieces[at : at + each]), rank) for at in range(0, len(pieces), each)]
    leaves = tuple(tuple(path for number in share for path in parts[number].paths) for share in shares)
    return Plan(tuple(chunks), tuple(entries(parts)), len(specialists), leaves)


def _cost(unit: Unit, rank: Rank | None, specialists: int) -> float:
    """What a unit costs, in operations of LAPACK."""
    found = 0.0 if rank is None else specialists * work(*unit.shape)
    return unit.layers * (found + _MOVE * (specialists + 1) * unit.size)


def _alike(total: int, most: int, multiple: int) -> int:
    """How many pieces go into a chunk: at most so many, a multiple for the devices, and chunks of one length.

    A last chunk of another length would be compiled for by itself.
    """
    most = min(total, most)
    fitting = [each for each in range(most, max(most // 2, 1) - 1, -1) if each % multiple == 0] or [most]
    return next((each for each in fitting if total % each == 0), fitting[0])


def _pieces(unit: Unit, base: Model, row: int, most: int) -> Iterator[Piece]:
    shape = base[unit.paths[0]].shape
    if unit.layers > 1:
        if math.prod(shape[: len(shape) - len(unit.shape)]) != shape[0]:
            raise InputError(f"{unit.name} has shape {shape}; stacks of layers have one leading axis.")
        for layer in range(unit.layers):
            yield Piece(unit, row + layer, layer, layer + 1, False, unit.size)
        return
    length = shape[0] if shape else 1
    rows = max(1, most * length // max(1, unit.size))
    if unit.matrix or rows >= length:
        yield Piece(unit, row, 0, length, True, unit.size)
        return
    for start in range(0, length, rows):
        stop = min(length, start + rows)
        yield Piece(unit, row, start, stop, False, (stop - start) * unit.size // length)


def _common(models: Sequence[Model], unit: Unit) -> np.dtype:
    """The dtype that holds what all models store of a unit."""
    return np.result_type(*(model[path].dtype for model in models for path in unit.paths))
