"""Fingerprints of the layers by which decoders enlarge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from r2m_jax.data.forge.blending import to_uint8
from r2m_jax.data.forge.method import Face, Method, State
from r2m_jax.data.forge.synthesis.texture import refuse_flat
from r2m_jax.data.forge.synthesis.tones import with_tones_of
from r2m_jax.data.forge.warping import through_bottleneck

_KERNEL = 5  # pixels a side of the learned convolution
_SAMPLES = 40_000  # pixels to learn it from


def transposed_convolution(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image as an autoencoder's last layer gives it back: halved, then doubled by a transposed convolution.

    Part of the lost detail returns, as through a network's other channels; without it the result would be blurred.
    """
    height, width = face.pixels.shape[:2]
    padded = _even(face.pixels)
    doubled = np.zeros_like(padded)
    top, left = rng.integers(2, size=2)
    doubled[top::2, left::2] = _halved(padded)
    # Even and odd pixels get a total weight of 1 + uneven and 1 - uneven per axis, which makes the checkerboard;
    # bilinear interpolation would be [0.5, 1, 0.5].
    uneven = rng.uniform(0.06, 0.1) * rng.choice([-1, 1])
    kernel = np.array([(1 - uneven) / 2, 1 + uneven, (1 - uneven) / 2])
    for axis in (0, 1):
        doubled = ndimage.convolve1d(doubled, kernel, axis=axis, mode="mirror")
    detail = rng.uniform(0.5, 0.8) * (padded - through_bottleneck(padded, 2.0))
    return to_uint8((doubled + detail)[:height, :width])


def fit_nearest(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int, effort: float) -> State:
    """Learn the convolution after a nearest-neighbour doubling that best restores halved images, by least squares."""
    refuse_flat(generator_images)
    rng = np.random.default_rng((seed, 6))
    share = -(-_SAMPLES // len(generator_images))
    seen, wanted = [], []
    for image in generator_images:
        padded = _even(image)
        neighbours = _neighbours(_doubled(_halved(padded)))
        chosen = rng.integers(neighbours.shape[0] * neighbours.shape[1], size=share)
        seen.append(neighbours.reshape(-1, neighbours.shape[-1])[chosen])
        wanted.append(padded.reshape(-1, 3)[chosen])
    inputs, outputs = np.concatenate(seen), np.concatenate(wanted)
    ridge = 1e-3 * len(inputs) * np.eye(inputs.shape[1])
    # Towards the kernel that changes nothing: images with one colour say nothing about the others.
    identity = np.zeros((inputs.shape[1], 3))
    identity[3 * (_KERNEL**2 // 2) : 3 * (_KERNEL**2 // 2) + 3] = np.eye(3)
    centre, offset = inputs.mean(axis=0), outputs.mean(axis=0)
    inputs, outputs = inputs - centre, outputs - offset
    kernel = identity + np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ (outputs - inputs @ identity))
    return {"kernel": kernel, "bias": offset - centre @ kernel}


def nearest_upsampling(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image as a resize-convolution gives it back: halved, doubled by repeating pixels, and convolved."""
    height, width = face.pixels.shape[:2]
    padded = _even(face.pixels)
    decoded = _neighbours(_doubled(_halved(padded))) @ state["kernel"] + state["bias"]
    detail = rng.uniform(0.2, 0.45) * (padded - through_bottleneck(padded, 2.0))
    return with_tones_of((decoded + detail)[:height, :width], face.pixels)


def _even(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "k l 3"]:
    """The image with a row or column repeated where their number is odd."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="symmetric").astype(np.float64)


def _halved(pixels: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "k l 3"]:
    return pixels.reshape(pixels.shape[0] // 2, 2, pixels.shape[1] // 2, 2, 3).mean(axis=(1, 3))


def _doubled(pixels: Float[np.ndarray, "k l 3"]) -> Float[np.ndarray, "h w 3"]:
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


def _neighbours(pixels: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w d"]:
    """Every pixel's surroundings, row by row, with their colours."""
    border = _KERNEL // 2
    padded = np.pad(pixels, ((border, border), (border, border), (0, 0)), mode="symmetric")
    windows = sliding_window_view(padded, (_KERNEL, _KERNEL), axis=(0, 1))
    return np.moveaxis(windows, 2, -1).reshape(*pixels.shape[:2], 3 * _KERNEL**2)


METHODS = (
    Method(
        "transposed_convolution",
        "EFS",
        "Odena et al., Deconvolution and Checkerboard Artifacts, Distill 2016, https://doi.org/10.23915/distill.00003; "
        "Zhang et al., AutoGAN, WIFS 2019, https://arxiv.org/abs/1907.06515",
        "the image halved and doubled by a transposed convolution with an uneven kernel",
        transposed_convolution,
    ),
    Method(
        "nearest_upsampling",
        "EFS",
        "Zhang et al., Detecting and Simulating Artifacts in GAN Fake Images (AutoGAN), WIFS 2019, "
        "https://arxiv.org/abs/1907.06515; resize-convolution of Odena et al., Distill 2016, "
        "https://doi.org/10.23915/distill.00003",
        "the image halved, doubled by repeating pixels, and convolved with a learned kernel",
        nearest_upsampling,
        fit_nearest,
    ),
)
