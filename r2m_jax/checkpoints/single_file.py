"""A detector in one safetensors file: tensors as in ``model.safetensors``, everything else in the header.

The header's metadata has ``format: pt`` (as transformers asks for) and ``r2m``, a JSON object with ``config``,
``preprocessing``, ``classes`` and ``inputs`` (hashes of the model it was made from).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from r2m_jax.checkpoints import preprocessing
from r2m_jax.checkpoints.directory import parse_config
from r2m_jax.checkpoints.names import disassemble
from r2m_jax.errors import InputError

KEY = "r2m"
_PARTS = ("config", "preprocessing")
CLASSES = ("real", "fake")
"""In the order of the head's rows."""


def describe(config: Any, processor: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """What a file must say besides its tensors, as JSON values.

    Args:
        config: of transformers, or a dataclass of its own.
        processor: transformers' ``CLIPImageProcessorPil``.
        inputs: of :func:`r2m_jax.checkpoints.provenance.input_hashes`.
    """
    return {
        "config": config.to_dict() if hasattr(config, "to_dict") else asdict(config),
        "preprocessing": preprocessing.processor_settings(processor),
        "classes": list(CLASSES),
        "inputs": inputs,
    }


def write_single_file(path: Path, params: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Write a detector's parameters, in the dtype they have, and their description."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(tensor.read()) for name, tensor in disassemble(params).items()}
    # By way of bytes: save_file makes files that only their owner may read.
    path.write_bytes(save(tensors, metadata={"format": "pt", KEY: json.dumps(description)}))


def read_description(path: Path) -> tuple[Any, Any] | None:
    """The config and the processor a safetensors file carries; None where it carries none.

    Raises:
        InputError: what it carries is damaged.
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get(KEY)
    if text is None:
        return None
    try:
        description = json.loads(text)
    except ValueError:
        description = None
    config, processing = (description.get(key) if isinstance(description, dict) else None for key in _PARTS)
    if not isinstance(config, dict) or not isinstance(processing, dict):
        raise InputError(f"{path}: the metadata {KEY!r} holds no config and preprocessing; export it again.")
    return parse_config(config, str(path)), preprocessing.parse_processor(processing, str(path))
