"""Keeping an image's tones: a generator of photographs gets brightness and contrast right before anything else."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from r2m_jax.data.forge.blending import to_uint8

_ROUNDS = 3  # clipping takes back a little of the contrast that each round gives
_STRETCH = (0.5, 1.6)  # of contrast, at most: a decoder that gave almost nothing is not blown up to noise


def with_tones_of(forged: Float[np.ndarray, "h w 3"], source: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The forgery with each channel's mean and standard deviation brought to the source's.

    Reinhard et al., "Color Transfer between Images", IEEE CG&A 2001, https://doi.org/10.1109/38.946629, in RGB. Without
    it, a threshold on an image's contrast would tell every decoder that smooths.

    Args:
        forged: grey levels, also beyond 0 … 255.
        source: the real image.

    Returns:
        The forgery in whole grey levels.
    """
    target = source.astype(np.float64)
    mean, spread = target.mean(axis=(0, 1)), target.std(axis=(0, 1))
    result = forged.astype(np.float64)
    for _ in range(_ROUNDS):
        stretch = np.clip(spread / np.maximum(result.std(axis=(0, 1)), 1e-6), *_STRETCH)
        result = np.clip((result - result.mean(axis=(0, 1))) * stretch + mean, 0, 255)
    return to_uint8(result)
