"""The one part of CoRIT that is trained: a linear classifier of z, behind a cross-attention if wanted (equation 25)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from r2m_jax.models.corit.settings import CoritSettings
from r2m_jax.models.detector import apply_head
from r2m_jax.models.functional import Params, init_head, parameter_shapes

ATTENTION = ("query", "key", "value")
"""Square kernels [d, d] of the head's cross-attention."""


def init_corit_head(config: Any, settings: CoritSettings, key: Key[Array, ""] | None = None) -> Params:
    """A head for z, float32: ``{"kernel": [f, 2], "bias": [2]}``, with cross-attention also its three kernels.

    Args:
        config: of the tower.
        settings: switches.
        key: of a random start (uniform in ±1/√width); without one, zeros.
    """
    width = settings.width(config)
    if settings.fusion == "concat":
        return init_head(width, key)
    d = config.hidden_size
    head = init_head(width // 2, key)
    if key is None:
        return head | {name: jnp.zeros((d, d)) for name in ATTENTION}
    keys = jax.random.split(jax.random.fold_in(key, 1), len(ATTENTION))
    bound = d**-0.5
    return head | {
        name: jax.random.uniform(own, (d, d), minval=-bound, maxval=bound)
        for name, own in zip(ATTENTION, keys, strict=True)
    }


def apply_corit_head(head: Params, features: Float[Array, "b f"]) -> Float[Array, "b 2"]:
    """Logits of z, in float32; class 1 is fake. Cross-attention is there when its kernels are.

    Args:
        head: of :func:`init_corit_head`.
        features: z of :func:`~r2m_jax.models.corit.corit_features`.
    """
    if "query" not in head:
        return apply_head(head, features)
    query, key, value = (head[name].astype(jnp.float32) for name in ATTENTION)
    d = query.shape[0]
    early, late = jnp.split(features.astype(jnp.float32).reshape(features.shape[0], -1, d), 2, axis=1)
    with jax.default_matmul_precision("highest"):
        # The last layer asks, layer L' answers.
        weights = jax.nn.softmax((late @ query) @ jnp.swapaxes(early @ key, 1, 2) / d**0.5, axis=-1)
        fused = weights @ (early @ value)
    return apply_head(head, fused.reshape(features.shape[0], -1))


def corit_parameter_shapes(config: Any, settings: CoritSettings) -> Params:
    """Shape and dtype of every parameter of a CoRIT detector, as a tree of ShapeDtypeStruct."""
    head = jax.eval_shape(lambda: init_corit_head(config, settings))
    return {"backbone": parameter_shapes(config)["backbone"], "head": head}
