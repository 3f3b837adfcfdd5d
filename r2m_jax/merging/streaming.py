"""Merging models that are larger than memory: one bounded chunk of leaves at a time, from files to files.

Two passes read the models: the first measures and keeps the bases of the truncated matrices in files of its own, the
second writes the result. Methods whose coefficients depend on nothing measured (averages, CART) need the second alone.
What is in memory is the budget, the statistics (a few numbers per matrix) and nothing that grows with the model.

Several processes divide the leaves between them by what they cost. Each reads, measures and writes its own; all know
the statistics of all, and so resolve the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from r2m_jax.errors import InputError
from r2m_jax.merging.chunks import ALIGNMENT, Chunk, Model, Plan, Write
from r2m_jax.merging.diagnostics import MergeDiagnostics
from r2m_jax.merging.engine import Coefficients, Method, apply, empty_statistics, measure
from r2m_jax.merging.ranks import Rank
from r2m_jax.merging.spectral import Kernel, wide_arithmetic
from r2m_jax.merging.statistics import Statistics

Exchange = Callable[[Mapping[str, np.ndarray]], Sequence[Mapping[str, np.ndarray]]]
"""Takes what this process has, returns what each process has; all call it at the same point."""


def alone(mine: Mapping[str, np.ndarray]) -> Sequence[Mapping[str, np.ndarray]]:
    """The :data:`Exchange` of the only process."""
    return [mine]


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
    exchange: Exchange = alone,
) -> Statistics:
    """First pass: the statistics of all entries of all processes, in float64; bases of tails go to ``scratch``.

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
    # Every row is of one process, and zero in the others: nothing is rounded.
    each = exchange(total._asdict())
    return Statistics(**{name: np.sum([theirs[name] for theirs in each], axis=0) for name in total._fields})


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
    skip: Container[int] = (),
    written: Callable[[int], None] = lambda number: None,
) -> None:
    """Second pass: θ* chunk by chunk.

    Args:
        method, cut, base, specialists, names, kernel, mesh: as in the first pass.
        coefficients: of all entries.
        write: takes the results; called from one thread, in any order of leaves.
        scratch: of the first pass; None if there was none.
        dtype: of the result; the base's when omitted.
        advance: told how many pieces are done.
        skip: numbers of chunks that need not be worked on.
        written: told the number of a chunk all of which was given to ``write``, in the same thread.

    Raises:
        InputError: a value is NaN or Inf, or becomes so in ``dtype``.
    """
    weights = method.weights(cut.count)
    tasks, tails = np.asarray(coefficients.task), np.asarray(coefficients.tail)
    todo = [number for number in range(len(cut.chunks)) if number not in skip]
    with write_behind(base, write) as put:
        for place, values in read_ahead([cut.chunks[number] for number in todo], [base, *specialists]):
            number = todo[place]
            chunk = cut.chunks[number]
            kept = None if scratch is None or chunk.rank is None else np.load(scratch / f"{number}.npy")
            target = np.dtype(dtype or base[chunk.pieces[0].unit.paths[0]].dtype)
            rows = Coefficients(tasks[chunk.rows], tails[chunk.rows])
            with wide_arithmetic():
                out, finite = _apply(weights, chunk.rank, *_placed(values, mesh), kept, rows, target, kernel, mesh)
            if not bool(finite):
                raise culprit(chunk, values, names, np.asarray(out))
            put(chunk, np.asarray(out), partial(written, number))
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
def write_behind(base: Model, write: Write) -> Iterator[Callable[..., None]]:
    """``put(chunk, values, then)``: written while the next chunk is worked on; all is written when the block ends."""
    with ThreadPoolExecutor(1) as writer:
        pending: list[Future[None]] = []

        def every_piece(chunk: Chunk, values: np.ndarray, then: Callable[[], None]) -> None:
            for piece, part in zip(chunk.pieces, values, strict=True):
                piece.write(part, base, write)
            then()

        def put(chunk: Chunk, values: np.ndarray, then: Callable[[], None] = lambda: None) -> None:
            while pending:  # one at a time: memory is bounded, and what went wrong is heard of
                pending.pop().result()
            pending.append(writer.submit(every_piece, chunk, values, then))

        yield put
        while pending:
            pending.pop().result()


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
