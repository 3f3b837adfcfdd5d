"""What happens after a block: Contrastive Gradient Proxy, Region Refinement Mask, pooling (equations 17 to 21).

All in float32: the proxy is a difference of nearly equal numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from r2m_jax.models.corit.settings import Pooling, Proxy, Threshold

EPSILON = 1e-6


class Refined(NamedTuple):
    """Masks of one layer.

    Attributes:
        mask: patches that count, by region.
        empty: where no patch passed, so that the mask is the whole region.
    """

    mask: Bool[Array, "b k n"]
    empty: Bool[Array, "b k"]


def gradient_proxy(patches: Float[Array, "b s n d"], kind: Proxy = "raw") -> Float[Array, "b n d"]:
    """g = X - X̃, the discrepancy between an image's tokens and the mean of its self-blended images' (equation 18).

    Args:
        patches: tokens of the image and, from the second stream on, of its self-blended images.
        kind: ``raw``, or ``unit`` for vectors of length one.
    """
    tokens = patches.astype(jnp.float32)
    difference = tokens[:, 0] - tokens[:, 1:].mean(axis=1)
    if kind == "raw":
        return difference
    return difference / (jnp.linalg.norm(difference, axis=-1, keepdims=True) + EPSILON)


def refine(
    proxy: Float[Array, "b n d"], regions: Bool[Array, "b k n"], gamma: float, threshold: Threshold = "mean"
) -> Refined:
    """The patches of each region that point where the region points (equations 19 and 20).

    With c the mean of g over a region and ĉ its direction, a patch's projection is s = ⟨g, ĉ⟩; it stays when s is
    above the threshold. Where none is, the whole region stays.

    Args:
        proxy: g.
        regions: R.
        gamma: coherence coefficient.
        threshold: see :class:`~r2m_jax.models.corit.CoritSettings`.
    """
    inside = regions.astype(jnp.float32)
    count = jnp.maximum(inside.sum(axis=-1, keepdims=True), 1.0)
    anchor = jnp.einsum("bkn,bnd->bkd", inside, proxy, precision="highest") / count
    direction = anchor / (jnp.linalg.norm(anchor, axis=-1, keepdims=True) + EPSILON)
    projection = jnp.einsum("bkd,bnd->bkn", direction, proxy, precision="highest")
    mean = (inside * projection).sum(axis=-1, keepdims=True) / count
    if threshold == "cosine":
        projection = projection / (jnp.linalg.norm(proxy, axis=-1)[:, None] + EPSILON)
    match threshold:
        case "mean":
            limit = gamma * mean
        case "max":
            limit = gamma * jnp.where(regions, projection, -jnp.inf).max(axis=-1, keepdims=True)
        case "deviation":
            variance = (inside * (projection - mean) ** 2).sum(axis=-1, keepdims=True) / count
            limit = mean + gamma * jnp.sqrt(variance)
        case _:
            limit = jnp.full_like(mean, gamma)
    passed = regions & (projection > limit)
    empty = ~passed.any(axis=-1)
    return Refined(passed | (empty[..., None] & regions), empty)


def pool(
    mask: Bool[Array, "b k n"], patches: Float[Array, "b s n d"], pooling: Pooling = "avg"
) -> Float[Array, "b s k d"]:
    """r, what a region's token gets: the mean (equation 21) or the maximum of the patches under its mask, else 0.

    Args:
        mask: of each region; the same for the image and its self-blended images.
        patches: their tokens.
        pooling: ``avg`` or ``max``.
    """
    tokens = patches.astype(jnp.float32)
    if pooling == "avg":
        inside = mask.astype(jnp.float32)
        total = jnp.einsum("bkn,bsnd->bskd", inside, tokens, precision="highest")
        return total / (inside.sum(axis=-1)[:, None, :, None] + EPSILON)
    # One region at a time: all at once would hold K copies of every token.
    highest = [jnp.where(mask[:, None, k, :, None], tokens, -jnp.inf).max(axis=2) for k in range(mask.shape[1])]
    return jnp.where(mask.any(axis=-1)[:, None, :, None], jnp.stack(highest, axis=2), 0.0)
