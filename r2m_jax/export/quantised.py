"""ONNX graphs with int8 weights and activations, by ``onnxruntime.quantization``, for CPUs of phones and small boards.

Dynamic: matrix products quantise their input as it comes, as the linear layers of
https://arxiv.org/abs/2504.21066 do. Static: all tensors have scales from calibration images, convolutions too. Weights
use 7 of their 8 bits (``reduce_range``): on x86 without VNNI products of full bytes saturate in 16 bits
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from r2m_jax.errors import InputError
from r2m_jax.export.onnx import open_onnx, quiet
from r2m_jax.export.program import Run

Int8 = Literal["dynamic", "static"]
TOLERANCE = 0.1
"""How far a probability of an int8 graph may be from the float32 model's."""
_PRODUCTS = ("MatMul", "Gemm")
_MISSING = "int8 graphs are made by onnxruntime and onnx: pip install 'r2m-jax[export]'."


def refuse_int8(how: str, format: str, dtype: str, normalised: bool) -> None:
    """Refuse settings of an export that int8 graphs do not go with.

    Raises:
        InputError: ``how`` is unknown, or another setting does not fit.
    """
    if how not in get_args(Int8):
        raise InputError(f"--int8 {how} is unknown; choose one of {', '.join(get_args(Int8))}.")
    if format != "onnx":
        raise InputError(f"--int8 is for --format onnx; {format} keeps floats (`r2m compress` stores a model as int8).")
    if dtype != "float32":
        raise InputError(f"--int8 makes integers of float32 weights; leave out --dtype {dtype}.")
    if normalised:
        raise InputError("--int8 graphs take uint8 images and normalise them inside; leave out --no-normalise.")


class Times(NamedTuple):
    """Median seconds for one batch, on ONNX Runtime's CPU provider."""

    float32: float
    int8: float
    batch: int


def quantise_onnx(artifact: Path, how: str, arrays: Mapping[str, np.ndarray], *, batch: int | None = None) -> Times:
    """Replace a float32 graph by an int8 one with the same inputs, outputs and metadata.

    Args:
        artifact: of :func:`r2m_jax.export.write_onnx`.
        how: ``dynamic`` or ``static`` (:func:`refuse_int8` checks it).
        arrays: what the graph takes, by name, ``[n, …]``: to calibrate a static graph, and to time both.
        batch: images the graph takes at a time; None for any number.

    Returns:
        How long the graph takes before and after.

    Raises:
        InputError: ONNX Runtime is not installed, or there are fewer images than a batch takes.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        raise InputError(_MISSING) from None
    size = batch or 1
    count = len(next(iter(arrays.values())))
    if count < size:
        raise InputError(f"{count} images are fewer than the {size} the graph takes at a time; --check more of them.")
    first = [array[:size] for array in arrays.values()]
    before = _seconds(open_onnx(artifact), first)
    metadata = {entry.key: entry.value for entry in onnx.load(artifact).metadata_props}
    prepared, made = (artifact.with_name(f"{artifact.name}.{step}") for step in ("prepared", "int8"))
    try:
        with quiet():
            # ONNX Runtime optimises a graph as it loads it; quantisation needs but the shapes.
            quant_pre_process(artifact, prepared, skip_optimization=True, skip_symbolic_shape=True)
            settings = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
            if how == "dynamic":
                quantize_dynamic(prepared, made, op_types_to_quantize=list(_PRODUCTS), **settings)
            else:
                quantize_static(
                    prepared, made, _Images(arrays, size), op_types_to_quantize=[*_PRODUCTS, "Conv"],
                    quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8, **settings,
                )  # fmt: skip
        graph = onnx.load(made)
        onnx.helper.set_model_props(graph, metadata)
        onnx.save(graph, artifact)
    finally:
        prepared.unlink(missing_ok=True)
        made.unlink(missing_ok=True)
    return Times(before, _seconds(open_onnx(artifact), first), size)


def _seconds(run: Run, inputs: list[np.ndarray], *, runs: int = 20, warm_up: int = 3) -> float:
    taken = []
    for _ in range(warm_up + runs):
        start = time.perf_counter()
        run(*inputs)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[warm_up:])


class _Images:
    """What ``onnxruntime.quantization.CalibrationDataReader`` is: whole batches by input name, then None."""

    def __init__(self, arrays: Mapping[str, np.ndarray], batch: int):
        count = len(next(iter(arrays.values()))) // batch * batch
        self._left = iter(
            [{name: array[at : at + batch] for name, array in arrays.items()} for at in range(0, count, batch)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch."""
        return next(self._left, None)
