"""A generative adversarial network: detail invented by a generator that a discriminator has trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from r2m_jax.data.forge.method import Face, Method, State
from r2m_jax.data.forge.synthesis.networks import (
    ADAM,
    CORRECTION,
    Params,
    batches,
    block,
    checked,
    convolve,
    framed,
    into_channels,
    new_block,
    new_convolution,
    on_cpu,
    out_of_channels,
    pooled,
    rate,
    steps_of,
    unframed,
)
from r2m_jax.data.forge.synthesis.texture import refuse_flat
from r2m_jax.data.forge.synthesis.tones import with_tones_of

_FACTOR = 2  # of super-resolution; at four, faces of 256 pixels lose their eyes
_NOISES = 4
_LOUDNESS = 0.1  # of the noise, beside an image of about 0.5: enough to tell two forgeries apart
_WIDTH, _FINE = 64, 32  # channels at a quarter and at half of the resolution
_STEPS = 500
_PEAK = 2e-3
_ADVERSARIAL = 0.01  # weight beside the mean absolute error, reached after a half of the training


def fit(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int, effort: float) -> State:
    """Train generator and discriminator in turn on random crops; the discriminator is not kept."""
    refuse_flat(generator_images)
    return train_pair(generator_images, seed, steps_of(_STEPS, effort))[0]


def gan_super_resolution(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image at half of its resolution, enlarged by the generator."""
    images = framed(face.pixels)
    small = (1, images.shape[1] // _FACTOR, images.shape[2] // _FACTOR, _NOISES)
    noise = rng.standard_normal(small, dtype=np.float32)
    with on_cpu():
        enlarged = _generate()(dict(state), images, noise)
    return with_tones_of(unframed(enlarged, face.pixels.shape[:2]), face.pixels)


def initial_generator(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Untrained parameters: at first the generator enlarges like a cubic interpolation."""
    params = new_convolution(rng, "in", 3 + _NOISES, _FINE) | new_convolution(rng, "down", 4 * _FINE, _WIDTH)
    params |= new_convolution(rng, "up", _WIDTH, 4 * _FINE)
    params |= new_convolution(rng, "out", _FINE, 4 * 3, gain=0.0)
    for name in ("coarse.0", "coarse.1", "coarse.2"):
        params |= new_block(rng, name, _WIDTH)
    return params | new_block(rng, "fine", _FINE)


def initial_discriminator(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Untrained parameters of a classifier of patches (Isola et al. 2017, §3.2.2)."""
    params = new_convolution(rng, "d.in", 4 * 3, 32) | new_convolution(rng, "d.down", 4 * 32, 64)
    return params | new_convolution(rng, "d.middle", 64, 64) | new_convolution(rng, "d.out", 64, 1)


def generate(params: Params, small: Float[Array, "b k l 3"], noise: Float[Array, "b k l n"]) -> Float[Array, "b h w 3"]:
    """Images of twice the height and width, by a U-Net (Isola et al. 2017) beside a cubic interpolation."""
    batch, height, width, _ = small.shape
    entered = convolve(params, "in", jnp.concatenate([small, _LOUDNESS * noise], axis=-1))
    x = convolve(params, "down", into_channels(entered, 2))
    for name in ("coarse.0", "coarse.1", "coarse.2"):
        x = block(params, name, x)
    fine = block(params, "fine", entered + out_of_channels(convolve(params, "up", x), 2))
    enlarged = jax.image.resize(small, (batch, height * _FACTOR, width * _FACTOR, 3), "cubic")
    return enlarged + CORRECTION * out_of_channels(convolve(params, "out", fine), 2)


def judged(params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b k l 1"]:
    """How real each patch of some 30 pixels looks; positive for real."""
    x = jax.nn.leaky_relu(convolve(params, "d.in", into_channels(images, 2)), 0.2)
    x = jax.nn.leaky_relu(convolve(params, "d.down", into_channels(x, 2)), 0.2)
    return convolve(params, "d.out", jax.nn.leaky_relu(convolve(params, "d.middle", x), 0.2))


def discriminator_loss(real: Float[Array, "b k l 1"], forged: Float[Array, "b k l 1"]) -> Float[Array, ""]:
    """Hinge loss (Lim and Ye 2017, https://arxiv.org/abs/1705.02894)."""
    return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + forged))


def train_pair(
    images: UInt8[np.ndarray, "n h w 3"], seed: int, steps: int
) -> tuple[dict[str, np.ndarray], Float[np.ndarray, "steps 2"]]:
    """Train both networks.

    Returns:
        The generator's parameters, and its mean absolute error and the discriminator's loss before every step.

    Raises:
        InputError: the training left the finite numbers.
    """
    rng = np.random.default_rng((seed, 3))
    generator, discriminator = initial_generator(rng), initial_discriminator(rng)
    update, losses = _update(), []
    with on_cpu():
        states = ADAM.init(generator), ADAM.init(discriminator)
        for step, (crops, noise) in enumerate(batches(images, steps, _NOISES, rng)):
            generator, discriminator, states, values = update(
                generator,
                discriminator,
                states,
                rate(step, steps, _PEAK),
                np.float32(_ADVERSARIAL * np.clip(4 * step / steps - 1, 0, 1)),
                rng.integers(4, size=2),
                crops,
                noise,
            )
            losses.append(values)
    return checked("generator", generator), np.array(losses, dtype=np.float32)


@functools.cache
def _update() -> Callable[..., Any]:
    @jax.jit
    def update(
        generator: Params,
        discriminator: Params,
        states: tuple[optax.OptState, optax.OptState],
        rate: Array,
        weight: Array,
        shift: Array,
        images: Array,
        noise: Array,
    ) -> tuple[Params, Params, tuple[optax.OptState, optax.OptState], Array]:
        small = pooled(images, _FACTOR)
        drawn = noise[:, : small.shape[1], : small.shape[2]]

        def moved(images: Array) -> Array:
            # The discriminator reads squares of 4 × 4 pixels; were they always the same, its gradients would print
            # their grid on the forgeries.
            return jnp.roll(jnp.roll(images, shift[0], axis=1), shift[1], axis=2)

        def generator_loss(params: Params) -> tuple[Array, tuple[Array, Array]]:
            forged = generate(params, small, drawn)
            error = jnp.mean(jnp.abs(forged - images))
            return error - weight * jnp.mean(judged(discriminator, moved(forged))), (forged, error)

        gradients, (forged, error) = jax.grad(generator_loss, has_aux=True)(generator)
        moves, first = ADAM.update(gradients, states[0])
        generator = jax.tree.map(lambda p, m: p - rate * m, generator, moves)

        def opposing_loss(params: Params) -> Array:
            return discriminator_loss(judged(params, moved(images)), judged(params, moved(forged)))

        value, gradients = jax.value_and_grad(opposing_loss)(discriminator)
        moves, second = ADAM.update(gradients, states[1])
        discriminator = jax.tree.map(lambda p, m: p - rate * m, discriminator, moves)
        return generator, discriminator, (first, second), jnp.stack([error, value])

    return update


@functools.cache
def _generate() -> Callable[..., Any]:
    @jax.jit
    def enlarge(params: Params, images: Array, noise: Array) -> Array:
        return generate(params, pooled(images, _FACTOR), noise)

    return enlarge


METHODS = (
    Method(
        "gan_super_resolution",
        "EFS",
        "Goodfellow et al., Generative Adversarial Nets, NeurIPS 2014, https://arxiv.org/abs/1406.2661; Ledig et al., "
        "SRGAN, CVPR 2017, https://arxiv.org/abs/1609.04802; Isola et al., pix2pix, CVPR 2017, "
        "https://arxiv.org/abs/1611.07004",
        "the image at half of its resolution, its detail invented by an adversarially trained generator",
        gan_super_resolution,
        fit,
    ),
)
