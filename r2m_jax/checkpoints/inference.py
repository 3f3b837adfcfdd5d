"""Architecture of a tower read off the shapes of its tensors, for checkpoints without a config."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from r2m_jax.checkpoints.tensors import LazyTensor
from r2m_jax.errors import InputError
from r2m_jax.models import CLIP, VIT, preset_name

HEAD_SIZE = 64
"""Width of an attention head in every published CLIP vision tower up to L/14 (Table 20 of the CLIP paper)."""


# By family: the tensors that tell width, patch, positions, and the MLP of the first layer.
_TELLING = {
    CLIP: (
        "embeddings.class_embedding", "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight",
        "encoder.layers.0.mlp.fc1.weight",
    ),
    VIT: (
        "embeddings.cls_token", "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings",
        "layers.0.mlp.fc1.weight",
    ),
}  # fmt: skip


def infer_config(tower: Mapping[str, LazyTensor], activation: str | None, what: str) -> tuple[Any, list[str]]:
    """A config that fits the tensors, and what had to be inferred, in words.

    Args:
        tower: Hugging Face names without prefix.
        activation: shapes do not tell quick_gelu from gelu, so the caller chooses; the family's when None.
        what: names the source in messages.

    Raises:
        InputError: a tensor the inference rests on is missing, or the shapes fit no ViT.
    """
    try:
        family = VIT if "embeddings.cls_token" in tower else CLIP
        token, patches, positions, mlp = (tower[name].shape for name in _TELLING[family])
        d, patch, tokens, intermediate = token[-1], patches[-1], positions[-2], mlp[0]
    except KeyError as missing:
        raise InputError(f"{what} lacks {missing.args[0]}, from which the architecture would be inferred.") from None
    grid = math.isqrt(tokens - 1)
    if grid * grid != tokens - 1 or d % HEAD_SIZE:
        raise InputError(f"{what}: width {d} and {tokens} positions fit no {family.name}; pass --base to name one.")
    layers = 1 + max(int(m[1]) for name in tower if (m := re.match(r"(?:encoder\.)?layers\.(\d+)\.", name)))
    import transformers

    activation = activation or family.defaults["hidden_act"]
    config = getattr(transformers, family.config)(
        hidden_size=d,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=d // HEAD_SIZE,
        image_size=grid * patch,
        patch_size=patch,
        hidden_act=activation,
    )
    name = preset_name(config) or "a custom ViT"
    return config, [
        f"architecture from shapes: {name}, width {d}, {layers} layers, {grid * patch} px in patches of {patch}",
        f"{d // HEAD_SIZE} attention heads (of {HEAD_SIZE}, as in every published tower up to this size)",
        f"activation {activation} and layer-norm epsilon {config.layer_norm_eps:g} (shapes do not tell; --activation "
        "changes it)",
    ]
