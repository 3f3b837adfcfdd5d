"""Eigenfaces: faces drawn from the principal components of the real ones, their texture from those of patches."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from r2m_jax.data.forge.method import Face, Method, State
from r2m_jax.data.forge.synthesis.texture import refuse_flat
from r2m_jax.data.forge.synthesis.tones import with_tones_of

SIDE = 48
"""Pixels a side at which faces are compared; finer detail is texture."""
_FACES = 100  # components, at most
_PATCH = 8
_STRIDE = 4
_TEXTURES = 24  # components of a patch of texture that are kept; the others are drawn
_SAMPLES = 12_000


def fit(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int, effort: float) -> State:
    """Principal components of the images at 48 × 48 pixels, and of patches of what they leave out."""
    refuse_flat(generator_images)
    small = np.stack([_small(image) for image in generator_images]).reshape(len(generator_images), -1)
    mean = small.mean(axis=0)
    _, singular, directions = np.linalg.svd(small - mean, full_matrices=False)
    count = min(_FACES, len(small) - 1)
    state = {
        "mean": mean,
        "components": directions[:count],
        "deviations": singular[:count] / np.sqrt(max(len(small) - 1, 1)),
    }
    rng = np.random.default_rng((seed, 5))
    share = -(-_SAMPLES // len(generator_images))
    patches = np.concatenate(
        [_sampled(_texture(image, small_), share, rng) for image, small_ in zip(generator_images, small, strict=True)]
    )
    spreads, basis = np.linalg.eigh(patches.T @ patches / len(patches))
    return state | {"texture": basis[:, ::-1].T, "texture_variances": np.maximum(spreads[::-1], 1e-6)}


def eigenface(face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """A face drawn near the image's own, as Liu et al. 2007 hallucinate one: components globally, texture locally.

    Its coefficients are correlated with the image's, so that hair and background stay in place; where images are not
    aligned, the components are lights and shadows, and the content remains.
    """
    height, width = face.pixels.shape[:2]
    small = _small(face.pixels).ravel()
    coefficients = state["components"] @ (small - state["mean"])
    correlation = rng.uniform(0.88, 0.96)
    drawn = state["deviations"] * rng.standard_normal(len(coefficients))
    sampled = correlation * coefficients + np.sqrt(1 - correlation**2) * drawn
    moved = ((sampled - coefficients) @ state["components"]).reshape(SIDE, SIDE, 3)
    base = _enlarged(small.reshape(SIDE, SIDE, 3) + moved, (height, width))
    texture = _texture(face.pixels, small)
    return with_tones_of(base + _redrawn(texture, state, rng), face.pixels)


def _small(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "s s 3"]:
    method = cv2.INTER_AREA if min(image.shape[:2]) >= SIDE else cv2.INTER_LINEAR
    return cv2.resize(image.astype(np.float32), (SIDE, SIDE), interpolation=method).astype(np.float64)


def _enlarged(small: Float[np.ndarray, "s s 3"], shape: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    return cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _texture(image: UInt8[np.ndarray, "h w 3"], small: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    """What the small image does not show."""
    return image - _enlarged(small.reshape(SIDE, SIDE, 3), image.shape[:2])


def _sampled(texture: Float[np.ndarray, "h w 3"], count: int, rng: np.random.Generator) -> Float[np.ndarray, "m d"]:
    """Patches at random places, row by row with their colours."""
    windows = sliding_window_view(texture, (_PATCH, _PATCH), axis=(0, 1))
    rows, columns = rng.integers(windows.shape[0], size=count), rng.integers(windows.shape[1], size=count)
    return windows[rows, columns].reshape(count, -1)


def _redrawn(texture: Float[np.ndarray, "h w 3"], state: State, rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """Texture from its patches' leading components; the others are drawn, as loud as the patch's own were.

    Patches overlap by half under a window whose squares add up to one, so that what is drawn keeps its power.
    """
    height, width = texture.shape[:2]
    padded = np.pad(
        texture, ((_STRIDE, _PATCH - height % _STRIDE), (_STRIDE, _PATCH - width % _STRIDE), (0, 0)), mode="symmetric"
    )
    windows = sliding_window_view(padded, (_PATCH, _PATCH), axis=(0, 1))[::_STRIDE, ::_STRIDE]
    rows, columns = windows.shape[:2]
    edge = np.sin(np.pi * (np.arange(_PATCH) + 0.5) / _PATCH)
    window = np.outer(edge, edge)
    coefficients = (windows * window).reshape(rows * columns, -1) @ state["texture"].T
    rest = coefficients[:, _TEXTURES:]
    profile = state["texture_variances"][_TEXTURES:]
    loudness = (rest**2).sum(axis=1, keepdims=True) / profile.sum()
    drawn = np.sqrt(loudness * profile) * rng.standard_normal(rest.shape)
    patches = np.concatenate([coefficients[:, :_TEXTURES], drawn], axis=1) @ state["texture"]
    patches = patches.reshape(rows, columns, 3, _PATCH, _PATCH) * window
    total = np.zeros_like(padded)
    for down in range(_PATCH):
        for right in range(_PATCH):
            target = total[down::_STRIDE, right::_STRIDE][:rows, :columns]
            target += patches[..., down, right]
    return total[_STRIDE : _STRIDE + height, _STRIDE : _STRIDE + width]


METHODS = (
    Method(
        "eigenface",
        "EFS",
        "Sirovich and Kirby, JOSA A 1987, https://doi.org/10.1364/JOSAA.4.000519; Turk and Pentland, Eigenfaces for "
        "Recognition, 1991, https://doi.org/10.1162/jocn.1991.3.1.71; texture after Liu et al., Face Hallucination, "
        "IJCV 2007, https://doi.org/10.1007/s11263-006-0029-5",
        "a face drawn from the real ones' principal components, its finest texture drawn too",
        eigenface,
        fit,
    ),
)
