"""Augmentation of a batch on the device: one compiled program, the same parameters and the same results as on the host.

Every transform takes and gives whole grey levels, as it does on the host, where each one writes an 8-bit image; the
arithmetic between is float32 or int32. All transforms of a policy run on all images and a neutral parameter selects the
input, since a batch has no branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Key, UInt8

from r2m_jax.data.augment.draws import UNIFORMS, Draws, parameters
from r2m_jax.data.augment.jpeg import round_trip
from r2m_jax.data.augment.policy import Policy, Subsampling
from r2m_jax.data.augment.principal import pca_shift

Scalar = Float32[Array, ""]


def image_keys(key: Key[Array, ""], ids: Int32[Array, " b"]) -> Key[Array, " b"]:
    """One key per image, which depends on ``key`` (a seed and an epoch, say) and the image's own number alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)


@partial(jax.jit, static_argnames="policy")
def augment_batch(keys: Key[Array, " b"], images: UInt8[Array, "b h w 3"], policy: Policy) -> UInt8[Array, "b h w 3"]:
    """Draw parameters for every image by its own key and apply them.

    What becomes of an image depends on its key alone, not on the batch it is in nor on how the batch is sharded; a
    batch that is sharded by its first axis stays so, without communication.

    Args:
        keys: one per image (``image_keys``).
        images: RGB.
        policy: static; a transform whose probability is 0 is left out of the program.
    """
    colour = policy.one_of > 0
    active = {
        "flip": policy.flip > 0,
        "rotate": policy.rotate > 0,
        "blur": policy.blur > 0,
        "brightness": colour or policy.brightness > 0 or policy.contrast > 0,
        "pca": colour,
        "hsv": colour,
        "jpeg": policy.jpeg > 0,
    }
    stages = _stages(policy.jpeg_subsampling)
    return _run([stages[name] for name in stages if active[name]], images, draw_batch(keys, policy))


@partial(jax.jit, static_argnames="policy")
def draw_batch(keys: Key[Array, " b"], policy: Policy) -> Draws:
    """Parameters that ``augment_batch`` applies under the same keys, each with a leading axis."""

    def draw(key: Key[Array, ""]) -> Draws:
        uniform, normal = jax.random.split(key)
        numbers = jax.random.uniform(uniform, (UNIFORMS,), jnp.float32)
        return parameters(numbers, jax.random.normal(normal, (), jnp.float32), policy, jnp)

    return jax.vmap(draw)(keys)


@partial(jax.jit, static_argnames="subsampling")
def apply_batch(
    images: UInt8[Array, "b h w 3"], draws: Draws, subsampling: Subsampling = "4:2:0"
) -> UInt8[Array, "b h w 3"]:
    """Apply given parameters, one set per image, in the order of DeepfakeBench."""
    return _run(list(_stages(subsampling).values()), images, draws)


Stage = Callable[[UInt8[Array, "h w 3"], Draws], UInt8[Array, "h w 3"]]


def _stages(subsampling: Subsampling) -> dict[str, Stage]:
    """Transforms of one image by its parameters, in their order."""
    return {
        "flip": lambda image, d: flip(image, d.flip),
        "rotate": lambda image, d: rotate(image, d.degrees),
        "blur": lambda image, d: gaussian_blur(image, d.blur_size),
        "brightness": lambda image, d: brightness_contrast(image, d.gain, d.offset),
        "pca": lambda image, d: fancy_pca(image, d.pca),
        "hsv": lambda image, d: hue_saturation_value(image, d.hue, d.saturation, d.value),
        "jpeg": lambda image, d: jpeg(image, d.jpeg_quality, subsampling),
    }


def _run(stages: Sequence[Stage], images: UInt8[Array, "b h w 3"], draws: Draws) -> UInt8[Array, "b h w 3"]:
    """One stage after the other, each finished before the next.

    In a straight line XLA fuses a stage into every one of the next stage's reads and computes it anew for each (12
    times slower on a CPU, whose compiler ignores ``optimization_barrier``); branches of a loop are not fused.
    """
    if not stages:
        return images
    branches = [jax.vmap(stage) for stage in stages]
    return jax.lax.fori_loop(0, len(branches), lambda i, x: jax.lax.switch(i, branches, x, draws), images)


def flip(image: UInt8[Array, "h w 3"], on: Bool[Array, ""]) -> UInt8[Array, "h w 3"]:
    """Mirror left to right where ``on``."""
    return jnp.where(on, image[:, ::-1], image)


def rotate(image: UInt8[Array, "h w 3"], degrees: Scalar) -> UInt8[Array, "h w 3"]:
    """Rotate counter-clockwise about (width/2, height/2), bilinear, border reflected without its edge pixel."""
    height, width = image.shape[:2]
    angle = degrees * np.float32(np.pi / 180)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - width / 2
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - height / 2
    column, row = cosine * x - sine * y + width / 2, sine * x + cosine * y + height / 2
    left, top = jnp.floor(column), jnp.floor(row)
    right_weight, bottom_weight = (column - left)[..., None], (row - top)[..., None]
    columns = [_reflected(left.astype(jnp.int32) + i, width) for i in (0, 1)]
    rows = [_reflected(top.astype(jnp.int32) + i, height) for i in (0, 1)]
    corners = [[image[r, c].astype(jnp.float32) for c in columns] for r in rows]
    upper, lower = (a + right_weight * (b - a) for a, b in corners)
    return _levels(jnp.round(upper + bottom_weight * (lower - upper)))


