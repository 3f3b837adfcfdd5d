"""Architecture of a tower read off the shapes of its tensors, for checkpoints without a config."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from r2m_jax.checkpoints.tensors import LazyTensor
from r2m_jax.errors import InputError
from r2m_jax.models import preset_name

HEAD_SIZE = 64
"""Width of an attention head in every published CLIP vision tower up to L/14 (Table 20 of the CLIP paper)."""


def infer_config(tower: Mapping[str, LazyTensor], activation: str, what: str) -> tuple[Any, list[str]]:
    """A config that fits the tensors, and what had to be inferred, in words.

    Args:
        tower: Hugging Face names without prefix.
        activation: shapes do not tell quick_gelu from gelu, so the caller chooses.
        what: names the source in messages.

    Raises:
        InputError: a tensor the inference rests on is missing, or the shapes fit no ViT.
    """
    try:
        d = tower["embeddings.class_embedding"].shape[0]
        patch = tower["embeddings.patch_embedding.weight"].shape[-1]
        tokens = tower["embeddings.position_embedding.weight"].shape[0]
        intermediate = tower["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as missing:
        raise InputError(f"{what} lacks {missing.args[0]}, from which the architecture would be inferred.") from None
    grid = math.isqrt(tokens - 1)
    if grid * grid != tokens - 1 or d % HEAD_SIZE:
        raise InputError(f"{what}: width {d} and {tokens} positions fit no CLIP tower; pass --base to name one.")
    layers = 1 + max(int(m[1]) for name in tower if (m := re.match(r"encoder\.layers\.(\d+)\.", name)))
    from transformers import CLIPVisionConfig

    config = CLIPVisionConfig(
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
        f"{d // HEAD_SIZE} attention heads (of {HEAD_SIZE}, as in every published CLIP)",
        f"activation {activation} and layer-norm epsilon 1e-5 (shapes do not tell; --activation changes it)",
    ]
