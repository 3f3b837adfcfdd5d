"""Denoising diffusion: noise added to an image and taken away again by a trained network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from r2m_jax.data.forge.method import Face, Method, State
from r2m_jax.data.forge.synthesis.networks import (
    CORRECTION,
    Params,
    block,
    convolve,
    framed,
    into_channels,
    new_block,
    new_convolution,
    on_cpu,
    out_of_channels,
    principal_cells,
    steps_of,
    train,
    unframed,
)
from r2m_jax.data.forge.synthesis.texture import refuse_flat
from r2m_jax.data.forge.synthesis.tones import with_tones_of

TIMES = 1000
"""Steps of the full chain."""
DEEPEST = 75
"""Deepest step forging starts from: noise of 31 grey levels, under which a face's features are still to be seen."""
_SHALLOWEST = 45
_JUMPS = 5  # DDIM steps back
_FREQUENCIES = 8  # of the embedding of time
_CELL = 4
_CELL_ARRAYS = ("mean", "directions", "variances")
_COARSE, _FINE = 64, 32  # channels at a quarter and at half of the resolution
_STEPS = 800
_PEAK = 3e-3


def signal_share(times: int = TIMES) -> Float[np.ndarray, " t"]:
    """``ᾱ_t`` for t = 0 … times, the share of the image's variance that is left; ``ᾱ_0 = 1``.

    Betas rise linearly from 1e-4 to 0.02 (Ho et al. 2020, §4).
    """
    betas = np.linspace(1e-4, 0.02, times)
    return np.concatenate([[1.0], np.cumprod(1 - betas)])


def fit(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int, effort: float) -> State:
    """Train the network that predicts the noise in random crops, at the noise levels forging meets."""
    refuse_flat(generator_images)
    rng = np.random.default_rng((seed, 2))
    steps, params = steps_of(_STEPS, effort), initial(generator_images, rng)
    return train("noise predictor", loss, params, generator_images, steps=steps, noises=4, peak=_PEAK, rng=rng)[0]