def _reflected(index: Array, size: int) -> Array:
    """Indices folded into 0…size-1 by mirrors at the first and the last pixel (OpenCV's BORDER_REFLECT_101)."""
    period = max(2 * (size - 1), 1)
    index = index % period
    return jnp.minimum(index, period - index)


# OpenCV's fixed kernels of 3, 5 and 7 taps for sigma 0 (getGaussianKernel), in 256ths and filled up to seven taps
_KERNELS = np.array([[0, 0, 64, 128, 64, 0, 0], [0, 16, 64, 96, 64, 16, 0], [8, 28, 56, 72, 56, 28, 8]], np.float32)


def gaussian_blur(image: UInt8[Array, "h w 3"], size: Int32[Array, ""]) -> UInt8[Array, "h w 3"]:
    """Gaussian blur with OpenCV's own kernel of 3, 5 or 7 taps (1: none), border reflected without its edge pixel."""
    identity = np.zeros((1, 7), np.float32)
    identity[0, 3] = 256
    taps = jnp.asarray(np.concatenate([identity, _KERNELS]) / np.float32(256))[(size - 1) // 2]
    height, width = image.shape[:2]
    total = image.astype(jnp.float32)
    for axis, length in ((1, width), (0, height)):
        padded = jnp.pad(total, [(3, 3) if i == axis else (0, 0) for i in range(3)], mode="reflect")
        total = sum(
            (taps[i] * jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(7)),
            jnp.zeros_like(total),
        )
    return _levels(jnp.floor(total + 0.5))  # products and sums of 256ths twice are exact in 24 bits


def brightness_contrast(image: UInt8[Array, "h w 3"], gain: Scalar, offset: Scalar) -> UInt8[Array, "h w 3"]:
    """x·gain + 255·offset, limited to 0…255 and cut to whole numbers."""
    return _levels(image.astype(jnp.float32) * gain + 255 * offset)


def fancy_pca(image: UInt8[Array, "h w 3"], alpha: Scalar) -> UInt8[Array, "h w 3"]:
    """Add alpha times the image's own colour shift (``pca_shift``), limited to 0…255 and cut to whole numbers."""
    levels = image.astype(jnp.float32)
    planes = [levels[..., i] / 255 for i in range(3)]
    planes = [plane - jnp.mean(plane) for plane in planes]
    count = max(planes[0].size - 1, 1)
    covariance = jnp.stack([jnp.stack([jnp.sum(a * b) / count for b in planes]) for a in planes])
    return _levels(levels + 255 * alpha * pca_shift(covariance, jnp, jax.lax.fori_loop))


def hue_saturation_value(
    image: UInt8[Array, "h w 3"], hue: Scalar, saturation: Scalar, value: Scalar
) -> UInt8[Array, "h w 3"]:
    """Shift the channels of OpenCV's 8-bit HSV (H 0…179, wrapping; S and V 0…255, limited); all 0: none."""
    h, s, v = _to_hsv(image.astype(jnp.float32))
    h = h + hue
    h = jnp.floor(jnp.where(h < 0, h + 180, jnp.where(h >= 180, h - 180, h)))
    s = jnp.floor(jnp.clip(s + saturation, 0, 255))
    v = jnp.floor(jnp.clip(v + value, 0, 255))
    return jnp.where((hue != 0) | (saturation != 0) | (value != 0), _to_rgb(h, s, v), image)


def jpeg(
    image: UInt8[Array, "h w 3"], quality: Int32[Array, ""], subsampling: Subsampling = "4:2:0"
) -> UInt8[Array, "h w 3"]:
    """Compress to JPEG and decode again at libjpeg's quality 1…100 (0: none)."""
    return jnp.where(quality > 0, round_trip(image, jnp.maximum(quality, 1), subsampling), image)


def _to_hsv(image: Array) -> tuple[Array, Array, Array]:
    """OpenCV's 8-bit RGB to HSV: reciprocals with 12 fractional bits, rounded; whole float32 below 2^24 are exact."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    spread = value - jnp.minimum(jnp.minimum(red, green), blue)
    per_value = jnp.where(value > 0, jnp.round((255 << 12) / jnp.maximum(value, 1)), 0)
    per_spread = jnp.where(spread > 0, jnp.round((30 << 12) / jnp.maximum(spread, 1)), 0)
    saturation = jnp.floor((spread * per_value + 2048) / 4096)
    sector = jnp.where(
        value == red,
        green - blue,
        jnp.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = jnp.floor((sector * per_spread + 2048) / 4096)
    return jnp.where(hue < 0, hue + 180, hue), saturation, value


def _to_rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """OpenCV's 8-bit HSV to RGB, cut to whole numbers as its vector code does (its scalar code rounds)."""
    sector = hue * np.float32(6 / 180)
    saturation, value = saturation * np.float32(1 / 255), value * np.float32(1 / 255)

    def channel(offset: int) -> Array:
        k = sector + offset
        k = jnp.where(k >= 6, k - 6, k)
        return value * (1 - saturation * jnp.clip(jnp.minimum(k, 4 - k), 0, 1))

    return _levels(255 * jnp.stack([channel(5), channel(3), channel(1)], -1))


def _levels(values: Array) -> UInt8[Array, "h w 3"]:
    """Limited to 0…255 and cut to whole numbers."""
    return jnp.clip(values, 0, 255).astype(jnp.uint8)
