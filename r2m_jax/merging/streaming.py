"""Merging models that are larger than memory: one bounded chunk of leaves at a time, from files to files.

Two passes read the models: the first measures and keeps the bases of the truncated matrices in files of its own, the
second writes the result. Methods whose coefficients depend on nothing measured (averages, CART) need the second alone.
What is in memory is the budget, the statistics (a few numbers per matrix) and nothing that grows with the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from r2m_jax.errors import InputError
from r2m_jax.merging.diagnostics import MergeDiagnostics
from r2m_jax.merging.engine import Coefficients, Method, apply, check_count, empty_statistics, measure
from r2m_jax.merging.ranks import Rank
from r2m_jax.merging.selection import Select, Unit, attention_and_mlp, units
from r2m_jax.merging.spectral import Kernel, wide_arithmetic
from r2m_jax.merging.statistics import Entry, Statistics, entries
from r2m_jax.trees import same_structure

MEMORY = 320 * 2**20
"""Default budget in bytes for a chunk of all models, counted in float64, in which it is worked with."""

ALIGNMENT = 64
"""Of buffers, in bytes."""


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
    """What is read together, in order, and what the rows of the statistics are."""

    chunks: tuple[Chunk, ...]
    where: tuple[Entry, ...]
    count: int


def plan(
    method: Method,
    base: Model,
    specialists: Sequence[Model],
    *,
    select: Select = attention_and_mlp,
    fused_qkv: bool = False,
    memory: int = MEMORY,
    devices: int = 1,
) -> Plan:
    """Cut models into chunks.

    Args:
        method: decides what is truncated, and how far.
        base, specialists: tensors by path, of the same paths and shapes.
        select, fused_qkv: see :func:`~r2m_jax.merging.selection.units`.
        memory: budget in bytes for a chunk of all models; a chunk holds at least one matrix.
        devices: chunks have matrices for all of them where the budget allows.

    Raises:
        InputError: there is no specialist, or one lacks a tensor, has another, or one of another shape.
    """
    check_count(method, len(specialists))
    for number, model in enumerate(specialists):
        same_structure(base, model, f"specialist {number}")
    parts = units(base, select, fused_qkv)
    models = len(specialists) + 1
    batches: dict[tuple[Any, ...], list[Piece]] = {}
    row = 0
    for unit in parts:
        for piece in _pieces(unit, base, row, memory // (8 * models)):
            shape = unit.shape if unit.matrix else piece.size
            batches.setdefault((method.rank_at(unit), unit.axis, _common([base], unit), shape), []).append(piece)
        row += unit.layers
    chunks = []
    for (rank, *_), pieces in batches.items():
        most = max(1, memory // (8 * models * max(1, pieces[0].size)))
        each = _alike(len(pieces), most, devices // math.gcd(devices, len(specialists)) if rank is not None else 1)
        chunks += [Chunk(tuple(pieces[at : at + each]), rank) for at in range(0, len(pieces), each)]
    return Plan(tuple(chunks), tuple(entries(parts)), len(specialists))


def _alike(total: int, most: int, multiple: int) -> int:
    """How many pieces go into a chunk: at most so many, a multiple for the devices, and chunks of one length.

    A last chunk of another length would be compiled for by itself.
    """
    most = min(total, most)
    fitting = [each for each in range(most, max(most // 2, 1) - 1, -1) if each % multiple == 0] or [most]
    return next((each for each in fitting if total % each == 0), fitting[0])


def measure_stream(
    method: Method,
    cut: Plan,
    base: Model,
    specialists: Sequence[Model],
    *,
    names: Sequence[str],
    scratch: Path,
    kernel: Kernel = "auto",
    mesh: Mesh | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Statistics:
    """First pass: the statistics of all entries, in float64; bases of tails go to ``scratch``.

    Chunks already in ``scratch`` are not measured again, so that an interrupted merge goes on where it was.

    Raises:
        InputError: a specialist or the base holds NaN or Inf; named with the tensor.
    """
    weights = method.weights(cut.count)
    total = empty_statistics(len(cut.where), cut.count)
    models = [base, *specialists]
    todo = [number for number in range(len(cut.chunks)) if not (scratch / f"{number}.npz").exists()]
    for number, values in read_ahead([cut.chunks[number] for number in todo], models):
        chunk = cut.chunks[todo[number]]
        with wide_arithmetic():
            statistics, bases = _measure(weights, chunk.rank, *_placed(values, mesh), kernel, mesh)
        arrays = {name: np.asarray(value) for name, value in statistics._asdict().items()}
        if not np.isfinite(arrays["gram"]).all():
            raise culprit(chunk, values, names)
        if bases is not None:
            np.save(scratch / f"{todo[number]}.npy", np.asarray(bases))
        aside = scratch / f"{todo[number]}.part.npz"
        np.savez(aside, allow_pickle=False, **arrays)
        aside.replace(scratch / f"{todo[number]}.npz")
        advance(len(chunk.pieces))
    for number, chunk in enumerate(cut.chunks):
        with np.load(scratch / f"{number}.npz") as held:
            for name, sums in total._asdict().items():
                np.add.at(sums, chunk.rows, held[name])
    return total


def apply_stream(
    method: Method,
    cut: Plan,
    base: Model,
    specialists: Sequence[Model],
    coefficients: Coefficients,
    write: Write,
    *,
    names: Sequence[str],
    scratch: Path | None = None,
    dtype: np.dtype | None = None,
    kernel: Kernel = "auto",
    mesh: Mesh | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> None:
    """Second pass: θ* chunk by chunk.

    Args:
        method, cut, base, specialists, names, kernel, mesh: as in the first pass.
        coefficients: of all entries.
        write: takes the results; called from one thread, in any order of leaves.
        scratch: of the first pass; None if there was none.
        dtype: of the result; the base's when omitted.
        advance: told how many pieces are done.

    Raises:
        InputError: a value is NaN or Inf, or becomes so in ``dtype``.
    """
    weights = method.weights(cut.count)
    tasks, tails = np.asarray(coefficients.task), np.asarray(coefficients.tail)
    with write_behind(base, write) as put:
        for number, values in read_ahead(cut.chunks, [base, *specialists]):
            chunk = cut.chunks[number]
            kept = None if scratch is None or chunk.rank is None else np.load(scratch / f"{number}.npy")
            target = np.dtype(dtype or base[chunk.pieces[0].unit.paths[0]].dtype)
            rows = Coefficients(tasks[chunk.rows], tails[chunk.rows])
            with wide_arithmetic():
                out, finite = _apply(weights, chunk.rank, *_placed(values, mesh), kept, rows, target, kernel, mesh)
            if not bool(finite):
                raise culprit(chunk, values, names, np.asarray(out))
            put(chunk, np.asarray(out))
            advance(len(chunk.pieces))


def resolve(method: Method, statistics: Statistics | None, cut: Plan) -> tuple[Coefficients, MergeDiagnostics | None]:
    """Coefficients in float64, and diagnostics where the method has them.

    Args:
        method: whose.
        statistics: of the first pass; None for a method that needs none.
        cut: what they are statistics of.
    """
    with wide_arithmetic():
        known = statistics or empty_statistics(len(cut.where), cut.count)
        # One program: operation by operation the first time takes four times as long, and here there is no second.
        found = jax.jit(partial(method.resolve, where=cut.where))(known)
        coefficients, diagnostics = jax.tree.map(np.asarray, found)
    return coefficients, diagnostics


@partial(jax.jit, static_argnums=(1, 4, 5))
def _measure(
    weights: Array, rank: Rank | None, theta0: Array, thetas: Array, kernel: Kernel, mesh: Mesh | None
) -> tuple[Statistics, Array | None]:
    return measure(weights, rank, theta0, thetas, kernel=kernel, mesh=mesh)


@partial(jax.jit, static_argnums=(1, 6, 7, 8))
def _apply(
    weights: Array,
    rank: Rank | None,
    theta0: Array,
    thetas: Array,
    bases: Array | None,
    coefficients: Coefficients,
    dtype: np.dtype,
    kernel: Kernel,
    mesh: Mesh | None,
) -> tuple[Array, Array]:
    out = apply(weights, rank, theta0, thetas, bases, coefficients, kernel=kernel, mesh=mesh).astype(dtype)
    return out, jnp.isfinite(out).all()


def _placed(values: tuple[np.ndarray, np.ndarray], mesh: Mesh | None) -> Any:
    """Each device's share where it will be worked on; otherwise all of it would pass through the first."""
    if mesh is None or len(values[0]) % mesh.size:
        return values
    return jax.device_put(values, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def read_ahead(chunks: Sequence[Chunk], models: Sequence[Model]) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """Chunks with their values, the next one being read while this one is worked on.

    The values are views of two buffers that are used over and over (fresh memory costs more than reading a file that
    is in the page cache): they are good until the next chunk is asked for.
    """
    if not chunks:
        return
    most = max(chunk.bytes(models) for chunk in chunks)
    rooms = [_aligned(most), _aligned(most)]
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(chunks[0].read_into, models, rooms[0])
        for number in range(len(chunks)):
            values = coming.result()
            if number + 1 < len(chunks):
                coming = reader.submit(chunks[number + 1].read_into, models, rooms[(number + 1) % 2])
            yield number, values


def _aligned(size: int) -> np.ndarray:
    """Bytes that JAX on the CPU takes as they are, without a copy."""
    room = np.empty(size + ALIGNMENT, np.uint8)
    return room[-room.ctypes.data % ALIGNMENT :][:size]


@contextmanager
def write_behind(base: Model, write: Write) -> Iterator[Callable[[Chunk, np.ndarray], None]]:
    """``put(chunk, values)``: written while the next chunk is worked on; all is written when the block ends."""
    with ThreadPoolExecutor(1) as writer:
        pending: list[Future[None]] = []

        def every_piece(chunk: Chunk, values: np.ndarray) -> None:
            for piece, part in zip(chunk.pieces, values, strict=True):
                piece.write(part, base, write)

        def put(chunk: Chunk, values: np.ndarray) -> None:
            while pending:  # one at a time: memory is bounded, and what went wrong is heard of
                pending.pop().result()
            pending.append(writer.submit(every_piece, chunk, values))

        yield put
        while pending:
            pending.pop().result()


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


def culprit(
    chunk: Chunk, values: tuple[np.ndarray, np.ndarray], names: Sequence[str], out: np.ndarray | None = None
) -> InputError:
    """Who brought a NaN or Inf into a chunk, or into its result ``out``."""
    theta0, thetas = values
    for name, model in zip(["the base", *names], [theta0, *np.moveaxis(thetas, 1, 0)], strict=True):
        for piece, part in zip(chunk.pieces, model, strict=True):
            wrong = int((~np.isfinite(part.astype(np.float64))).sum())
            if wrong:
                return InputError(f"{name}: {piece.unit.name} holds {wrong} values that are NaN or infinite.")
    if out is None:
        return InputError(
            f"{chunk.pieces[0].unit.name}: inner products of the task vectors overflow; check the models."
        )
    broken = next(
        piece for piece, part in zip(chunk.pieces, out, strict=True) if not np.isfinite(part.astype(np.float64)).all()
    )
    return InputError(f"{broken.unit.name}: the merged values do not fit into {out.dtype}; choose a wider dtype.")
