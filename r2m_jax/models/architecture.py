"""Which vision transformers the tower can build: families, named presets and the checks on a config.

The config itself is transformers' ``CLIPVisionConfig`` or ``ViTConfig``, used as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r2m_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

ACTIVATIONS = ("quick_gelu", "gelu")
"""``hidden_act`` values with an implementation; OpenAI's weights use the first, most others the second."""

KEPT_HEADS = "kept_attention_heads"
"""Key of a config whose layers lost heads: so many are left, each of ``hidden_size / num_attention_heads`` numbers.

transformers' classes cannot build such a tower; they need as many heads as fill ``hidden_size``.
"""


@dataclass(frozen=True, eq=False)  # each is one object, and a key
class Family:
    """What towers of one family have that those of another have not; all else is the same.

    Attributes:
        name: for people.
        model_type, model, config: transformers' names of it.
        pre_norm: whether a layer norm stands before the first block.
        patch_bias: whether the patch projection has a bias.
        defaults: what the config class takes where a file leaves a key out.
    """

    name: str
    model_type: str
    model: str
    config: str
    pre_norm: bool
    patch_bias: bool
    defaults: Mapping[str, Any]


_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224,
}  # fmt: skip
CLIP = Family(
    "CLIP ViT", "clip_vision_model", "CLIPVisionModel", "CLIPVisionConfig", pre_norm=True, patch_bias=False,
    defaults={**_DEFAULTS, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
)  # fmt: skip
VIT = Family(
    "ViT", "vit", "ViTModel", "ViTConfig", pre_norm=False, patch_bias=True,
    defaults={**_DEFAULTS, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
)  # fmt: skip
"""Of Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929) and most towers trained on ImageNet since."""


def family_of(model_type: str | None) -> Family:
    """By a config's ``model_type``; CLIP, whose files had none once, for all but ``vit``."""
    return VIT if model_type == VIT.model_type else CLIP


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


def attention_heads(config: Any) -> int:
    """Heads of every layer: the config's, or fewer where some were removed (:data:`KEPT_HEADS`)."""
    kept = getattr(config, KEPT_HEADS, None)
    return config.num_attention_heads if kept is None else kept


def check_config(config: Any, where: str = "config.json") -> None:
    """Refuse a config that no tower can be built from.

    Args:
        config: anything with the attributes of ``CLIPVisionConfig`` or ``ViTConfig``.
        where: what to name in the message.

    Raises:
        InputError: an unsupported activation, attention without biases, a non-square image or patch, sizes that do not
            divide, or a number of heads kept that cannot be.
    """
    if not getattr(config, "qkv_bias", True):
        raise InputError(f"{where}: attention without biases (qkv_bias false) is not supported.")
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
    kept = attention_heads(config)
    if not isinstance(kept, int) or not 1 <= kept <= config.num_attention_heads:
        raise InputError(
            f"{where}: {KEPT_HEADS} is {kept!r}; it must be 1 to num_attention_heads, {config.num_attention_heads}."
        )
    if config.image_size % config.patch_size:
        raise InputError(
            f"{where}: image_size {config.image_size} is not a multiple of patch_size {config.patch_size}."
        )


def preset_name(config: Any) -> str | None:
    """The published name of this architecture, or None when it is none of :data:`PRESETS`."""
    if family_of(getattr(config, "model_type", None)) is not CLIP:
        return None
    if attention_heads(config) != config.num_attention_heads:
        return None
    for name, sizes in PRESETS.items():
        if all(getattr(config, key) == value for key, value in sizes.items() if key != "projection_dim"):
            return name
    return None
