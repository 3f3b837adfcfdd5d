"""What a batch becomes before the model sees it; runs on the device, inside the jitted step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from r2m_jax.data.augment import Policy
from r2m_jax.data.augment.device import augment_batch, image_keys
from r2m_jax.data.device import normalise, random_flip

Inputs: TypeAlias = Callable[[Key[Array, ""], Any], Any]
"""``inputs(key, batch)``: what the model is given, with random choices from ``key`` alone."""
Augment: TypeAlias = Callable[[Key[Array, ""], UInt8[Array, "b h w 3"]], UInt8[Array, "b h w 3"]]


def image_inputs(mean: Sequence[float], std: Sequence[float], augment: Augment = random_flip) -> Inputs:
    """Images of ``batch["image"]`` (uint8 [b, h, w, 3]), augmented and normalised.

    Args:
        mean, std: the model's normalisation of 0…1 RGB.
        augment: mirrors at random by default; see :func:`by_policy` and :func:`unchanged`.
    """

    def inputs(key: Key[Array, ""], batch: Any) -> Float[Array, "b h w 3"]:
        return normalise(augment(key, batch["image"]), mean, std)

    return inputs


def by_policy(policy: Policy) -> Augment:
    """A policy of :mod:`r2m_jax.data.augment`, with one key per image, hence the same on any number of devices."""

    def augment(key: Key[Array, ""], images: UInt8[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
        return augment_batch(image_keys(key, jnp.arange(len(images))), images, policy)

    return augment


def unchanged(key: Key[Array, ""], images: UInt8[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
    """No augmentation, or one the host has done."""
    return images


def pair_inputs(mean: Sequence[float], std: Sequence[float]) -> Inputs:
    """Images with self-blended images, as :class:`r2m_jax.data.pairs.Pairs` makes them: ``(streams, foreground)``.

    Args:
        mean, std: the model's normalisation of 0…1 RGB.
    """

    def inputs(key: Key[Array, ""], batch: Any) -> tuple[Float[Array, "b s h w 3"], Float[Array, "b n"]]:
        return normalise(batch["image"], mean, std), batch["foreground"]

    return inputs


def feature_inputs(key: Key[Array, ""], batch: Any) -> Float[Array, "b d"]:
    """Features computed before (``batch["feature"]``), as a linear probe trains on them."""
    return jax.lax.stop_gradient(batch["feature"])
