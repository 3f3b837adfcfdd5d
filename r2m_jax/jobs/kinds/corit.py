"""CoRIT detectors, which read an image together with self-blended images of it, and where its foreground is."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Array

from r2m_jax.checkpoints import load_corit, read_config
from r2m_jax.checkpoints.corit import is_corit, read_corit_settings
from r2m_jax.checkpoints.directory import open_detector_weights
from r2m_jax.checkpoints.preprocessing import read_processor
from r2m_jax.jobs.corit import pairs_for, without_landmarks
from r2m_jax.jobs.kinds.described import Described, Ready, held_bytes, says_something, square_input, stored_bytes
from r2m_jax.jobs.kinds.plain import tower_facts
from r2m_jax.models import Params, TowerOptions
from r2m_jax.models.corit import CoritDetector, apply_corit_head, corit_features

NAME = "corit"


def holds(source: Path | Any) -> bool:
    """Whether a source is of this kind."""
    return is_corit(source) if isinstance(source, Path) else isinstance(source, CoritDetector)


def describe(source: Path | CoritDetector, options: TowerOptions | None, dtype: str | None, name: str) -> Described:
    """See :func:`r2m_jax.jobs.kinds.describe`."""
    if isinstance(source, CoritDetector):
        config, processor, settings, how = source.config, source.processor, source.settings, options or source.options
        headed, stored = True, held_bytes(source.params)
    else:
        config, processor, how = read_config(source), read_processor(source), options or TowerOptions()
        settings, tensors = read_corit_settings(source).resolved(config), open_detector_weights(source)
        headed, stored = "head.weight" in tensors, stored_bytes(tensors)
    size = square_input(processor, name)
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)

    def load() -> Ready:
        if isinstance(source, CoritDetector):
            return _ready(source, how)
        return _ready(load_corit(source, dtype=dtype, options=how), how)

    return Described(
        NAME, size, config.patch_size, stored, headed,
        alike=(NAME, config.to_json_string(), mean, std, str(how), settings),
        load=load,
        prepare=pairs_for(settings, size, config.patch_size),
        inputs=("image", "foreground"),
        remark=partial(without_landmarks, settings),
    )  # fmt: skip


def _ready(detector: CoritDetector, options: TowerOptions) -> Ready:
    encode = corit_features(detector.config, detector.settings, options)

    def features(params: Params, streams: Array, foreground: Array) -> Array:
        return encode(params["backbone"], streams, foreground)

    def head(params: Params, read: Array) -> Array:
        return apply_corit_head(params["head"], read)

    return Ready(
        detector,
        detector.params,
        detector.processor,
        detector.provenance,
        width=detector.settings.width(detector.config),
        trained=says_something(detector.params["head"]),
        features=features,
        head=head,
        facts={"method": "CoRIT", **tower_facts(detector.config), "switches": asdict(detector.settings)},
    )
