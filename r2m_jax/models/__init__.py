"""Flax models: the vision tower and the detector made of a backbone and a linear head."""

from r2m_jax.models.architecture import (
    ACTIVATIONS,
    CLIP,
    PRESETS,
    VIT,
    Family,
    check_config,
    family_of,
    preset_name,
    vision_config,
)
from r2m_jax.models.clip_vision import ClipVisionTower, TowerOptions, TowerOutput
from r2m_jax.models.detector import Detector, apply_detector, apply_head
from r2m_jax.models.functional import Params, apply_tower, init_backbone, init_head, parameter_shapes
from r2m_jax.models.positions import interpolate_positions

__all__ = [
    "ACTIVATIONS",
    "CLIP",
    "PRESETS",
    "VIT",
    "ClipVisionTower",
    "Detector",
    "Family",
    "Params",
    "TowerOptions",
    "TowerOutput",
    "apply_detector",
    "apply_head",
    "apply_tower",
    "check_config",
    "family_of",
    "init_backbone",
    "init_head",
    "interpolate_positions",
    "parameter_shapes",
    "preset_name",
    "vision_config",
]
