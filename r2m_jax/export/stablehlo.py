"""StableHLO programs that ``jax.export`` writes and reads, for CPU, CUDA and TPU in one file.

Format and its promises of compatibility: https://docs.jax.dev/en/latest/export/export.html.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from r2m_jax.errors import InputError
from r2m_jax.export.program import Run

PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(path: Path, function: Callable[..., Any], inputs: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Write ``function`` of ``inputs``, in their order, as a program that holds its constants.

    Args:
        path: the file to make.
        function: of :func:`r2m_jax.export.program.scoring`.
        inputs: of :func:`r2m_jax.export.program.input_specs`.

    Raises:
        InputError: flatbuffers, which JAX serialises with, is not installed.
    """
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*inputs.values())
    try:
        content = exported.serialize()
    except ImportError:
        raise InputError("jax.export writes with flatbuffers: pip install 'r2m-jax[export]'.") from None
    path.write_bytes(content)


def open_stablehlo(path: Path) -> Run:
    """Load a program back, compiled for the device at hand."""
    call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)

    def run(*inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probability, logit = call(*inputs)
        return np.asarray(probability), np.asarray(logit)

    return run
