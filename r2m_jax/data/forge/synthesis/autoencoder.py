"""A variational autoencoder: images coded in few latents and decoded again."""

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

LATENTS = 4
"""Channels of a latent, which stands for 4 × 4 pixels in three colours: a twelfth of the numbers."""
_CELL = 4
_WIDTH = 64
_FINE = 32  # channels at half resolution
_STEPS = 300
_PEAK = 2e-3


def fit(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int, effort: float) -> State:
    """Train encoder and decoder on random crops.

    The evidence lower bound of Kingma and Welling 2014 with the likelihood's variance at its optimum (Rybkin et al.,
    "Simple and Effective VAE Training with Calibrated Decoders", ICML 2021, https://arxiv.org/abs/2006.13202).
    """
    refuse_flat(generator_images)
    rng = np.random.default_rng((seed, 1))
    params = initial(generator_images, rng)
    steps = steps_of(_STEPS, effort)
    return train("autoencoder", loss, params, generator_images, steps=steps, noises=LATENTS, peak=_PEAK, rng=rng)[0]


def vae_reconstruction(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image decoded from a sample of its latents' posterior, drawn nearer to the mean than in training."""
    images = framed(face.pixels)
    height, width = images.shape[1] // _CELL, images.shape[2] // _CELL
    noise = rng.standard_normal((1, height, width, LATENTS), dtype=np.float32) * np.float32(rng.uniform(0.4, 0.9))
    with on_cpu():
        decoded = _reconstruct()(dict(state), images, noise)
    return with_tones_of(unframed(decoded, face.pixels.shape[:2]), face.pixels)


def initial(images: UInt8[np.ndarray, "n h w 3"], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Untrained parameters: a linear autoencoder of 4 × 4 pixels, to which the residual blocks add nothing yet.

    The linear autoencoder is the one of principal components, to which its own training would lead.
    """
    mean, directions, deviations = principal_cells(images, _CELL, rng)
    directions, spread = directions[:LATENTS], np.maximum(deviations[:LATENTS], 1e-2)[:, None]
    encode = (directions / spread).T
    params = {
        "encoder.linear.kernel": encode[None, None].astype(np.float32),
        "encoder.linear.bias": (-mean @ encode).astype(np.float32),
        "decoder.linear.kernel": (directions * spread)[None, None].astype(np.float32),
        "decoder.linear.bias": mean.astype(np.float32),
    }
    params |= new_convolution(rng, "encoder.in", _CELL * _CELL * 3, _WIDTH)
    params |= new_convolution(rng, "encoder.out", _WIDTH, 2 * LATENTS, gain=0.0)
    params["encoder.out.bias"][LATENTS:] = -4.0  # log variance: latents at first carry e² : 1 signal to noise
    params |= new_convolution(rng, "decoder.in", LATENTS, _WIDTH)
    params |= new_convolution(rng, "decoder.up", _WIDTH, 4 * _FINE)
    params |= new_convolution(rng, "decoder.out", _FINE, 4 * 3, gain=0.0)
    for name in ("encoder.0", "encoder.1", "decoder.0", "decoder.1"):
        params |= new_block(rng, name, _WIDTH)
    return params | new_block(rng, "decoder.fine", _FINE)


def encode(params: Params, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b k l z"], Float[Array, "b k l z"]]:
    """Mean and log variance of the latents' posterior."""
    cells = into_channels(images, _CELL)
    x = convolve(params, "encoder.in", cells)
    for name in ("encoder.0", "encoder.1"):
        x = block(params, name, x)
    mean, log_variance = jnp.split(convolve(params, "encoder.out", x), 2, axis=-1)
    return convolve(params, "encoder.linear", cells) + mean, jnp.clip(log_variance, -12.0, 2.0)


def decode(params: Params, latents: Float[Array, "b k l z"]) -> Float[Array, "b h w 3"]:
    """Images from latents."""
    x = convolve(params, "decoder.in", latents)
    for name in ("decoder.0", "decoder.1"):
        x = block(params, name, x)
    fine = block(params, "decoder.fine", out_of_channels(convolve(params, "decoder.up", x), 2))
    linear = out_of_channels(convolve(params, "decoder.linear", latents), _CELL)
    return linear + CORRECTION * out_of_channels(convolve(params, "decoder.out", fine), 2)


def loss(params: Params, images: Float[Array, "b h w 3"], noise: Float[Array, "b h w z"]) -> Float[Array, ""]:
    """Negative evidence lower bound per number of the image, in nats and up to a constant."""
    mean, log_variance = encode(params, images)
    drawn = noise[:, : mean.shape[1], : mean.shape[2]]
    decoded = decode(params, mean + jnp.exp(log_variance / 2) * drawn)
    divergence = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum() / images.size
    return 0.5 * jnp.log(jnp.mean((decoded - images) ** 2) + 1e-6) + divergence


@functools.cache
def _reconstruct() -> Callable[..., Any]:
    @jax.jit
    def reconstruct(params: Params, images: Array, noise: Array) -> Array:
        mean, log_variance = encode(params, images)
        return decode(params, mean + jnp.exp(log_variance / 2) * noise)

    return reconstruct


METHODS = (
    Method(
        "vae_reconstruction",
        "EFS",
        "Kingma and Welling, Auto-Encoding Variational Bayes, ICLR 2014, https://arxiv.org/abs/1312.6114; "
        "reconstructions as in Ricker et al., AEROBLADE, CVPR 2024, https://arxiv.org/abs/2401.17879",
        "the image decoded from a sample of the latents of a variational autoencoder",
        vae_reconstruction,
        fit,
    ),
)