def ddpm_edit(face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """The image disturbed by noise up to a random time (SDEdit) and led back in five deterministic steps (DDIM)."""
    images = framed(face.pixels)
    share = signal_share()
    times = np.rint(np.linspace(rng.integers(_SHALLOWEST, DEEPEST + 1), 0, _JUMPS + 1)).astype(int)
    noise = rng.standard_normal(images.shape, dtype=np.float32)
    noisy = np.sqrt(share[times[0]]) * images + np.sqrt(1 - share[times[0]]) * noise
    with on_cpu():
        restored = _restore()(
            dict(state), noisy.astype(np.float32), times.astype(np.float32), share[times].astype(np.float32)
        )
    return with_tones_of(unframed(restored, face.pixels.shape[:2]), face.pixels)


def initial(images: UInt8[np.ndarray, "n h w 3"], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Untrained parameters of a U-Net (Ronneberger et al. 2015) of two resolutions, which at first adds nothing.

    Beside it stands the best linear prediction from squares of 4 × 4 pixels, the Wiener filter in their principal
    components; it is not trained further.
    """
    mean, directions, deviations = principal_cells(images, _CELL, rng)
    params = {"cell.mean": mean, "cell.directions": directions, "cell.variances": deviations**2}
    conditions = 2 * _FREQUENCIES
    params |= new_convolution(rng, "in", 2 * 4 * 3, _FINE) | new_convolution(rng, "down", 4 * _FINE, _COARSE)
    params |= new_convolution(rng, "up", _COARSE, 4 * _FINE) | new_convolution(rng, "out", _FINE, 4 * 3, gain=0.0)
    for name in ("fine.0", "fine.1"):
        params |= new_block(rng, name, _FINE, conditions=conditions)
    for name in ("coarse.0", "coarse.1", "coarse.2"):
        params |= new_block(rng, name, _COARSE, conditions=conditions)
    return params


def linear_noise(params: Params, noisy: Float[Array, "b h w 3"], share: Float[Array, " b"]) -> Float[Array, "b h w 3"]:
    """The noise that is expected in normally distributed squares of 4 × 4 pixels."""
    mean, directions, variances = (jax.lax.stop_gradient(jnp.asarray(params[f"cell.{n}"])) for n in _CELL_ARRAYS)
    share = share[:, None, None, None]
    coefficients = (into_channels(noisy, _CELL) - jnp.sqrt(share) * mean) @ directions.T
    expected = jnp.sqrt(1 - share) * coefficients / (share * variances + 1 - share)
    return out_of_channels(expected @ directions, _CELL)


def predicted_noise(
    params: Params, noisy: Float[Array, "b h w 3"], times: Float[Array, " b"], share: Float[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """The noise, of variance 1, in images that were disturbed up to a time, at which ``ᾱ`` is the share."""
    waves = 2.0 ** jnp.arange(_FREQUENCIES) * (times[:, None] / TIMES) * jnp.pi / 2
    condition = jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], axis=1)[:, None, None]
    linear = linear_noise(params, noisy, share)
    entered = convolve(params, "in", into_channels(jnp.concatenate([noisy, linear], axis=-1), 2))
    fine = block(params, "fine.0", entered, condition)
    coarse = convolve(params, "down", into_channels(fine, 2))
    for name in ("coarse.0", "coarse.1", "coarse.2"):
        coarse = block(params, name, coarse, condition)
    fine = block(params, "fine.1", fine + out_of_channels(convolve(params, "up", coarse), 2), condition)
    return linear + CORRECTION * out_of_channels(convolve(params, "out", fine), 2)


def loss(params: Params, images: Float[Array, "b h w 3"], noise: Float[Array, "b h w 4"]) -> Float[Array, ""]:
    """Mean squared error of the predicted noise, equation 14 of Ho et al. 2020, for times up to :data:`DEEPEST`."""
    shares = jnp.asarray(signal_share()[: DEEPEST + 1], jnp.float32)
    # The fourth channel of noise chooses the time: a standard normal number's quantile is uniform.
    chance = jax.scipy.stats.norm.cdf(noise[:, 0, 0, 3])
    times = 1 + jnp.floor(chance * DEEPEST).astype(jnp.int32).clip(0, DEEPEST - 1)
    share, drawn = shares[times], noise[..., :3]
    left = share[:, None, None, None]
    noisy = jnp.sqrt(left) * images + jnp.sqrt(1 - left) * drawn
    return jnp.mean((predicted_noise(params, noisy, times.astype(jnp.float32), share) - drawn) ** 2)


def step_back(
    noisy: Float[Array, "b h w 3"],
    noise: Float[Array, "b h w 3"],
    share: Float[Array, ""],
    next_share: Float[Array, ""],
) -> Float[Array, "b h w 3"]:
    """The deterministic step of DDIM: equation 12 of Song et al. 2021 without new noise.

    Args:
        noisy: image at the present time.
        noise: the noise in it.
        share: ``ᾱ`` of the present time.
        next_share: of the time to go to.
    """
    clean = (noisy - jnp.sqrt(1 - share) * noise) / jnp.sqrt(share)
    return jnp.sqrt(next_share) * clean + jnp.sqrt(1 - next_share) * noise


@functools.cache
def _restore() -> Callable[..., Any]:
    @jax.jit
    def restore(params: Params, noisy: Array, times: Array, shares: Array) -> Array:
        def back(images: Array, at: tuple[Array, Array, Array]) -> tuple[Array, None]:
            time, share, next_share = at
            noise = predicted_noise(params, images, time[None], share[None])
            return step_back(images, noise, share, next_share), None

        return jax.lax.scan(back, noisy, (times[:-1], shares[:-1], shares[1:]))[0]

    return restore


METHODS = (
    Method(
        "ddpm_edit",
        "EFS",
        "Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020, https://arxiv.org/abs/2006.11239; Meng et "
        "al., SDEdit, ICLR 2022, https://arxiv.org/abs/2108.01073; Song et al., DDIM, ICLR 2021, "
        "https://arxiv.org/abs/2010.02502",
        "noise added and taken away by a network trained on the real images",
        ddpm_edit,
        fit,
    ),
)
