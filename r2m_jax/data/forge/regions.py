"""Regions of an image, soft at the edge, and pasting into them.

The patches of the demo hold no faces, so the region a face would fill is an ellipse around the centre: face crops
are centred, and their inner face covers about half of each side.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage


def ellipse(
    shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0
) -> Float[np.ndarray, "h w"]:
    """Elliptic distance from a centre: below 1 inside, 1 on the edge.

    Args:
        shape: height and width.
        centre: row and column as shares of the sides.
        radii: along rows and columns, as shares of the sides.
        angle: of rotation, in radians.
    """
    height, width = shape
    rows = (np.arange(height)[:, None] + 0.5) / height - centre[0]
    columns = (np.arange(width)[None, :] + 0.5) / width - centre[1]
    along = np.cos(angle) * rows + np.sin(angle) * columns
    across = np.cos(angle) * columns - np.sin(angle) * rows
    return np.hypot(along / radii[0], across / radii[1])


def face_prior(shape: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Distance from a random ellipse where a face would be; it stays clear of the image's edge."""
    centre = 0.5 + rng.uniform(-0.04, 0.04, 2)
    radii = rng.uniform(0.29, 0.37), rng.uniform(0.24, 0.32)
    return ellipse(shape, (centre[0], centre[1]), radii, rng.uniform(-0.3, 0.3))


def feathered(inside: np.ndarray, sigma: float) -> Float[np.ndarray, "h w"]:
    """A blurred mask: 1 well inside, 0 from two ``sigma`` outside on.

    Args:
        inside: boolean ``[h, w]``.
        sigma: of the Gaussian, in pixels.
    """
    return ndimage.gaussian_filter(inside.astype(np.float64), sigma, truncate=2.0)


def paste(
    image: UInt8[np.ndarray, "h w 3"], source: np.ndarray, mask: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """``mask · source + (1 - mask) · image``; pixels where the mask is 0 are the image's own."""
    weight = mask[..., None]
    return to_uint8(weight * source + (1 - weight) * image)


def to_uint8(pixels: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Grey levels rounded and clipped to 0 … 255."""
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
