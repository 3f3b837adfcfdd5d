"""What a batch becomes before the model sees it; runs on the device, inside the jitted step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

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


class Lesson(NamedTuple):
    """What a student is given.

    Attributes:
        images: normalised.
        key: of its random choices.
        pixels: the images a teacher sees, uint8; None without one, or once it has seen them.
        taught: what the teacher says of them; None without one.
    """

    images: Float[Array, "b h w 3"]
    key: Key[Array, ""]
    pixels: UInt8[Array, "b h w 3"] | None = None
    taught: Any = None


def lesson_inputs(
    mean: Sequence[float], std: Sequence[float], augment: Augment = random_flip, *, pixels: bool = False
) -> Inputs:
    """Images as of :func:`image_inputs` with a key, and what a teacher said of them (``batch["taught"]``) if any.

    Args:
        mean, std, augment: see there.
        pixels: keep the augmented images for a teacher.
    """

    def inputs(key: Key[Array, ""], batch: Any) -> Lesson:
        images = augment(key, batch["image"])
        seen = normalise(images, mean, std)
        # Another branch than that of the augmentation, which takes the key itself.
        return Lesson(seen, jax.random.fold_in(key, 1), images if pixels else None, batch.get("taught"))

    return inputs


def feature_inputs(key: Key[Array, ""], batch: Any) -> Any:
    """What was computed before (``batch["feature"]``), such as the features a linear probe trains on."""
    return jax.lax.stop_gradient(batch["feature"])
