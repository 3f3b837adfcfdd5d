"""What an artifact computes: images in, probability of fake and logit out, with the parameters inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from r2m_jax.data.device import normalise
from r2m_jax.models import Params

Logits = Callable[..., Float[Array, "batch 2"]]
"""``logits(params, images, *others)`` of normalised images and what else a model takes."""
Run = Callable[..., tuple[np.ndarray, np.ndarray]]
"""An artifact loaded back: inputs of one batch to float32 probabilities and logits."""


def scoring(
    logits: Logits, params: Params, processor: Any, *, normalised: bool
) -> Callable[..., tuple[Float[Array, " batch"], Float[Array, " batch"]]]:
    """The function that is exported.

    Args:
        logits: of normalised images.
        params: become constants of the program.
        processor: whose mean and std apply.
        normalised: the caller normalises (float32 images); otherwise images are uint8 RGB and it happens inside.

    Returns:
        A function of images ``[batch, …, h, w, 3]`` and what else the model takes that gives the probability of fake
        and the logit (fake minus real, so that its sigmoid is the probability), both float32 ``[batch]``.
    """
    mean, std = processor.image_mean, processor.image_std

    def scores(images: Array, *others: Array) -> tuple[Array, Array]:
        both = logits(params, images if normalised else normalise(images, mean, std), *others)
        margin = (both[:, 1] - both[:, 0]).astype(jnp.float32)
        return jax.nn.sigmoid(margin), margin

    return scores


def input_specs(
    arrays: Mapping[str, tuple[tuple[int, ...], Any]], *, batch: int | None, normalised: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of what a program takes.

    Args:
        arrays: shape and dtype of one image's, by name, the images (uint8) first.
        batch: images at a time; None leaves it open.
        normalised: images are normalised, hence float32.
    """
    count = jax.export.symbolic_shape("batch")[0] if batch is None else batch
    specs = {name: jax.ShapeDtypeStruct((count, *shape), dtype) for name, (shape, dtype) in arrays.items()}
    images = next(iter(specs))
    return specs | {images: specs[images].update(dtype=jnp.float32)} if normalised else specs
