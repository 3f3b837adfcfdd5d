"""Geometric warps, smooth random fields, and the loss of detail a generator's bottleneck brings."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage


def warp(pixels: np.ndarray, displacement: Float[np.ndarray, "2 h w"], order: int = 1) -> Float[np.ndarray, "h w 3"]:
    """Backward warp: the result at ``(y, x)`` is the image at ``(y, x) + displacement``, mirrored at the edge.

    Args:
        pixels: ``[h, w, 3]``, any real dtype.
        displacement: rows and columns, in pixels.
        order: of the spline, 1 for bilinear as in the grid samplers of neural networks.
    """
    height, width = pixels.shape[:2]
    grid = np.mgrid[:height, :width] + displacement
    channels = [
        ndimage.map_coordinates(pixels[..., c].astype(np.float64), grid, order=order, mode="mirror") for c in range(3)
    ]
    return np.stack(channels, axis=-1)


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
        centre: row and column as shares of the sides.
        scale: along rows and columns; above 1 enlarges.
        shift: in pixels, along rows and columns.
    """
    height, width = shape
    rows = np.arange(height)[:, None] - centre[0] * height
    columns = np.arange(width)[None, :] - centre[1] * width
    field = np.empty((2, height, width))
    field[0] = rows * (1 / scale[0] - 1) - shift[0]
    field[1] = columns * (1 / scale[1] - 1) - shift[1]
    return field


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
