"""The part of the input pipeline that runs on the device, inside the jitted step."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8


def normalise(
    images: UInt8[Array, "*b h w 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "*b h w 3"]:
    """Rescale 0…255 to 0…1 and normalise per channel: float32 (x/255 - mean) / std."""
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    return images.astype(jnp.float32) * scale - jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)


def random_flip(key: Key[Array, ""], images: UInt8[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
    """Mirror each image left to right with probability one half."""
    flip = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
