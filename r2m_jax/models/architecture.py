"""Which CLIP vision architectures the tower can build: named presets and the checks on a config.

The config itself is transformers' ``CLIPVisionConfig``, used as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from r2m_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

ACTIVATIONS = ("quick_gelu", "gelu")
"""``hidden_act`` values with an implementation; OpenAI's weights use the first, most others the second."""

_L14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 512,
}

# Table 20 of https://arxiv.org/abs/2103.00020 (CLIP); the MLP is four times the width throughout.
PRESETS: dict[str, dict[str, int]] = {
    "ViT-B/32": {**_BASE, "patch_size": 32, "image_size": 224},
    "ViT-B/16": {**_BASE, "patch_size": 16, "image_size": 224},
    "ViT-L/14": {**_L14, "image_size": 224},
    "ViT-L/14-336": {**_L14, "image_size": 336},
}


def vision_config(name: str) -> CLIPVisionConfig:
    """The config of a published CLIP vision tower.

    Args:
        name: a key of :data:`PRESETS`, e.g. ``"ViT-L/14"``.

    Raises:
        InputError: the name is not a preset.
    """
    if name not in PRESETS:
        raise InputError(f"no CLIP vision tower is called {name!r}; choose one of {', '.join(PRESETS)}.")
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**PRESETS[name])


def check_config(config: Any, where: str = "config.json") -> None:
    """Refuse a config that no tower can be built from.

    Args:
        config: anything with the attributes of ``CLIPVisionConfig``.
        where: what to name in the message.

    Raises:
        InputError: an unsupported activation, a non-square image or patch, or sizes that do not divide.
    """
    if config.hidden_act not in ACTIVATIONS:
        raise InputError(
            f"{where}: the activation {config.hidden_act!r} is not supported; "
            f"hidden_act must be one of {', '.join(ACTIVATIONS)}."
        )
    for field in ("image_size", "patch_size"):
        if not isinstance(getattr(config, field), int):
            raise InputError(
                f"{where}: {field} is {getattr(config, field)!r}; only square sizes, one integer, are supported."
            )
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"{where}: hidden_size {config.hidden_size} is not a multiple of "
            f"num_attention_heads {config.num_attention_heads}."
        )
    if config.image_size % config.patch_size:
        raise InputError(
            f"{where}: image_size {config.image_size} is not a multiple of patch_size {config.patch_size}."
        )


def preset_name(config: Any) -> str | None:
    """The published name of this architecture, or None when it is none of :data:`PRESETS`."""
    for name, sizes in PRESETS.items():
        if all(getattr(config, key) == value for key, value in sizes.items() if key != "projection_dim"):
            return name
    return None
