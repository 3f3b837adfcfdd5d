"""What ``r2m merge --dry-run`` says beside the recipe: chunks, matrices, operations, bytes, memory and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from r2m_jax.jobs.merge_inputs import open_inputs
from r2m_jax.merging.averaging import WeightAveraging
from r2m_jax.merging.chunks import Plan, plan
from r2m_jax.merging.cost import columns, work
from r2m_jax.merging.estimate import Estimate, Machine, Memory, Pass, estimate, memory, passes
from r2m_jax.merging.spectral import Kernel, choose_kernel
from r2m_jax.recipes.merging import MergeRecipe


def merge_plan(recipe: MergeRecipe, machine: Machine, processes: int = 1) -> list[str]:
    """A merge in lines of text, before it runs; nothing but the headers of files is read.

    Args:
        recipe: of the merge.
        machine: what each process has.
        processes: how many there are.

    Raises:
        InputError: see :func:`r2m_jax.jobs.merge_inputs.open_inputs`.
    """
    inputs = open_inputs(recipe.base, {name: entry.path for name, entry in recipe.models.items()})
    base, thetas = inputs.base.tower, [each.tower for each in inputs.specialists.values()]
    method = None if recipe.method == "ties" else recipe.linear_method()
    kernel = choose_kernel(recipe.kernel)
    dtype = None if recipe.dtype is None else np.dtype(recipe.dtype)
    cuts = [
        plan(
            method or WeightAveraging(), base, thetas, fused_qkv=bool(recipe.parameters.fused_qkv),
            memory=recipe.memory * 2**20, devices=machine.devices, processes=processes, process=process,
        )
        for process in range(processes)
    ]  # fmt: skip
    models = [base, *thetas]
    todo = [passes(method, cut, models, kernel=kernel, dtype=dtype) for cut in cuts]
    most = max((memory(cut, models, machine.devices, dtype=dtype) for cut in cuts), key=lambda each: each.host)
    taken = estimate(todo, machine, [float(file.stat().st_size) for file in inputs.files])
    parameters = sum(int(np.prod(tensor.shape)) for tensor in base.values())
    where = f"{machine.name}{f', {processes} such processes' if processes > 1 else ''}"
    return [
        f"{parameters / 1e6:.1f} M parameters, {len(thetas)} specialists, {recipe.method}, on {where}",
        *_matrices(cuts, kernel),
        *_passes(todo),
        *_memory(most, machine),
        *_time(taken, processes),
    ]


def _matrices(cuts: Sequence[Plan], kernel: Kernel) -> list[str]:
    chunks = [chunk for cut in cuts for chunk in cut.chunks]
    pieces = Counter(
        (chunk.pieces[0].unit.shape, chunk.rank) for chunk in chunks if chunk.rank is not None for _ in chunk.pieces
    )
    lines = [f"chunks: {len(chunks)}, of {sum(len(chunk.pieces) for chunk in chunks)} pieces"]
    for (shape, rank), number in pieces.items():
        m, n = shape
        found = columns(m, n, rank, kernel)
        lines.append(
            f"  {number} matrices {m} × {n} at rank {rank}: basis of {found} vectors, {_si(work(m, n), 'op')} each"
        )
    return lines


def _passes(todo: Sequence[Sequence[Pass]]) -> list[str]:
    lines = []
    for same in zip(*todo, strict=True):
        every = sum((one.all for one in same[1:]), start=same[0].all)
        lines.append(
            f"{same[0].name}: {_si(every.wide_products, 'op')} of products in float64, {_si(every.products, 'op')} in "
            f"float32, {_si(every.cubes, '')} of s³ in eigenproblems, {_si(every.moved, 'B')} elementwise, "
            f"{_si(every.read, 'B')} read, {_si(every.written, 'B')} written"
        )
    return lines


def _memory(most: Memory, machine: Machine) -> list[str]:
    kind = "core" if machine.devices_are_cores else "device"
    needed = most.device + (most.host / machine.devices if machine.devices_are_cores else 0.0)
    enough = "" if needed <= machine.memory else f", more than the {_si(machine.memory, 'B')} there are"
    return [f"memory of a process: {_si(most.host, 'B')} of buffers, {_si(most.device, 'B')} on each {kind}{enough}"]


def _time(taken: Estimate, processes: int) -> list[str]:
    phases = [
        f"{each.name} {each.seconds:.1f} s (computing {each.computing:.1f}, reading {each.reading:.1f}, writing "
        f"{each.writing:.1f}, hashing {each.hashing:.1f}, compiling {each.compiling:.1f})"
        for each in taken.phases
    ]
    balance = f"; balance of the processes {taken.balance:.2f}" if processes > 1 else ""
    return [f"estimated time, starting apart: {taken.seconds:.1f} s: {', '.join(phases)}{balance}"]


def _si(value: float, unit: str) -> str:
    """``1.23 G``, with the unit."""
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    power = 0
    while value >= 999.5 and power + 1 < len(prefixes):
        value, power = value / 1000, power + 1
    return f"{value:.3g} {prefixes[power]}{unit}".rstrip()
