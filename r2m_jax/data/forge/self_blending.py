"""Self-blended images: a face blended with an altered copy of itself.

Shiohara and Yamasaki, "Detecting Deepfakes with Self-Blended Images", CVPR 2022, https://arxiv.org/abs/2204.08376:
the source-target generator (§3.2, colour and frequency transforms, resizing and translation) and the mask generator
(§3.3, convex hull, elastic deformation, two smoothings, blending ratio), with the ranges of the authors' published
training configuration. Distances are in pixels of crops of about 256 to 320 pixels, as there.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from r2m_jax.data.forge.blending import to_uint8
from r2m_jax.data.forge.landmarks import hull, outline
from r2m_jax.data.forge.warping import warp

_RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)


def self_blend(
    image: UInt8[np.ndarray, "h w 3"], points: Float[np.ndarray, "68 2"], rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """A pair of a real image and its self-blended forgery.

    With probability one half the inner face is altered, else its ground; so the real partner may be recoloured too.

    Args:
        image: a real face.
        points: its landmarks, x and y in pixels.
        rng: of everything random.

    Returns:
        The real partner (target), the forgery, and the blending mask from 0 to 1.
    """
    return self_blend_inside(image, hull(points if rng.random() < 0.25 else outline(points), image.shape[:2]), rng)


def self_blend_inside(
    image: UInt8[np.ndarray, "h w 3"], inside: Bool[np.ndarray, "h w"], rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """The same with a region of any shape in place of the face, for images without landmarks."""
    shape = image.shape[:2]
    source, target = image, image
    if rng.random() < 0.5:
        source = _altered(image, rng)
    else:
        target = _altered(image, rng)
    moved = _moved(shape, *_movement(rng))
    # An integer image keeps its rounding: the forgery is put together from 8-bit sources, as by the authors.
    source = to_uint8(warp(source, moved))
    mask = warp(np.repeat(inside[..., None].astype(np.float64), 3, axis=2), moved)
    mask = warp(mask, _elastic(shape, rng))[..., 0]
    sides, kernels = rng.integers(192, 257, 2).tolist(), (_kernel(rng), _kernel(rng))
    mask = _smoothed(mask, sides, kernels, rng.uniform(5, 46)) * rng.choice(_RATIOS)
    return target, _blended(source, target, mask), mask


def canonical_self_blend(
    image: UInt8[np.ndarray, "h w 3"], inside: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """One self-blended image without anything random, in the middle of the ranges that are drawn from.

    The inside is taken at half the resolution, brighter by a tenth of the range, moved by 2 % in x and 1 % in y and
    enlarged by 1.03, and blended in full; the mask is smoothed as a drawn one (kernels of 15, sigma 25, at 224 pixels).
    The choice is ours: CoRIT (arXiv 2603.24057), which compares images with their self-blended ones, does not say.

    Args:
        image: RGB.
        inside: what is altered; an empty one gives the image back.
    """
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    moved = _moved((height, width), 0.02, 0.01, 1.03)
    source = to_uint8(warp(to_uint8(coarse + 25.5), moved))
    mask = warp(np.repeat(inside[..., None].astype(np.float64), 3, axis=2), moved)[..., 0]
    return _blended(source, image, _smoothed(mask, [224, 224], ((15, 15), (15, 15)), 25.0))


def _blended(
    source: UInt8[np.ndarray, "h w 3"], target: UInt8[np.ndarray, "h w 3"], mask: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    return (mask[..., None] * source + (1 - mask[..., None]) * target).astype(np.uint8)


def _altered(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Colour and frequency transforms: RGB shift, hue-saturation-value, brightness and contrast, then resolution."""
    pixels = image.astype(np.float64)
    if rng.random() < 0.3:
        pixels = np.clip(np.rint(pixels + rng.uniform(-20, 20, 3)), 0, 255)
    # The limits of ±0.3 are absolute: at most one level of hue, saturation and value, next to nothing.
    hsv = cv2.cvtColor(pixels.astype(np.uint8), cv2.COLOR_RGB2HSV).astype(np.float64) + rng.uniform(-0.3, 0.3, 3)
    hsv = np.stack([np.rint(hsv[..., 0]) % 180, *np.clip(np.rint(hsv[..., 1:]), 0, 255).transpose(2, 0, 1)], axis=-1)
    pixels = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float64)
    pixels = pixels * (1 + rng.uniform(-0.1, 0.1)) + 255 * rng.uniform(-0.1, 0.1)
    altered = to_uint8(pixels)
    if rng.random() < 0.5:
        factor = int(rng.choice([2, 4]))
        height, width = altered.shape[:2]
        small = cv2.resize(
            altered, (max(1, width // factor), max(1, height // factor)), interpolation=cv2.INTER_NEAREST
        )
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    strength, lightness = rng.uniform(0.2, 0.5), rng.uniform(0.5, 1.0)
    kernel = -strength * np.ones((3, 3))
    kernel[1, 1] = (1 - strength) + strength * (8 + lightness)
    return cv2.filter2D(altered, -1, kernel)


def _movement(rng: np.random.Generator) -> tuple[float, float, float]:
    """Translation by up to 3 % in x and 1.5 % in y, scale from 0.95 to 1 / 0.95."""
    return rng.uniform(-0.03, 0.03), rng.uniform(-0.015, 0.015), rng.uniform(0.95, 1 / 0.95)


def _moved(shape: tuple[int, int], right: float, down: float, scale: float) -> Float[np.ndarray, "2 h w"]:
    """Displacement of a translation, in shares of width and height, and a scale about the image's centre."""
    height, width = shape
    field = np.empty((2, height, width))
    field[0] = ((np.arange(height) - (height - 1) / 2) * (1 / scale - 1))[:, None] - np.rint(down * height)
    field[1] = ((np.arange(width) - (width - 1) / 2) * (1 / scale - 1))[None, :] - np.rint(right * width)
    return field


def _elastic(shape: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, "2 h w"]:
    """Elastic deformation, alpha 50 and sigma 7 (Simard et al., ICDAR 2003)."""
    noise = rng.uniform(-1, 1, (2, *shape))
    return 50.0 * np.stack([cv2.GaussianBlur(axis, (0, 0), 7) for axis in noise])


def _smoothed(
    mask: Float[np.ndarray, "h w"], sides: list[int], kernels: tuple[tuple[int, int], tuple[int, int]], sigma: float
) -> Float[np.ndarray, "h w"]:
    """Blur, keep where it is still full (an erosion), blur again; at a size of its own, on which the widths depend."""
    height, width = mask.shape
    small = cv2.resize(mask, sides)
    small = cv2.GaussianBlur(small, kernels[0], 0)
    # Full means 1 up to the rounding of the blur's sums.
    small = (small >= small.max() * (1 - 1e-6)).astype(np.float64) if small.max() else small
    small = cv2.GaussianBlur(small, kernels[1], sigma)
    small = small / max(small.max(), 1e-9)
    return np.clip(cv2.resize(small, (width, height)), 0, 1)


def _kernel(rng: np.random.Generator) -> tuple[int, int]:
    side = int(rng.choice(np.arange(5, 26, 2)))
    return side, side
