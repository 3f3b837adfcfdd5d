"""The merges that benchmarks/accelerator.py measures: random models like trained ones, R²M here, by hand, and exact.

Models are flat trees in host memory (path → array, layers stacked), of merge_peers.py's description.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from merge_peers import (  # type: ignore[import-not-found]
    ALPHA,
    BASE_SCALE,
    LENGTHS,
    SHARED,
    UPDATE_SCALE,
    by_gram,
    by_svd,
    core,
    update_part,
)

from r2m_jax import merging
from r2m_jax.merging.cost import PURIFICATIONS, Operations, applying, basis_operations, measuring, total
from r2m_jax.merging.engine import leaves_by_path
from r2m_jax.merging.ranks import kept_rank
from r2m_jax.merging.selection import Unit, is_stack, units
from r2m_jax.merging.spectral import Kernel
from r2m_jax.models import init_backbone

KERNELS: tuple[Kernel, ...] = ("gram", "matmul", "randomized", "svd")
LOW_RANK = 0.3
ITERATIONS = 56
"""Of purification, which such an update of 1024² took at rank 0.7 (counted on a CPU)."""

Model = dict[str, np.ndarray]
Row = dict[str, Any]


@dataclass(frozen=True)
class Rates:
    """What floors are worked out with, per second."""

    pcie: float
    memory: float
    float64: float
    float32: float
    bfloat16: float

    def peak(self, dtype: str) -> float:
        """Of products in bfloat16 or float32."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


def timed(call: Callable[[], Any], repeat: int, results: list[Any] | None = None) -> list[float]:
    """Seconds of every run; only the last result is kept."""
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        taken.append(time.perf_counter() - start)
    if results is not None:
        results.append(result)
    return taken


def spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"seconds": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}


def make_models(config: Any, count: int) -> list[Model]:
    """The base and so many specialists: merge_peers.py's, as stacked leaves by path."""
    models: list[Model] = [{} for _ in range(count + 1)]
    for number, unit in enumerate(parts_of(config)):
        common, *own = (np.random.default_rng([number, part]) for part in range(count + 1))
        shape = (unit.layers, *unit.shape) if is_stack(unit.paths[0]) else unit.shape
        base = common.standard_normal(shape, np.float32) * np.float32(BASE_SCALE)
        base += np.float32(unit.paths[0].endswith("scale"))
        shared = update(common, unit, shape)
        models[0][unit.paths[0]] = base
        for index, rng in enumerate(own):
            scale, share = UPDATE_SCALE * LENGTHS[index], SHARED[index]
            moved = np.float32(scale * np.sqrt(share)) * shared
            moved += np.float32(scale * np.sqrt(1 - share)) * update(rng, unit, shape)
            models[index + 1][unit.paths[0]] = base + moved
    return models


def parts_of(config: Any) -> list[Unit]:
    return units(leaves_by_path(jax.eval_shape(lambda: init_backbone(config, jax.random.key(0))))[0])


def update(rng: np.random.Generator, unit: Unit, shape: tuple[int, ...]) -> np.ndarray:
    if not unit.matrix:
        return np.asarray(update_part(rng, shape, False))
    return np.stack([update_part(rng, unit.shape, True) for _ in range(unit.layers)])


