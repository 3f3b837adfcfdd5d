"""ONNX graphs by jax2onnx (https://github.com/enpasos/jax2onnx), run back by ONNX Runtime.

Arithmetic is float32 throughout: ONNX Runtime's CPU kernels know few 16-bit types. A 16-bit dtype is that of the
parameters in the file, widened by a Cast each, which the runtime folds away as it loads.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r2m_jax.errors import InputError
from r2m_jax.export.program import Run

OPSET = 20
"""Of September 2023, the oldest with everything used: read by ONNX Runtime 1.17 and later."""

_MISSING = "ONNX is written by jax2onnx and checked by onnxruntime: pip install 'r2m-jax[export]'."
_SMALL = 64
"""Tensors of fewer values stay float32: a Cast each would cost more than it saves."""


def write_onnx(
    path: Path,
    function: Callable[..., Any],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    *,
    dtype: str = "float32",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write ``function`` of ``inputs``, in their order, as a graph with outputs ``probability`` and ``logit``.

    Args:
        path: the file to make.
        function: of :func:`r2m_jax.export.program.scoring`, on an unrolled detector computing in float32.
        inputs: of :func:`r2m_jax.export.program.input_specs`; their names are the graph's.
        dtype: of the parameters in the file; values it holds exactly are stored in it.
        metadata: JSON values, kept in the graph's metadata under ``r2m``.

    Raises:
        InputError: jax2onnx or ONNX are not installed, or the function has an operation that ONNX lacks.
    """
    try:
        with quiet():
            import onnx
            from jax2onnx import to_onnx
    except ImportError:
        raise InputError(_MISSING) from None
    try:
        with quiet():
            model = to_onnx(
                function,
                list(inputs.values()),
                model_name="r2m_jax",
                opset=OPSET,
                input_names=list(inputs),
                output_names=["probability", "logit"],
            )
    except NotImplementedError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"ONNX has no operation for a part of this model ({reason}); choose stablehlo.") from None
    if dtype != "float32":
        _store_in(model, np.dtype(dtype))
    onnx.helper.set_model_props(model, {"r2m": json.dumps(metadata or {})})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def open_onnx(path: Path) -> Run:
    """Load a graph into ONNX Runtime, on the CPU.

    Raises:
        InputError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise InputError(_MISSING) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    names = [taken.name for taken in session.get_inputs()]

    def run(*inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probability, logit = session.run(["probability", "logit"], dict(zip(names, inputs, strict=True)))
        return probability, logit

    return run


def _store_in(model: Any, dtype: np.dtype) -> None:
    """Narrow the float32 tensors of a graph that lose nothing by it, and widen each where it is used."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        narrow = values.astype(dtype)
        if values.size < _SMALL or not np.array_equal(narrow.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(narrow, f"{name}_stored"))
        casts.append(helper.make_node("Cast", [f"{name}_stored"], [name], name=f"{name}_cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the logs and warnings of exporters, which tell a user nothing: the check judges the result.

    jax2onnx logs, with tracebacks, which of its plugins for other libraries do not fit this JAX, and uses names of Flax
    that are to go; ONNX Runtime's quantiser advises every graph to be optimised first.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
