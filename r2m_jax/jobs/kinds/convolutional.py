"""Convolutional networks, described by a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from r2m_jax.checkpoints import load_convolutional
from r2m_jax.checkpoints.convolutional import is_convolutional, read_plan
from r2m_jax.checkpoints.directory import open_weights
from r2m_jax.checkpoints.preprocessing import read_processor
from r2m_jax.errors import InputError
from r2m_jax.jobs.kinds.described import Described, Ready, held_bytes, says_something, square_input, stored_bytes
from r2m_jax.models import Params, TowerOptions, apply_head
from r2m_jax.models.convolutional import ConvolutionalDetector, Plan, apply_backbone, plan_name

NAME = "convolutional"


def holds(source: Path | Any) -> bool:
    """Whether a source is of this kind."""
    return is_convolutional(source) if isinstance(source, Path) else isinstance(source, ConvolutionalDetector)


def describe(
    source: Path | ConvolutionalDetector, options: TowerOptions | None, dtype: str | None, name: str
) -> Described:
    """See :func:`r2m_jax.jobs.kinds.describe`."""
    if isinstance(source, ConvolutionalDetector):
        plan, processor, size = source.config, source.processor, held_bytes(source.params)
        compute = options.dtype if options else source.dtype
    else:
        plan, processor, size = read_plan(source), read_processor(source), stored_bytes(open_weights(source))
        compute = options.dtype if options else jnp.float32
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)

    def load() -> Ready:
        detector = (
            source
            if isinstance(source, ConvolutionalDetector)
            else load_convolutional(source, dtype=dtype, compute=compute)
        )
        network = apply_backbone(plan, compute)

        def features(params: Params, images: Array) -> Array:
            return network(params, images).features

        def head(params: Params, read: Array) -> Array:
            return apply_head(params["head"], read)

        return Ready(
            detector,
            detector.params,
            detector.processor,
            detector.provenance,
            width=plan.width,
            trained=says_something(detector.params["head"]),
            features=features,
            head=head,
            facts=_facts(plan),
        )

    alike = (NAME, repr(plan), mean, std, str(jnp.dtype(compute)))
    return Described(NAME, _input(plan, processor, name), 1, size, True, alike, load)


def _input(plan: Plan, processor: Any, name: str) -> int:
    size = square_input(processor, name)
    if size != plan.image_size:
        raise InputError(
            f"{name} prepares images of {size} px, but its linear layers were made for {plan.image_size} px; "
            "preprocessor_config.json and config.json are of different models."
        )
    return size


def _facts(plan: Plan) -> dict[str, Any]:
    return {
        "architecture": plan_name(plan) or "custom convolutional network",
        "sizes": {"blocks": len(plan.blocks), "features": plan.width, "image": plan.image_size},
        "adapter": f"after block {plan.adapter.after}{', residual' * plan.adapter.residual}"
        if plan.adapter
        else "none",
    }
