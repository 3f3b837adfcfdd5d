"""How long a merge takes and how much memory it needs: a plan's operations against a machine's rates.

Few rates, each measured by itself (:mod:`r2m_jax.jobs.calibrating`), no fitting of whole merges;
``benchmarks/scale.py`` compares what comes out with merges of sizes that no rate was measured on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r2m_jax.merging.chunks import Chunk, Model, Plan
from r2m_jax.merging.cost import Operations, applying, basis_operations, columns, deal, measuring, total
from r2m_jax.merging.engine import Method
from r2m_jax.merging.spectral import Kernel

_OF_COUNTING = 7
_OF_ELECTING = 7
"""Arrays per specialist, or model, that TIES's passes come to; timed, as XLA fuses some of them."""


@dataclass(frozen=True)
class Machine:
    """What one process has to work with: ``r2m merge --dry-run`` measures it, or reads it from a file.

    Attributes:
        name: what to call it.
        devices: how many the process has.
        cores: of the processor, which read, write and hash (and compute, where the devices are these cores).
        devices_are_cores: whether the devices are the cores that also read and write.
        products, wide_products: operations per second of a device with all of them busy, in float32 and float64.
        cubes, squares: seconds a device takes for an s × s eigenproblem in float64, per s³ and per s².
        moved: bytes per second of elementwise work on a device.
        read, written, hashed: bytes per second of the process, files being in the page cache.
        compiled, compiled_truncating: seconds to compile one program that truncates nothing, or matrices.
        memory: bytes a device has, or its share of the host's.
    """

    name: str
    devices: int
    cores: int
    devices_are_cores: bool
    products: float
    wide_products: float
    cubes: float
    squares: float
    moved: float
    read: float
    written: float
    hashed: float
    compiled: float
    compiled_truncating: float
    memory: float

    def seconds(self, what: Operations) -> float:
        """Of one device computing this; reading and writing are not in it."""
        return (
            what.products / self.products
            + what.wide_products / self.wide_products
            + what.cubes * self.cubes
            + what.squares * self.squares
            + what.moved / self.moved
        )


