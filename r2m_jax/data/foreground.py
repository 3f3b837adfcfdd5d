"""Where the face, or what is in its place, is in an image: by landmarks, or a fixed ellipse.

Masks of what was manipulated (``Record.mask``) are never looked at: only forgeries have them, so they tell the label.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32

from r2m_jax.data.augment.draws import Draws
from r2m_jax.data.faces.landmarks import with_forehead
from r2m_jax.data.forge.landmarks import hull
from r2m_jax.errors import InputError


class Ellipse(NamedTuple):
    """Centre and semi-axes, x before y, as shares of an image's sides."""

    centre: tuple[float, float]
    axes: tuple[float, float]


ALIGNED_FACE = Ellipse((0.5, 0.53), (0.36, 0.47))
"""The face in a crop of DeepfakeBench's scale (margin 1.3)."""
CENTRE = Ellipse((0.5, 0.5), (0.35, 0.35))
"""The middle of any photograph."""


def inside_ellipse(shape: tuple[int, int], ellipse: Ellipse) -> Bool[np.ndarray, "h w"]:
    """Pixels whose centre is inside an ellipse."""
    height, width = shape
    x = ((np.arange(width) + 0.5) / width - ellipse.centre[0]) / ellipse.axes[0]
    y = ((np.arange(height) + 0.5) / height - ellipse.centre[1]) / ellipse.axes[1]
    return x[None, :] ** 2 + y[:, None] ** 2 <= 1


def inside_face(points: Float[np.ndarray, "k 2"], shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Pixels in the convex hull of landmarks; where they lack the forehead (68 of them), with it."""
    return hull(with_forehead(points) if len(points) == 68 else points, shape)


def read_landmarks(path: str | Path) -> Float[np.ndarray, "k 2"]:
    """Landmarks of an image, x and y in its pixels: 68 of them, or 81 with the forehead, as DeepfakeBench stores them.

    Raises:
        InputError: the file is missing, no NumPy array of 68 or 81 points, or has one that is not finite.
    """
    try:
        points = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"the landmarks {path} cannot be read ({error.strerror or error}).") from None
    except ValueError:
        raise InputError(f"the landmarks {path} are no NumPy array of numbers.") from None
    if points.shape not in ((68, 2), (81, 2)) or points.dtype.kind not in "fiu" or not np.isfinite(points).all():
        raise InputError(f"the landmarks {path} are {points.dtype} {list(points.shape)}, not 68 or 81 finite points.")
    return points.astype(np.float64)


def after_resizing(points: Float[np.ndarray, "k 2"], size: tuple[int, int], side: int) -> Float[np.ndarray, "k 2"]:
    """Where points of an image are after :func:`r2m_jax.data.images.resize_and_crop`.

    Args:
        points: in pixels of the image; the centre of the first pixel is (0, 0).
        size: width and height of the image.
        side: of the result.
    """
    width, height = size
    short = min(width, height)
    resized = np.array([int(side * width / short), int(side * height / short)])
    return (points + 0.5) * resized / (width, height) - 0.5 - (resized - side) // 2


def after_augmentation(points: Float[np.ndarray, "k 2"], draws: Draws, side: int) -> Float[np.ndarray, "k 2"]:
    """Where points are after the flip and the rotation of :func:`r2m_jax.data.augment.host.apply`."""
    if draws.flip:
        points = np.stack([side - 1 - points[:, 0], points[:, 1]], axis=1)
    if draws.degrees != 0:
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), float(draws.degrees), 1.0)
        points = points @ matrix[:, :2].T + matrix[:, 2]
    return points


def patch_shares(inside: Bool[np.ndarray, "h w"], patch: int) -> Float32[np.ndarray, " n"]:
    """Share of every patch that is inside, by rows.

    Args:
        inside: mask of pixels; its sides are multiples of ``patch``.
        patch: sides of a patch in pixels.
    """
    rows, columns = (side // patch for side in inside.shape)
    return inside.reshape(rows, patch, columns, patch).mean(axis=(1, 3), dtype=np.float32).ravel()
