"""Detectors that read one image: a ViT tower and a linear head."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from jaxtyping import Array

from r2m_jax.checkpoints import load_detector, read_config
from r2m_jax.checkpoints.directory import open_detector_weights
from r2m_jax.checkpoints.preprocessing import read_processor
from r2m_jax.jobs.kinds.described import Described, Ready, held_bytes, says_something, square_input, stored_bytes
from r2m_jax.models import Detector, Params, TowerOptions, apply_head, apply_tower, family_of, preset_name
from r2m_jax.models.architecture import attention_heads

NAME = "plain"


def holds(source: Path | Detector) -> bool:
    """Whether a source is of this kind: any directory that no other kind claims."""
    return isinstance(source, Path | Detector)


def describe(source: Path | Detector, options: TowerOptions | None, dtype: str | None, name: str) -> Described:
    """See :func:`r2m_jax.jobs.kinds.describe`."""
    if isinstance(source, Detector):
        config, processor, how, headed = source.config, source.processor, options or source.options, True
        size = held_bytes(source.params)
    else:
        config, processor, how = read_config(source), read_processor(source), options or TowerOptions()
        tensors = open_detector_weights(source)
        headed, size = "head.weight" in tensors, stored_bytes(tensors)
    alike = (NAME, config.to_json_string(), tuple(processor.image_mean), tuple(processor.image_std), str(how))

    def load() -> Ready:
        if isinstance(source, Detector):
            return _ready(source, how)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*has no head", category=UserWarning)  # `trained` says it
            return _ready(load_detector(source, dtype=dtype, options=how), how)

    return Described(NAME, square_input(processor, name), config.patch_size, size, headed, alike, load)


def _ready(detector: Detector, options: TowerOptions) -> Ready:
    tower = apply_tower(detector.config, options)

    def features(params: Params, images: Array) -> Array:
        return tower(params["backbone"], images).pooled

    def head(params: Params, read: Array) -> Array:
        return apply_head(params["head"], read)

    return Ready(
        detector,
        detector.params,
        detector.processor,
        detector.provenance,
        width=detector.config.hidden_size,
        trained=says_something(detector.params["head"]),
        features=features,
        head=head,
        facts=tower_facts(detector.config),
    )


def tower_facts(config: Any) -> dict[str, Any]:
    """What is to be told of a tower."""
    return {
        "architecture": preset_name(config) or f"custom {family_of(config.model_type).name}",
        "sizes": {
            "width": config.hidden_size,
            "layers": config.num_hidden_layers,
            "heads": attention_heads(config),
            "mlp": config.intermediate_size,
            "image": config.image_size,
            "patch": config.patch_size,
        },
        "activation": config.hidden_act,
    }
