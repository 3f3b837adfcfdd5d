"""Detectors as artifacts that run without this package: StableHLO and ONNX programs, and the check they must pass."""

from r2m_jax.export.check import Difference, check_images, compare, rows
from r2m_jax.export.onnx import open_onnx, write_onnx
from r2m_jax.export.program import Run, input_specs, scoring
from r2m_jax.export.stablehlo import PLATFORMS, open_stablehlo, write_stablehlo

__all__ = [
    "PLATFORMS",
    "Difference",
    "Run",
    "check_images",
    "compare",
    "input_specs",
    "open_onnx",
    "open_stablehlo",
    "rows",
    "scoring",
    "write_onnx",
    "write_stablehlo",
]
