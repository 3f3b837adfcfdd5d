"""Which patches belong to which region, computed on the device from the foreground's share of every patch.

No rule reads a manipulation mask: a mask that only forgeries have tells the label.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from r2m_jax.errors import InputError
from r2m_jax.models.corit.settings import AREAS, CoritSettings

INSIDE = 0.9
"""Share of foreground from which a patch is inside; between the two it is on the boundary."""
OUTSIDE = 0.1
SMALLEST = 4
"""Patches a region must have for the boundary to be widened at its cost."""


def regions_of(settings: CoritSettings, foreground: Float[Array, "b rows columns"]) -> Bool[Array, "b k n"]:
    """The regions a detector with these settings uses.

    Args:
        settings: its rule and regions.
        foreground: share of each patch that is foreground, 0 to 1; not looked at under the rule ``random``.

    Raises:
        InputError: the rule is ``user``, whose regions cannot be computed.
    """
    if settings.rule == "user":
        raise InputError("the region rule is user: give the regions' masks [batch, K, patches] yourself.")
    batch, rows, columns = foreground.shape
    if settings.rule == "random":
        parts = random_partition(rows * columns, len(settings.regions), settings.seed)
        return jnp.broadcast_to(jnp.asarray(parts), (batch, *parts.shape))
    chosen = [AREAS.index(name) for name in settings.regions]
    return partition(foreground)[:, chosen]


def partition(foreground: Float[Array, "b rows columns"]) -> Bool[Array, "b 3 n"]:
    """Foreground, boundary and background: every patch in exactly one of them.

    The boundary is where a patch is neither inside nor outside, and one patch on either side of that; it stays thin
    where widening would leave a region fewer than :data:`SMALLEST` patches.

    Args:
        foreground: share of each patch that is foreground, 0 to 1.
    """
    edge = (foreground > OUTSIDE) & (foreground < INSIDE)
    inside = foreground >= INSIDE
    # The largest of numbers instead of a disjunction of truth values, which ONNX has no pooling for.
    near = jax.lax.reduce_window(
        edge.astype(jnp.float32), -jnp.inf, jax.lax.max, window_dimensions=(1, 3, 3), window_strides=(1, 1, 1),
        padding="SAME",
    )  # fmt: skip
    wide = near > 0

    def areas(boundary: Bool[Array, "b rows columns"]) -> Bool[Array, "b 3 n"]:
        parts = jnp.stack([inside & ~boundary, boundary, ~inside & ~boundary], axis=1)
        return parts.reshape(*parts.shape[:2], -1)

    widened = areas(wide)
    enough = (widened.sum(axis=-1) >= SMALLEST).all(axis=-1)[:, None, None]
    return (enough & widened) | (~enough & areas(edge))  # a choice of truth values is beyond ONNX Runtime


def random_partition(patches: int, parts: int, seed: int) -> Bool[np.ndarray, "k n"]:
    """A partition into parts whose sizes differ by one at most, the same for every image."""
    order = np.random.default_rng(seed).permutation(patches)
    owner = np.empty(patches, np.int64)
    owner[order] = np.arange(patches) * parts // max(patches, 1)
    return owner == np.arange(parts)[:, None]


def salient(patches: Float[Array, "b n d"]) -> Float[Array, "b rows columns"]:
    """Foreground by saliency: 1 where a token's distance from the mean token is above Otsu's threshold, else 0.

    Args:
        patches: tokens of a middle layer, of a square image.

    Raises:
        InputError: the image is not square.
    """
    batch, count, _ = patches.shape
    side = math.isqrt(count)
    if side * side != count:
        raise InputError(f"saliency needs a square grid of patches, not {count}; choose another region rule.")
    tokens = patches.astype(jnp.float32)
    distance = jnp.linalg.norm(tokens - tokens.mean(axis=1, keepdims=True), axis=-1)
    above = distance > jax.vmap(otsu)(distance)[:, None]
    return above.astype(jnp.float32).reshape(batch, side, side)


def otsu(values: Float[Array, " n"]) -> Float[Array, ""]:
    """The value at or below which lies the lower of two groups that differ most.

    Otsu, "A Threshold Selection Method from Gray-Level Histograms", IEEE SMC 1979: the largest variance between the
    groups, here over all splits of the sorted values instead of a histogram's.
    """
    ordered = jnp.sort(values)
    count = len(values)
    below = jnp.arange(1, count)
    sums = jnp.cumsum(ordered)[:-1]
    lower, upper = sums / below, (ordered.sum() - sums) / (count - below)
    between = below * (count - below) * (upper - lower) ** 2
    return ordered[jnp.argmax(between)]