@dataclass(frozen=True)
class Share:
    """A chunk in operations; all of its pieces are alike.

    Attributes:
        pieces: how many.
        matrices: how many bases are found for each.
        basis: operations of one.
        rest: of a piece, its bases apart, files included.
    """

    pieces: int
    matrices: int
    basis: Operations
    rest: Operations

    @property
    def all(self) -> Operations:
        """Of the chunk."""
        return (self.basis * self.matrices + self.rest) * self.pieces

    def seconds(self, machine: Machine) -> float:
        """Until all devices are done: whole pieces are divided between them, single matrices where those are few."""
        rest = machine.seconds(self.rest)
        if not self.matrices:
            # A chunk that does not divide stays on one device, where that is a core with the help of the others.
            divides = machine.devices_are_cores or self.pieces % machine.devices == 0
            return rest * self.pieces / (machine.devices if divides else 1)
        layers = -(-self.pieces // machine.devices)
        matrices = layers * self.matrices
        if self.pieces < machine.devices:
            matrices = -(-self.pieces * self.matrices // machine.devices)
        return matrices * machine.seconds(self.basis) + layers * rest


@dataclass(frozen=True)
class Pass:
    """Once through the models.

    Attributes:
        name: ``measure``, ``count`` or ``merge``.
        shares: of every chunk.
        programs: how many are compiled that truncate nothing.
        truncating: and how many that do.
    """

    name: str
    shares: tuple[Share, ...]
    programs: int
    truncating: int

    @property
    def all(self) -> Operations:
        """Of all chunks."""
        return total(share.all for share in self.shares)


def passes(
    method: Method | None,
    cut: Plan,
    models: Sequence[Model],
    *,
    kernel: Kernel = "gram",
    dtype: np.dtype | None = None,
) -> tuple[Pass, ...]:
    """What a merge by a plan does, pass by pass.

    Args:
        method: whose plan it is; None for TIES.
        cut: of :func:`r2m_jax.merging.chunks.plan`.
        models: the base and the specialists; only shapes and dtypes are looked at.
        kernel: of truncation.
        dtype: of the result; the base's when omitted.
    """
    count = cut.count

    def share(chunk: Chunk, *, first: bool) -> Share:
        piece = chunk.pieces[0]
        path = piece.unit.paths[0]
        shape = piece.unit.shape if chunk.rank is not None else (piece.size,)
        stored = (models[0][path].dtype if dtype is None else np.dtype(dtype)).itemsize
        rest = Operations(read=float(piece.size * sum(model[path].dtype.itemsize for model in models)))
        if not first:
            rest += Operations(written=float(piece.size * stored))
        if method is None:
            arrays = _OF_COUNTING * count if first else _OF_ELECTING * (count + 1)
            return Share(len(chunk.pieces), 0, Operations(), rest + Operations(moved=4.0 * piece.size * arrays))
        rest += (measuring if first else applying)(shape, chunk.rank, count, kernel)
        basis = Operations()
        if chunk.rank is not None:
            m, n = piece.unit.shape
            if first or not method.measures:
                basis = basis_operations(m, n, chunk.rank, kernel)
            if method.measures:
                kept = 4.0 * count * min(m, n) * columns(m, n, chunk.rank, kernel)
                rest += Operations(written=kept) if first else Operations(read=kept)
        return Share(len(chunk.pieces), count if basis.moved else 0, basis, rest)

    kinds = {(each.rank, each.pieces[0].unit.shape, each.pieces[0].size, len(each.pieces)) for each in cut.chunks}
    truncating = sum(rank is not None for rank, *_ in kinds)
    plain = len(kinds) - truncating
    last = Pass("merge", tuple(share(chunk, first=False) for chunk in cut.chunks), plain, truncating)
    if method is not None and not method.measures:
        return (last,)
    before = tuple(share(chunk, first=True) for chunk in cut.chunks)
    if method is None:  # TIES counts without compiling
        return Pass("count", before, 0, 0), last
    # How statistics become coefficients is a program of many small operations, counted with the longer ones.
    return Pass("measure", before, plain, truncating + 1), last


@dataclass(frozen=True)
class Memory:
    """Bytes at the most, in whichever chunk needs most.

    Attributes:
        host: buffers of a process: the chunk being worked on, the next one, and two results.
        device: what each device holds besides: its share of the chunk and of the result, and room to work in.
    """

    host: float
    device: float


def memory(cut: Plan, models: Sequence[Model], devices: int, *, dtype: np.dtype | None = None) -> Memory:
    """What one process needs for a plan, the interpreter and the programs (some 0.4 GB) apart.

    The room to work in is what XLA asks for on a CPU, rounded up (``memory_analysis`` of the programs of
    :mod:`r2m_jax.merging.streaming`), and LAPACK's.

    Args:
        cut, models, dtype: see :func:`passes`.
        devices: of the process.
    """
    host = device = 0.0
    count = cut.count
    for chunk in cut.chunks:
        first = chunk.pieces[0]
        inputs = float(chunk.bytes(models))
        target = models[0][first.unit.paths[0]].dtype if dtype is None else np.dtype(dtype)
        result = float(len(chunk.pieces) * first.size * target.itemsize)
        host = max(host, 2 * inputs + 2 * result)
        if chunk.rank is None:
            room = 4.0 * len(chunk.pieces) * first.size * (count + 2) / devices
        else:
            room = 4.0 * first.size * (10 + 5 * count) + 8.0 * 4 * min(first.unit.shape) ** 2
        device = max(device, (inputs + result) / devices + room)
    return Memory(host, device)


@dataclass(frozen=True)
class Phase:
    """A pass in seconds: what each part of it would take alone, and all together, in the process that takes longest.

    Attributes:
        name: of the pass.
        computing: of the devices, side by side.
        reading, writing, hashing: of files.
        compiling: the programs, one after the other.
        busy: all of these added up, those of the devices too: core seconds where devices are cores.
        seconds: of the pass. What computes, reads, writes and hashes runs side by side as far as the cores go.
    """

    name: str
    computing: float
    reading: float
    writing: float
    hashing: float
    compiling: float
    busy: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Of a merge.

    Attributes:
        phases: in order.
        balance: the share of all devices' time, until the last one is done with a pass, in which they compute.
    """

    phases: tuple[Phase, ...]
    balance: float

    @property
    def seconds(self) -> float:
        """Of all, from the opened models to the written one."""
        return sum(phase.seconds for phase in self.phases)


def estimate(processes: Sequence[Sequence[Pass]], machine: Machine, files: Sequence[float] = ()) -> Estimate:
    """The time of a merge by processes that have a machine each.

    All processes wait for each other after a pass. Files are taken to be read and written by every process at its own
    rate, however many there are.

    Args:
        processes: the passes of every process (:func:`passes` of its plan).
        machine: of one process.
        files: bytes of each input file, which are hashed in the first pass, dealt to the processes; as many equal ones
            as there are processes when omitted.
    """
    first = total(one[0].all for one in processes).read
    hashed = deal(files or [first / len(processes)] * len(processes), len(processes)).loads
    phases, used, held = [], 0.0, 0.0
    for number in range(len(processes[0])):
        each = [
            _phase(one[number], machine, 0.0 if number else load / machine.hashed)
            for one, load in zip(processes, hashed, strict=True)
        ]
        phases.append(max(each, key=lambda phase: phase.seconds))
        used += machine.seconds(total(one[number].all for one in processes))
        held += machine.devices * len(each) * max(phase.computing for phase in each)
    return Estimate(tuple(phases), used / held if held > 0 else 1.0)


def _phase(one: Pass, machine: Machine, hashing: float) -> Phase:
    every = one.all
    computing = sum(share.seconds(machine) for share in one.shares)
    reading, writing = every.read / machine.read, every.written / machine.written
    compiling = one.programs * machine.compiled + one.truncating * machine.compiled_truncating
    busy = reading + writing + hashing + compiling
    if machine.devices_are_cores:
        busy += machine.seconds(every)
    seconds = max(compiling + computing, reading, writing, hashing, busy / machine.cores)
    return Phase(one.name, computing, reading, writing, hashing, compiling, busy, seconds)
