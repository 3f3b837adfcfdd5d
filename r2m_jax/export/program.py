"""What an artifact computes: images in, probability of fake and logit out, with the parameters inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from r2m_jax.data.device import normalise
from r2m_jax.models import ClipVisionTower, Params, TowerOptions, apply_head

Logits = Callable[[Params, Float[Array, "batch h w 3"]], Float[Array, "batch 2"]]
Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""An artifact loaded back: images of one batch to float32 probabilities and logits."""


def scoring(
    logits: Logits, params: Params, processor: Any, *, normalised: bool
) -> Callable[[Array], tuple[Float[Array, " batch"], Float[Array, " batch"]]]:
    """The function that is exported.

    Args:
        logits: of normalised images.
        params: become constants of the program.
        processor: whose mean and std apply.
        normalised: the caller normalises (float32 images); otherwise images are uint8 RGB and it happens inside.

    Returns:
        A function of images ``[batch, h, w, 3]`` that gives the probability of fake and the logit (fake minus real,
        so that its sigmoid is the probability), both float32 ``[batch]``.
    """
    mean, std = processor.image_mean, processor.image_std

    def scores(images: Array) -> tuple[Array, Array]:
        both = logits(params, images if normalised else normalise(images, mean, std))
        margin = (both[:, 1] - both[:, 0]).astype(jnp.float32)
        return jax.nn.sigmoid(margin), margin

    return scores


def image_spec(size: int, *, batch: int | None, normalised: bool) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the images a program takes; ``batch=None`` leaves their number open."""
    count = jax.export.symbolic_shape("batch")[0] if batch is None else batch
    return jax.ShapeDtypeStruct((count, size, size, 3), jnp.float32 if normalised else jnp.uint8)


def unrolled_detector(config: Any, options: TowerOptions) -> Logits:
    """The detector with its layers one after the other in the program instead of in a loop.

    ``apply_detector`` scans over stacked layers, which keeps XLA's program small. Runtimes that interpret a graph gain
    nothing from that: ONNX Runtime slices every weight out of its stack at every step of the loop and cannot optimise
    across it (measured on ViT-B/16: 1.8 times slower to run, 7 times slower to load).
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: ClipVisionTower(config, options, rngs=nnx.Rngs(0))), nnx.Param)

    def logits(params: Params, images: Array) -> Array:
        state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy: the next line writes into it
        nnx.replace_by_pure_dict(state, params["backbone"])
        tower = nnx.merge(graph, state)
        layer_graph, stacked = nnx.split(tower.layers)
        x = tower.pre_norm(tower.embeddings(images))
        for number in range(tower.depth):
            x = nnx.merge(layer_graph, jax.tree.map(lambda leaf, at=number: leaf[at], stacked))(x)
        return apply_head(params["head"], tower.post_norm(x[:, 0]))

    return logits
