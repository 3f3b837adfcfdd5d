"""Geometric warps, smooth random fields, and the loss of detail a generator's bottleneck brings.

A displacement field is ``[2, h, w]``, rows and columns in pixels: the result at ``(y, x)`` is the image at
``(y, x) + displacement``.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage
from scipy.interpolate import RBFInterpolator

_LATTICE = 24  # nodes a side at which splines are evaluated; fields are smooth, and stretched from there


def warp(pixels: np.ndarray, displacement: Float[np.ndarray, "2 h w"]) -> Float[np.ndarray, "h w 3"]:
    """Backward warp, bilinear as in the grid samplers of neural networks, mirrored at the edge.

    Args:
        pixels: ``[H, W, 3]``, any real dtype.
        displacement: rows and columns, in pixels.

    Returns:
        float64 of the displacement's height and width.
    """
    height, width = displacement.shape[1:]
    rows = np.arange(height, dtype=np.float32)[:, None] + displacement[0].astype(np.float32)
    columns = np.arange(width, dtype=np.float32)[None, :] + displacement[1].astype(np.float32)
    moved = cv2.remap(pixels.astype(np.float32), columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return moved.astype(np.float64)


def affine_field(shape: tuple[int, int], matrix: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2 h w"]:
    """Displacement of the affine map ``(x, y) -> matrix @ (x, y, 1)`` from the result to the image."""
    height, width = shape
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    return np.stack(
        [
            matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] - y,
            matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] - x,
        ]
    )


def smooth_field(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """A random field without sharp features: a normal ``cells × cells`` grid, stretched by cubic splines."""
    height, width = shape
    rows, columns = np.linspace(0, cells - 1, height), np.linspace(0, cells - 1, width)
    grid = np.meshgrid(rows, columns, indexing="ij")
    return ndimage.map_coordinates(rng.standard_normal((cells, cells)), grid, order=3, mode="nearest")


def similarity(
    shape: tuple[int, int],
    centre: tuple[float, float],
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    shift: tuple[float, float] = (0.0, 0.0),
) -> Float[np.ndarray, "2 h w"]:
    """Displacement that enlarges an image around a centre and moves it.

    Args:
        shape: height and width.
        centre: row and column in pixels.
        scale: along rows and columns; above 1 enlarges.
        shift: in pixels, along rows and columns.
    """
    height, width = shape
    field = np.empty((2, height, width))
    field[0] = (np.arange(height)[:, None] - centre[0]) * (1 / scale[0] - 1) - shift[0]
    field[1] = (np.arange(width)[None, :] - centre[1]) * (1 / scale[1] - 1) - shift[1]
    return field


def spline_field(
    shape: tuple[int, int],
    moved: Float[np.ndarray, "k 2"],
    original: Float[np.ndarray, "k 2"],
    *,
    smoothing: float = 0.0,
) -> Float[np.ndarray, "2 h w"]:
    """Displacement by which content at ``original`` appears at ``moved``, in between a thin-plate spline.

    Bookstein, "Principal Warps", PAMI 1989, https://doi.org/10.1109/34.24792.

    Args:
        shape: height and width.
        moved, original: points ``(x, y)`` in pixels; at least three, not on one line.
        smoothing: 0 interpolates the points, more lets the field be smoother than they are.
    """
    height, width = shape
    unit = float(max(shape))
    x, y = np.linspace(0, width - 1, _LATTICE), np.linspace(0, height - 1, _LATTICE)
    nodes = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    spline = RBFInterpolator(moved / unit, (original - moved)[:, ::-1], kernel="thin_plate_spline", smoothing=smoothing)
    coarse = spline(nodes / unit).reshape(_LATTICE, _LATTICE, 2)
    rows, columns = np.linspace(0, _LATTICE - 1, height), np.linspace(0, _LATTICE - 1, width)
    grid = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([ndimage.map_coordinates(coarse[..., axis], grid, order=3, mode="nearest") for axis in (0, 1)])


def through_bottleneck(pixels: np.ndarray, factor: float) -> Float[np.ndarray, "h w 3"]:
    """What is left of an image rendered at ``1 / factor`` of its resolution and enlarged again.

    Face generators work at a fixed resolution below that of the footage; the mismatch is the artefact of Li and Lyu,
    "Exposing DeepFake Videos By Detecting Face Warping Artifacts", CVPRW 2019, https://arxiv.org/abs/1811.00656.
    """
    height, width = pixels.shape[:2]
    small = max(2, round(width / factor)), max(2, round(height / factor))
    channels = []
    for c in range(3):
        channel = Image.fromarray(pixels[..., c].astype(np.float32))
        channel = channel.resize(small, Image.Resampling.BICUBIC).resize((width, height), Image.Resampling.BICUBIC)
        channels.append(np.asarray(channel, dtype=np.float64))
    return np.stack(channels, axis=-1)
