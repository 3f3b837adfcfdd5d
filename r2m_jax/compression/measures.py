"""What compression saves: numbers, bytes, operations, time and memory."""

from __future__ import annotations

import resource
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r2m_jax.checkpoints.compressed import PARTS, Record, open_stored, read_record, unpack
from r2m_jax.checkpoints.tensors import LazyTensor, safetensors_files
from r2m_jax.errors import InputError
from r2m_jax.parallel.cores import available_cores

_CHUNK = 16 * 2**20
_MASKS = ("scale", "kept")
"""Parts that are no parameters themselves."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Of batch normalisation, in torch's names: measured, not trained."""


@dataclass(frozen=True)
class Size:
    """Of a model as it is stored.

    Attributes:
        parameters: numbers stored, or that places stand for; scales and running statistics are not.
        nonzero: how many of them are not zero.
        bytes: of the weight files.
        zipped: of the same, compressed by DEFLATE (level 6, chunks of 16 MiB).
    """

    parameters: int
    nonzero: int
    bytes: int
    zipped: int


@dataclass(frozen=True)
class Latency:
    """Of a compiled function at one batch size.

    Attributes:
        batch: images at a time.
        median, low, high: seconds, with the quartiles.
        runs: that were timed.
    """

    batch: int
    median: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class Memory:
    """In bytes.

    Attributes:
        arguments, temporaries, results: of the compiled program, as XLA plans them.
        resident: most the process ever held, Python, JAX and all.
    """

    arguments: int
    temporaries: int
    results: int
    resident: int


def size(directory: Path) -> Size:
    """Of a model directory.

    Raises:
        InputError: files are missing or damaged.
    """
    record, stored, files = read_record(directory), open_stored(directory), safetensors_files(directory)
    parameters = nonzero = 0
    for name, tensor in stored.items():
        ending = name.rpartition(".")[2]
        if ending in _STATISTICS or (ending in _MASKS and _owner(name, record) is not None):
            continue
        count, filled = _count(name, tensor, record)
        parameters, nonzero = parameters + count, nonzero + filled
    # Of a tensor that equals its base nothing is stored, but it is a parameter of the model.
    for name, entry in record.tensors.items():
        if entry["as"] == "difference" and f"{name}.difference" not in record.tensors:
            parameters += int(np.prod(entry["shape"]))
    return Size(parameters, nonzero, sum(file.stat().st_size for file in files), sum(map(zipped_bytes, files)))


def _owner(name: str, record: Record) -> Mapping[str, Any] | None:
    """The entry a stored tensor is a part of."""
    whole, _, part = name.rpartition(".")
    entry = record.tensors.get(whole)
    return entry if entry is not None and part in PARTS[entry["as"]] else None


def _count(name: str, tensor: LazyTensor, record: Record) -> tuple[int, int]:
    entry = _owner(name, record)
    values = tensor.read()
    if entry is None or entry["as"] in ("factors", "difference"):
        return values.size, int(np.count_nonzero(values))
    if entry["as"] == "sparse":
        return int(np.prod(entry["shape"])), int(np.count_nonzero(values))
    if entry["bits"] < 8:
        values = unpack(values, entry["bits"], int(np.prod(entry["shape"][1:])))
    inside = _owner(name.rpartition(".")[0], record)
    total = int(np.prod(inside["shape"])) if inside is not None and inside["as"] == "sparse" else values.size
    return total, int(np.count_nonzero(values))


def zipped_bytes(file: Path) -> int:
    """How many bytes a file takes zipped, chunk by chunk on all cores."""

    def chunk(at: int) -> int:
        with Path(file).open("rb") as source:
            source.seek(at)
            return len(zlib.compress(source.read(_CHUNK), 6))

    with ThreadPoolExecutor(available_cores()) as pool:
        return sum(pool.map(chunk, range(0, Path(file).stat().st_size, _CHUNK)))


def rates(before: Size, after: Size) -> dict[str, float]:
    """How many times less there is of everything, before over after.

    Raises:
        InputError: nothing is left.
    """
    if not after.nonzero:
        raise InputError("the compressed model holds nothing but zeros; compress it less.")
    return {
        "parameters": before.parameters / after.parameters,
        "nonzero": before.nonzero / after.nonzero,
        "bytes": before.bytes / after.bytes,
        "zipped": before.zipped / after.zipped,
    }


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of a function as XLA counts them, of arguments or their ``ShapeDtypeStruct``.

    A loop's body counts once, so layers are to be unrolled.

    Raises:
        InputError: this device's compiler counts none.
    """
    found = jax.jit(function).lower(*arguments).cost_analysis()
    if found is None:
        raise InputError(f"JAX counts no operations for {jax.default_backend()}; measure on another device.")
    return float(found["flops"])


def latencies(
    functions: Mapping[str, Callable[[Any], Any]],
    inputs: Callable[[int], Any],
    batches: Iterable[int],
    *,
    runs: int = 50,
    warm_up: int = 5,
) -> dict[str, list[Latency]]:
    """Seconds a call takes, by batch size, until its result is ready.

    Functions take turns, so that whatever else the machine does meets them all.

    Args:
        functions: by name, of one argument; compiled by the first calls.
        inputs: makes the argument for a batch size.
        batches: sizes.
        runs: timed calls of each, whose median counts.
        warm_up: calls before those.

    Raises:
        InputError: fewer than one run is asked for.
    """
    if runs < 1 or warm_up < 1:
        raise InputError(f"runs={runs} and warm_up={warm_up} must be 1 or more.")
    found: dict[str, list[Latency]] = {name: [] for name in functions}
    for batch in batches:
        given = inputs(batch)
        taken: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(warm_up + runs):
            for name, function in functions.items():
                taken[name].append(_seconds(function, given))
        for name, seconds in taken.items():
            low, median, high = np.quantile(seconds[warm_up:], [0.25, 0.5, 0.75])
            found[name].append(Latency(batch, float(median), float(low), float(high), runs))
    return found


def latency(
    function: Callable[[Any], Any],
    inputs: Callable[[int], Any],
    batches: Iterable[int],
    *,
    runs: int = 50,
    warm_up: int = 5,
) -> list[Latency]:
    """The same of one function (:func:`latencies`)."""
    return latencies({"": function}, inputs, batches, runs=runs, warm_up=warm_up)[""]


def _seconds(function: Callable[[Any], Any], given: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(given))
    return time.perf_counter() - start


def memory(function: Callable[..., Any], *arguments: Any) -> Memory:
    """What a function needs of memory, once compiled for the device at hand.

    Raises:
        InputError: this device's compiler does not tell.
    """
    planned = jax.jit(function).lower(*arguments).compile().memory_analysis()
    if planned is None:
        raise InputError(f"JAX plans no memory for {jax.default_backend()}; measure on another device.")
    unit = 1 if sys.platform == "darwin" else 1024
    return Memory(
        planned.argument_size_in_bytes,
        planned.temp_size_in_bytes,
        planned.output_size_in_bytes,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    )


def table(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """Lines of four columns, for people."""
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
