"""The rates of this machine that the cost of a merge is worked out with: a few seconds of small programs.

Each is measured with all devices busy at once, as they are in a merge: cores share caches and the way to memory, and a
rate of one alone would promise too much.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from scipy.optimize import nnls

from r2m_jax.atomic import atomic_text
from r2m_jax.checkpoints import provenance
from r2m_jax.errors import InputError
from r2m_jax.merging.cost import applying, measuring
from r2m_jax.merging.engine import Coefficients, apply, measure
from r2m_jax.merging.estimate import Machine
from r2m_jax.merging.spectral import one_by_one, wide_arithmetic
from r2m_jax.parallel import available_cores, data_mesh, one_lapack_thread

PRODUCT = 768
"""Side of the matrices that products are measured on."""

EIGENPROBLEMS = (256, 512, 1024)

_PRODUCT_OPERATIONS = 2.0 * PRODUCT**3
_VALUES = 2**20
"""In one layer of what elementwise work is measured on: more than a cache holds."""

_LAYERS = 2
"""Of them, on every device."""

_SPECIALISTS = 3
_ELEMENTWISE_BYTES = _LAYERS * (
    measuring((_VALUES,), None, _SPECIALISTS).moved + applying((_VALUES,), None, _SPECIALISTS).moved
)
_FILE = 64 * 2**20

Clock = Callable[[], float]


def calibrate(
    *, eigenproblems: tuple[int, ...] = EIGENPROBLEMS, repeat: int = 3, processor_time: bool = False
) -> Machine:
    """Measure this process's machine, with medians of ``repeat``.

    Args:
        eigenproblems: sizes that the time of one is fitted to, a·s³ + b·s² with relative errors counting alike.
        repeat: how often each is timed.
        processor_time: take this process's time on the cores, not the time that passes: what an idle machine would
            need, measured on a busy one. Of no use where devices are not cores.
    """
    mesh = data_mesh(jax.local_devices())
    first = jax.local_devices()[0]
    on_cores = first.platform == "cpu"
    one_core = time.process_time if processor_time and on_cores else time.perf_counter
    time_of = partial(_timed, repeat=repeat, clock=one_core)
    share = mesh.size if one_core is time.process_time else 1  # all devices take part alike
    with one_lapack_thread(), wide_arithmetic():
        single, double = (share * _PRODUCT_OPERATIONS / time_of(_products(mesh, t)) for t in (jnp.float32, jnp.float64))
        seconds = [time_of(_eigenproblem(mesh, size)) / share for size in eigenproblems]
        cubes, squares = _fit(eigenproblems, seconds)
        moved = share * _ELEMENTWISE_BYTES / sum(map(time_of, _elementwise(mesh)))
        compiled, truncating = (_compilation(rank, mesh, one_core) for rank in (None, 0.7))
    read, written, hashed = _files(repeat, one_core)
    return Machine(
        name=f"{mesh.size} × {first.device_kind} ({platform.machine()})",
        devices=mesh.size,
        cores=available_cores(),
        devices_are_cores=on_cores,
        products=single,
        wide_products=double,
        cubes=cubes,
        squares=squares,
        moved=moved,
        read=read,
        written=written,
        hashed=hashed,
        compiled=compiled,
        compiled_truncating=truncating,
        memory=_host_memory() / mesh.size if on_cores else float((first.memory_stats() or {})["bytes_limit"]),
    )


def eigenproblem_seconds(size: int, *, processor_time: bool = False) -> float:
    """Of a device, for a symmetric eigenproblem in float64, with all devices busy: once, after a warm-up."""
    mesh = data_mesh(jax.local_devices())
    on_cores = processor_time and jax.local_devices()[0].platform == "cpu"
    clock, share = (time.process_time, mesh.size) if on_cores else (time.perf_counter, 1)
    with one_lapack_thread(), wide_arithmetic():
        return _timed(_eigenproblem(mesh, size), repeat=1, clock=clock) / share


def write_machine(path: Path, machine: Machine) -> None:
    """Keep rates in a JSON file, with the versions they were measured with.

    Raises:
        InputError: the file cannot be written.
    """
    content = {"machine": dataclasses.asdict(machine), "versions": provenance.versions()}
    try:
        atomic_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another place.") from None


def read_machine(path: Path) -> Machine:
    """The rates that :func:`write_machine` kept.

    Raises:
        InputError: the file cannot be read, or lacks a rate or has another or one that is not above zero.
    """
    found = provenance.read_json(path)
    rates = found.get("machine") if isinstance(found, dict) else None
    fields = {field.name for field in dataclasses.fields(Machine)}
    if not isinstance(rates, dict) or rates.keys() != fields:
        raise InputError(f"{path} does not hold the rates of a machine; remove it, and --machine makes it anew.")
    for name, value in rates.items():
        number = isinstance(value, int | float) and math.isfinite(value) and (value > 0 or name == "devices_are_cores")
        if name != "name" and not (number or (name in ("cubes", "squares") and value == 0)):
            raise InputError(f"{path}: {name} is {value!r}, not a number above zero; remove the file and measure anew.")
    return Machine(**rates)


def _timed(call: Callable[[], Any], *, repeat: int, clock: Clock) -> float:
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeat):
        start = clock()
        jax.block_until_ready(call())
        seconds.append(clock() - start)
    return statistics.median(seconds)


def _placed(mesh: Mesh, array: np.ndarray) -> Array:
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _products(mesh: Mesh, dtype: Any) -> Callable[[], Any]:
    def square(matrix: Array) -> Array:
        return jnp.matmul(matrix, matrix, precision="highest")

    matrices = _placed(mesh, _noise(mesh.size, PRODUCT, PRODUCT).astype(dtype))
    run = jax.jit(lambda stack: one_by_one(square, stack, mesh=mesh))
    return partial(run, matrices)


def _eigenproblem(mesh: Mesh, size: int) -> Callable[[], Any]:
    def vectors(matrix: Array) -> Array:
        return jnp.linalg.eigh(matrix, symmetrize_input=False)[1]

    noise = _noise(mesh.size, size, size).astype(np.float64)
    matrices = _placed(mesh, noise @ noise.mT)
    run = jax.jit(lambda stack: one_by_one(vectors, stack, mesh=mesh))
    return partial(run, matrices)


def _fit(sizes: tuple[int, ...], seconds: list[float]) -> tuple[float, float]:
    design = np.array([[float(size) ** 3, float(size) ** 2] for size in sizes]) / np.array(seconds)[:, None]
    scale = np.linalg.norm(design, axis=0)
    cubes, squares = nnls(design / scale, np.ones(len(sizes)))[0] / scale
    return float(cubes), float(squares)


def _merge(rank: float | None, mesh: Mesh, layers: int, *shape: int) -> tuple[Any, Any, Array, Array]:
    """The programs of both passes, θ₀ and specialists."""
    weights = jnp.full(_SPECIALISTS, 1 / _SPECIALISTS)
    coefficients = Coefficients(jnp.full((layers, _SPECIALISTS), 0.5), jnp.full((layers, _SPECIALISTS), 0.5))

    def first(theta0: Array, thetas: Array) -> Any:
        return measure(weights, rank, theta0, thetas, mesh=mesh)

    def second(theta0: Array, thetas: Array, bases: Array | None) -> Array:
        return apply(weights, rank, theta0, thetas, bases, coefficients, mesh=mesh).astype(jnp.float32)

    theta0, thetas = _noise(layers, *shape), _noise(layers, _SPECIALISTS, *shape)
    return jax.jit(first), jax.jit(second), _placed(mesh, theta0), _placed(mesh, thetas)


def _elementwise(mesh: Mesh) -> tuple[Callable[[], Any], Callable[[], Any]]:
    first, second, theta0, thetas = _merge(None, mesh, _LAYERS * mesh.size, _VALUES)
    # As a merge does, the result comes to the host.
    return partial(first, theta0, thetas), lambda: np.asarray(second(theta0, thetas, None))


def _compilation(rank: float | None, mesh: Mesh, clock: Clock) -> float:
    """Seconds per program, the mean of those of both passes; what they would work on is small."""
    first, second, theta0, thetas = _merge(rank, mesh, mesh.size, 64, 128)
    start = clock()
    lowered = first.lower(theta0, thetas)
    lowered.compile()
    second.lower(theta0, thetas, lowered.out_info[1]).compile()
    return (clock() - start) / 2


def _files(repeat: int, clock: Clock) -> tuple[float, float, float]:
    """Bytes per second read, written and hashed, of a file that is in the page cache."""
    room = bytearray(_FILE)
    seconds: list[list[float]] = [[], [], []]
    with tempfile.TemporaryDirectory(prefix="r2m-calibration-") as folder:
        path = Path(folder, "bytes")

        def write() -> None:
            path.write_bytes(room)

        def read() -> None:
            with path.open("rb", buffering=0) as file:
                file.readinto(room)

        def hash_() -> None:
            hashlib.sha256(room)

        for _ in range(repeat):
            path.unlink(missing_ok=True)
            for taken, call in zip(seconds, (write, read, hash_), strict=True):
                start = clock()
                call()
                taken.append(clock() - start)
    written, read_, hashed = (_FILE / statistics.median(each) for each in seconds)
    return read_, written, hashed


def _host_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
