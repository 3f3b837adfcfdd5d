"""``r2m info``: what a model directory holds."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from r2m_jax.checkpoints import load_detector
from r2m_jax.checkpoints.directory import dtype_summary
from r2m_jax.models import Detector, preset_name
from r2m_jax.trees import count_parameters, flatten, same_structure


def run(model: Path, *, base: Path | None, as_json: bool) -> None:
    """Print the facts as aligned lines, or as JSON."""
    facts = describe(model, base)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list):
            value = "; ".join(map(str, value)) or "none"
        console.print(f"{name:<14} {escape(str(value))}")


def describe(model: Path, base: Path | None = None) -> dict[str, Any]:
    """Facts about a model directory as JSON values.

    Raises:
        InputError: the model or the base cannot be loaded, or they differ in structure.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing head is one of the facts below
        detector = load_detector(model, dtype=None)
    config, made = detector.config, detector.provenance
    head = np.asarray(detector.params["head"]["kernel"], np.float32)
    facts: dict[str, Any] = {
        "model": str(model),
        "architecture": preset_name(config) or "custom CLIP ViT",
        "sizes": {
            "width": config.hidden_size,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "mlp": config.intermediate_size,
            "image": config.image_size,
            "patch": config.patch_size,
        },
        "activation": config.hidden_act,
        "parameters": f"{count_parameters(detector.params):,} ({dtype_summary(detector.params)})",
        "head": f"norm {np.linalg.norm(head):.4g}" if head.any() else "zero: p(fake) = 0.5 of every image",
        "normalisation": {
            "mean": [round(float(v), 4) for v in detector.processor.image_mean],
            "std": [round(float(v), 4) for v in detector.processor.image_std],
        },
        "kind": made.get("kind", "no r2m.json: provenance unknown"),
        "created": made.get("created", "unknown"),
        "inputs": [f"{item['path']} sha256 {item['sha256'][:12]}" for item in made.get("inputs", [])],
        "seed": made.get("seed"),
        "versions": made.get("versions", {}),
    }
    return facts | ({"task vector": task_vector_norms(detector, base)} if base else {})


def task_vector_norms(detector: Detector, base: Path) -> dict[str, str]:
    """Norm of θ - θ₀ over the backbone, absolute and relative to θ₀, and the groups that moved most."""
    origin = load_detector(base).params["backbone"]
    same_structure(origin, detector.params["backbone"], "the model, compared with the base,")
    start, end = flatten(origin), flatten(detector.params["backbone"])
    moved = {path: float(np.linalg.norm(_float64(end[path]) - _float64(start[path]))) for path in start}
    total = float(np.linalg.norm(list(moved.values())))
    size = float(np.linalg.norm([np.linalg.norm(_float64(leaf)) for leaf in start.values()]))
    largest = sorted(moved, key=lambda path: -moved[path])[:3]
    return {"norm": f"{total:.4g}", "relative": f"{total / size:.3g}"} | {
        path: f"{moved[path]:.4g}" for path in largest
    }


def _float64(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.float64)
