"""A generative adversarial network: detail invented by a generator that a discriminator has trained."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from r2m_jax.data.forge.method import Face, Method, State
from r2m_jax.data.forge.synthesis.networks import (
    ADAM,
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

_FACTOR = 4  # of super-resolution, as in Ledig et al. 2017
_NOISES = 4
_WIDTH, _FINE = 64, 32  # channels at a quarter and at half of the resolution
_STEPS = 450
_PEAK = 1e-3
_ADVERSARIAL = 0.05  # weight beside the mean absolute error


def fit(generator_images: UInt8[np.ndarray, "n h w 3"], seed: int, effort: float) -> State:
    """Train generator and discriminator in turn on random crops; the discriminator is not kept."""
    refuse_flat(generator_images)
    return train_pair(generator_images, seed, steps_of(_STEPS, effort))[0]


def gan_super_resolution(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image at a quarter of its resolution, enlarged by the generator."""
    images = framed(face.pixels)
    small = (1, images.shape[1] // _FACTOR, images.shape[2] // _FACTOR, _NOISES)
    noise = rng.standard_normal(small, dtype=np.float32)
    with on_cpu():  # type: ignore[attr-defined]
        enlarged = _generate()(dict(state), images, noise)
    return with_tones_of(unframed(enlarged, face.pixels.shape[:2]), face.pixels)


def initial_generator(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Untrained parameters: at first the generator enlarges like a cubic interpolation."""
    params = new_convolution(rng, "in", 3 + _NOISES, _WIDTH) | new_convolution(rng, "up", _WIDTH, 4 * _FINE)
    params |= new_convolution(rng, "out", _FINE, 4 * 3, gain=0.0)
    for name in ("coarse.0", "coarse.1", "coarse.2"):
        params |= new_block(rng, name, _WIDTH)
    return params | new_block(rng, "fine", _FINE)


def initial_discriminator(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Untrained parameters of a classifier of patches (Isola et al. 2017, §3.2.2)."""
    params = new_convolution(rng, "d.in", 4 * 3, 32) | new_convolution(rng, "d.down", 4 * 32, 64)
    return params | new_convolution(rng, "d.middle", 64, 64) | new_convolution(rng, "d.out", 64, 1)


def generate(params: Params, small: Float[Array, "b k l 3"], noise: Float[Array, "b k l n"]) -> Float[Array, "b h w 3"]:
    """Images of four times the height and width."""
    batch, height, width, _ = small.shape
    x = convolve(params, "in", jnp.concatenate([small, noise], axis=-1))
    for name in ("coarse.0", "coarse.1", "coarse.2"):
        x = block(params, name, x)
    fine = block(params, "fine", out_of_channels(convolve(params, "up", x), 2))
    enlarged = jax.image.resize(small, (batch, height * _FACTOR, width * _FACTOR, 3), "cubic")
    return enlarged + out_of_channels(convolve(params, "out", fine), 2)


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
    with on_cpu():  # type: ignore[attr-defined]
        states = ADAM.init(generator), ADAM.init(discriminator)
        for step, (crops, noise) in enumerate(batches(images, steps, _NOISES, rng)):
            generator, discriminator, states, values = update(
                generator, discriminator, states, rate(step, steps, _PEAK), crops, noise
            )
            losses.append(values)
    return checked("generator", generator), np.array(losses, dtype=np.float32)


@functools.cache
def _update() -> object:
    @jax.jit
    def update(
        generator: Params,
        discriminator: Params,
        states: tuple[optax.OptState, optax.OptState],
        rate: Array,
        images: Array,
        noise: Array,
    ) -> tuple[Params, Params, tuple[optax.OptState, optax.OptState], Array]:
        small = pooled(images, _FACTOR)
        drawn = noise[:, : small.shape[1], : small.shape[2]]

        def generator_loss(params: Params) -> tuple[Array, tuple[Array, Array]]:
            forged = generate(params, small, drawn)
            error = jnp.mean(jnp.abs(forged - images))
            return error - _ADVERSARIAL * jnp.mean(judged(discriminator, forged)), (forged, error)

        gradients, (forged, error) = jax.grad(generator_loss, has_aux=True)(generator)
        moves, first = ADAM.update(gradients, states[0])
        generator = jax.tree.map(lambda p, m: p - rate * m, generator, moves)

        def opposing_loss(params: Params) -> Array:
            return discriminator_loss(judged(params, images), judged(params, jax.lax.stop_gradient(forged)))

        value, gradients = jax.value_and_grad(opposing_loss)(discriminator)
        moves, second = ADAM.update(gradients, states[1])
        discriminator = jax.tree.map(lambda p, m: p - rate * m, discriminator, moves)
        return generator, discriminator, (first, second), jnp.stack([error, value])

    return update


@functools.cache
def _generate() -> object:
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
        "the image at a quarter of its resolution, its detail invented by an adversarially trained generator",
        gan_super_resolution,
        fit,
    ),
)
