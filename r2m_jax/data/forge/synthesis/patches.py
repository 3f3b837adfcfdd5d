"""Diffusion of patches: noise added and removed under a learned covariance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from r2m_jax.data.forge.blending import to_uint8
from r2m_jax.data.forge.method import Face, Method, State
from r2m_jax.data.forge.synthesis.texture import refuse_flat

_PATCH = 8  # pixels a side of the denoiser's patches
_STRIDE = 3  # between them; every pixel is the average of about seven
_SAMPLES = 20_000  # patches to fit on, a hundred for each of a patch's 192 dimensions


def fit(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int, effort: float) -> State:
    """Learn the covariance of patches; forgeries are noise-disturbed images, denoised under it in two steps.

    SDEdit (Meng et al. 2022) with the denoiser of a Gaussian scale mixture (Portilla et al. 2003) in place of a
    network: the posterior mean of a patch's eigen-coefficients. The mixture's scale is not integrated out, but taken
    from the patch's energy.
    """
    refuse_flat(generator_images)
    patches = np.concatenate(
        [_sampled(image, seed, i, len(generator_images)) for i, image in enumerate(generator_images)]
    )
    patches = patches - patches.mean(axis=1, keepdims=True)
    flat = patches.reshape(len(patches), -1)
    variances, basis = np.linalg.eigh(flat.T @ flat / len(flat))
    return {"variances": np.maximum(variances, 1e-6), "basis": basis}


def patch_diffusion(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image disturbed by noise and denoised, twice."""
    pixels = face.pixels.astype(np.float64)
    for sigma in (rng.uniform(24, 36), rng.uniform(9, 14)):
        noisy = pixels + sigma * rng.standard_normal(pixels.shape)
        pixels = _denoised(noisy, sigma, state["variances"], state["basis"])
    return to_uint8(pixels)


def _sampled(image: UInt8[np.ndarray, "h w 3"], seed: int, index: int, images: int) -> Float[np.ndarray, "m k 3"]:
    """A share of an image's patches at random places."""
    rng = np.random.default_rng((seed, index))
    windows = sliding_window_view(image, (_PATCH, _PATCH), axis=(0, 1))
    count = -(-_SAMPLES // images)
    rows, columns = rng.integers(windows.shape[0], size=count), rng.integers(windows.shape[1], size=count)
    return windows[rows, columns].reshape(count, 3, -1).swapaxes(1, 2).astype(np.float64)


def _denoised(
    noisy: Float[np.ndarray, "h w 3"],
    sigma: float,
    variances: Float[np.ndarray, " d"],
    basis: Float[np.ndarray, "d d"],
) -> Float[np.ndarray, "h w 3"]:
    """Posterior mean of overlapping patches under a Gaussian scale mixture, averaged where they overlap."""
    height, width = noisy.shape[:2]
    starts = [sorted({*range(0, side - _PATCH + 1, _STRIDE), side - _PATCH}) for side in (height, width)]
    windows = sliding_window_view(noisy, (_PATCH, _PATCH), axis=(0, 1))[np.ix_(*starts)]
    shape = windows.shape
    patches = windows.reshape(shape[0] * shape[1], 3, _PATCH * _PATCH).swapaxes(1, 2)
    mean = patches.mean(axis=1, keepdims=True)
    coefficients = (patches - mean).reshape(len(patches), -1) @ basis
    energy = (coefficients**2).sum(axis=1) - coefficients.shape[1] * sigma**2
    scale = np.maximum(energy, 0) / variances.sum()
    prior = scale[:, None] * variances
    clean = (coefficients * prior / (prior + sigma**2)) @ basis.T
    clean = (clean.reshape(patches.shape) + mean).reshape(shape[0], shape[1], _PATCH, _PATCH, 3)
    total, weight = np.zeros_like(noisy), np.zeros((height, width, 1))
    rows, columns = np.array(starts[0]), np.array(starts[1])
    for down in range(_PATCH):
        for right in range(_PATCH):
            place = np.ix_(rows + down, columns + right)
            total[place] += clean[:, :, down, right]
            weight[place] += 1
    return total / weight


METHODS = (
    Method(
        "patch_diffusion",
        "EFS",
        "Meng et al., SDEdit, ICLR 2022, https://arxiv.org/abs/2108.01073, with a denoiser after Portilla et al., "
        "Scale Mixtures of Gaussians in the Wavelet Domain, IEEE TIP 2003, https://doi.org/10.1109/TIP.2003.818640",
        "noise added and removed under a learned model of patches",
        patch_diffusion,
        fit,
    ),
)
