"""``r2m info``: what a model directory holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from r2m_jax.checkpoints import load_detector
from r2m_jax.checkpoints.directory import dtype_summary
from r2m_jax.jobs import kinds
from r2m_jax.jobs.kinds import Ready
from r2m_jax.models import Params
from r2m_jax.models.convolutional import trained_parameters
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
    ready = kinds.describe(model, dtype=None).load()
    made = ready.provenance
    facts: dict[str, Any] = {
        "model": str(model),
        **ready.facts,
        "parameters": f"{count_parameters(trained_parameters(ready.params)):,} ({dtype_summary(ready.params)})",
        "head": _head(ready),
        "normalisation": {
            "mean": [round(float(v), 4) for v in ready.processor.image_mean],
            "std": [round(float(v), 4) for v in ready.processor.image_std],
        },
        "kind": made.get("kind", "no r2m.json: provenance unknown"),
        **({"compressed": _compressed(made["compression"])} if made.get("compression") else {}),
        "created": made.get("created", "unknown"),
        "inputs": [f"{item['path']} sha256 {item['sha256'][:12]}" for item in made.get("inputs", [])],
        "seed": made.get("seed"),
        "versions": made.get("versions", {}),
    }
    return facts | ({"task vector": task_vector_norms(ready.params, base)} if base else {})


def _compressed(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """What `r2m compress` did, one after the other."""
    return [
        f"{step['recipe']['method']}, {step['report']['times_less']['bytes']:.2f} times fewer bytes" for step in steps
    ]


def _head(ready: Ready) -> str:
    if not ready.trained:
        return "zero: p(fake) = 0.5 of every image"
    kernel = ready.params.get("head", {}).get("kernel")
    return "trained" if kernel is None else f"norm {np.linalg.norm(_float64(kernel)):.4g}"


def task_vector_norms(params: Params, base: Path) -> dict[str, str]:
    """Norm of θ - θ₀ over the backbone, absolute and relative to θ₀, and the groups that moved most."""
    origin = load_detector(base).params["backbone"]
    same_structure(origin, params["backbone"], "the model, compared with the base,")
    start, end = flatten(origin), flatten(params["backbone"])
    moved = {path: float(np.linalg.norm(_float64(end[path]) - _float64(start[path]))) for path in start}
    total = float(np.linalg.norm(list(moved.values())))
    size = float(np.linalg.norm([np.linalg.norm(_float64(leaf)) for leaf in start.values()]))
    largest = sorted(moved, key=lambda path: -moved[path])[:3]
    return {"norm": f"{total:.4g}", "relative": f"{total / size:.3g}"} | {
        path: f"{moved[path]:.4g}" for path in largest
    }


def _float64(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.float64)