def merged_by_hand(
    models: Sequence[Model],
    rank: float,
    truncate: Callable[[Any, int], Any],
    stack: Callable[[list[Any]], Any],
    wide: Callable[[Any], Any],
) -> dict[str, Any]:
    """R²M as :func:`r2m_jax.merging.r2m` does it by default, everything in memory, in NumPy or torch."""
    base, *thetas = models
    matrices = {unit.paths[0]: unit for unit in units(base) if unit.matrix}
    taus = [{name: theta[name] - base[name] for name in base} for theta in thetas]
    mean = {name: sum(tau[name] for tau in taus) / len(taus) for name in base}

    def kept(tau: Mapping[str, Any], name: str) -> Any:
        delta = tau[name] - mean[name]
        if name not in matrices:
            return delta
        return stack([truncate(matrix, kept_rank(rank, *matrices[name].shape)) for matrix in delta])

    def dot(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
        return sum(float(wide(a[name]).reshape(-1) @ wide(b[name]).reshape(-1)) for name in base)

    parts = [{name: kept(tau, name) for name in base} for tau in taus]
    coefficients, core_norm = core(np.array([[dot(a, b) for b in taus] for a in taus]))
    norms = [np.sqrt(dot(part, part)) for part in parts]
    matched = [float(np.mean(norms) / norm / len(taus)) for norm in norms]
    residual = {name: sum(b * part[name] for b, part in zip(matched, parts, strict=True)) for name in base}
    eta = ALPHA * core_norm / float(np.sqrt(dot(residual, residual)))
    shared = [float(c) for c in coefficients]
    return {
        name: base[name] + (sum(c * tau[name] for c, tau in zip(shared, taus, strict=True)) + eta * residual[name])
        for name in base
    }


def in_torch(device: str, kind: str, models: Sequence[Model], rank: float) -> Callable[[], Model]:
    import torch

    def gram(matrix: Any, kept: int) -> Any:
        return by_gram(torch.linalg.eigh)(matrix.double(), kept).float()

    truncate = gram if kind == "gram" else by_svd(partial(torch.linalg.svd, full_matrices=False))

    def call() -> Model:
        placed = [{name: torch.from_numpy(leaf).to(device) for name, leaf in model.items()} for model in models]
        found = merged_by_hand(placed, rank, truncate, torch.stack, lambda tensor: tensor.double())
        return {name: leaf.cpu().numpy() for name, leaf in found.items()}

    return call


def in_jax(kernel: Kernel, models: Sequence[Model], rank: float, facts: Row) -> Callable[[], Model]:
    """One compiled merge; seconds of compiling and bytes on the device go to ``facts``."""
    base, *thetas = models
    program = jax.jit(lambda base, thetas: merging.r2m(base, thetas, rank=rank, alpha=ALPHA, kernel=kernel).params)
    start = time.perf_counter()
    compiled = program.lower(base, thetas).compile()
    facts["compile_s"] = time.perf_counter() - start
    needed: Any = compiled.memory_analysis()
    if needed is not None:
        sizes = (needed.argument_size_in_bytes, needed.output_size_in_bytes, needed.temp_size_in_bytes)
        facts["device_bytes"] = int(sum(sizes))
    return lambda: jax.device_get(compiled(base, thetas))


def references(models: Sequence[Model], ranks: Sequence[float]) -> dict[float, Model]:
    """The merges in float64, by full SVDs, one of each matrix for all ranks."""
    exact = [{name: leaf.astype(np.float64) for name, leaf in model.items()} for model in models]
    known: list[Any] = []
    found = {}
    for rank in ranks:
        again = iter(tuple(known))

        def svd(matrix: np.ndarray, again: Iterator[Any] = again) -> Any:
            factors = next(again, None)
            if factors is None:
                factors = np.linalg.svd(matrix, full_matrices=False)
                known.append(factors)
            return factors

        found[rank] = merged_by_hand(exact, rank, by_svd(svd), np.stack, lambda array: array)
    return found


def gap(found: Model, wanted: Model, base: Model) -> float:
    """Relative error of an update θ* - θ₀ over all leaves."""
    error = sum(float(np.square(found[name].astype(np.float64) - wanted[name]).sum()) for name in base)
    size = sum(float(np.square(wanted[name].astype(np.float64) - base[name]).sum()) for name in base)
    return float(np.sqrt(error / size))


def merge_part(
    config: Any,
    counts: Sequence[int],
    kernels: Sequence[str],
    rank: float,
    sample: int,
    repeat: int,
    patience: float,
    rates: Rates,
    device: str | None,
    failed: list[str],
) -> list[Row]:
    """A row for every contestant and number of specialists; sentences of those that fail go to ``failed``."""
    everything, parts, rows = make_models(config, max(counts)), parts_of(config), []
    contestants: list[tuple[str, str, float]] = [
        ("r2m_jax", kernel, min(rank, LOW_RANK) if kernel == "randomized" else rank) for kernel in kernels
    ]
    contestants += [("torch", kind, rank) for kind in ("gram", "svd") if device]
    for count in counts:
        models = everything[: count + 1]
        few = [{name: leaf[:sample] if is_stack(name) else leaf for name, leaf in model.items()} for model in models]
        wanted = references(few, sorted({kept for *_, kept in contestants}))
        transfer = statistics.median(timed(partial(copied, models), repeat))
        whole: Model | None = None
        for who, kernel, kept in contestants:
            row: Row = {"contestant": f"{who}, {kernel}", "specialists": count, "rank": kept, "transfer_s": transfer}
            row["floors"] = merge_floors(parts, count, kept, kernel, rates)
            try:
                found = measure(row, few, models, wanted[kept], device, sample, repeat, patience)
            except RuntimeError as error:  # both libraries' for a device without room, which others may have
                failed.append(f"{row['contestant']}, N = {count}: {str(error).splitlines()[0]}")
                continue
            if who == "r2m_jax" and kernel == "gram":
                whole = found
            elif found is not None and whole is not None and kept == rank:
                row["from_gram"] = gap(found, whole, models[0])
            rows.append(row)
            print(
                f"merged: {row['contestant']}, N = {count}: {row['seconds']:.3g} s, error {row['error']:.1e}",
                flush=True,
            )
            del found
            gc.collect()
    return rows


def copied(models: Sequence[Model]) -> Model:
    """What a merge has to move anyway: all models to the device, one back."""
    first: Model = jax.device_get(jax.device_put(models)[0])
    return first


def measure(
    row: Row,
    few: Sequence[Model],
    models: Sequence[Model],
    wanted: Model,
    device: str | None,
    sample: int,
    repeat: int,
    patience: float,
) -> Model | None:
    """Fill a contestant's row; the merge of whole models, or None if it was extrapolated."""
    who, _, kernel = row["contestant"].partition(", ")

    def build(given: Sequence[Model]) -> Callable[[], Model]:
        if who == "torch":
            return in_torch(str(device), kernel, given, row["rank"])
        return in_jax(kernel, given, row["rank"], row)

    small = build(few)
    row["error"] = gap(small(), wanted, few[0])
    row["rounding"] = gap({name: leaf.astype(np.float32) for name, leaf in wanted.items()}, wanted, few[0])
    row["sample_s"] = timed(small, 1)[0]
    expected = row["sample_s"] * len(models[0]["layers/norm1/bias"]) / sample
    if expected > patience:
        row |= {"seconds": expected, "low": None, "high": None, "extrapolated_from": sample}
        row |= {"compile_s": None, "device_bytes": None}  # they were the sample's
        return None
    results: list[Model] = []
    row |= spread(timed(build(models), repeat, results)) | {"extrapolated_from": None}
    return results[-1]


def merge_floors(parts: Sequence[Unit], count: int, rank: float, kernel: Any, rates: Rates) -> dict[str, float]:
    """Seconds for bytes in and out, for reading the models twice, and for operations as r2m_jax.merging.cost says."""
    needed, size = Operations(), 0.0
    for unit in parts:
        size += 4.0 * unit.layers * unit.size
        ratio = rank if unit.matrix else None
        once = measuring(unit.shape, ratio, count, kernel) + applying(unit.shape, ratio, count, kernel)
        bases = Operations()
        if unit.matrix:
            m, n = unit.shape
            bases = basis_operations(m, n, rank, kernel) * count
            if kernel == "matmul":  # which is counted with the most iterations there can be
                bases += Operations(wide_products=-count * (PURIFICATIONS - ITERATIONS) * 2.0 * min(m, n) ** 3)
        needed = total([needed, (once + bases) * unit.layers])
    return {
        "pcie": (count + 2) * size / rates.pcie,
        "memory": (2 * (count + 1) + 1) * size / rates.memory,
        "operations": (needed.wide_products + 9 * needed.cubes) / rates.float64 + needed.products / rates.float32,
    }
