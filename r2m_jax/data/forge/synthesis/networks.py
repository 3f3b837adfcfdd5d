"""Small fully convolutional networks in JAX, and how they are trained on crops of images.

Parameters are a flat dict of arrays, ``<layer>.kernel`` and ``<layer>.bias``: the form in which a method's state is
stored. Resolution changes by moving pixels into channels and back (Shi et al., "Real-Time Single Image and Video
Super-Resolution", CVPR 2016, https://arxiv.org/abs/1609.05158), not by strides: the gradients of strided convolutions
are several times slower on CPUs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from r2m_jax.errors import InputError

CROP = 64
"""Pixels a side of the crops networks train on."""
SIDE = 64
"""Images are padded to multiples of it: few shapes are compiled, and every network can halve them."""
CORRECTION = 0.1
"""Share at which a network's output is added to the linear estimate beside it: Adam's first steps are as large for
every weight, and would otherwise spoil an estimate that is good from the start."""
_BATCH = 8

Params: TypeAlias = Mapping[str, Array | np.ndarray]
Loss: TypeAlias = Callable[[Params, Float[Array, "b h w 3"], Float[Array, "b h w n"]], Float[Array, ""]]
"""``(params, images, noise) -> loss``; images run from -1 to 1, noise is standard normal."""
Update: TypeAlias = Callable[..., tuple[Params, optax.OptState, Float[Array, ""]]]


def on_cpu() -> AbstractContextManager[object]:
    """Context in which arrays go to the first CPU: forging runs in several processes, which cannot share a GPU."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def new_convolution(
    rng: np.random.Generator, name: str, inputs: int, outputs: int, *, size: int = 3, gain: float = 1.0
) -> dict[str, np.ndarray]:
    """Parameters of a convolution, after He et al. 2015, https://arxiv.org/abs/1502.01852.

    Args:
        rng: random source.
        name: of the layer.
        inputs, outputs: channels.
        size: of the kernel in pixels.
        gain: factor on the weights; 0 for a layer that at first gives nothing.
    """
    weights = rng.standard_normal((size, size, inputs, outputs)) * gain * np.sqrt(2 / (size * size * inputs))
    return {f"{name}.kernel": weights.astype(np.float32), f"{name}.bias": np.zeros(outputs, np.float32)}


def new_block(rng: np.random.Generator, name: str, channels: int, *, conditions: int = 0) -> dict[str, np.ndarray]:
    """Parameters of a residual block, which at first passes its input on."""
    params = new_convolution(rng, f"{name}.first", channels, channels)
    params |= new_convolution(rng, f"{name}.second", channels, channels, gain=0.0)
    if conditions:
        params |= new_convolution(rng, f"{name}.condition", conditions, channels, size=1)
    return params


def convolve(params: Params, name: str, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
    """A convolution that keeps height and width."""
    kernel = jnp.asarray(params[f"{name}.kernel"])
    out = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return out + params[f"{name}.bias"]


def block(
    params: Params, name: str, x: Float[Array, "b h w c"], condition: Float[Array, "b 1 1 n"] | None = None
) -> Float[Array, "b h w c"]:
    """Residual block (He et al. 2016, full pre-activation): two convolutions, a condition added between them.

    Normalisation is over each pixel's channels (Karras et al. 2018, https://arxiv.org/abs/1710.10196, §4.2), so that
    crops and whole images are treated alike.
    """
    inner = convolve(params, f"{name}.first", jax.nn.silu(_normalised(x)))
    if condition is not None:
        inner = inner + convolve(params, f"{name}.condition", condition)
    return x + convolve(params, f"{name}.second", jax.nn.silu(_normalised(inner)))


def _normalised(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def into_channels(x: Float[Array, "b h w c"], factor: int) -> Float[Array, "b k l d"]:
    """Squares of ``factor × factor`` pixels become one pixel with their channels, row by row."""
    batch, height, width, channels = x.shape
    grid = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return grid.swapaxes(2, 3).reshape(batch, height // factor, width // factor, factor * factor * channels)


def out_of_channels(x: Float[Array, "b k l d"], factor: int) -> Float[Array, "b h w c"]:
    """Inverse of :func:`into_channels`."""
    batch, height, width, channels = x.shape
    grid = x.reshape(batch, height, width, factor, factor, channels // factor**2)
    return grid.swapaxes(2, 3).reshape(batch, height * factor, width * factor, channels // factor**2)


def pooled(x: Float[Array, "b h w c"], factor: int) -> Float[Array, "b k l c"]:
    """Means of squares of ``factor × factor`` pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // factor, factor, width // factor, factor, channels).mean(axis=(2, 4))


def scaled(pixels: np.ndarray) -> Float[np.ndarray, ...]:
    """Grey levels 0 … 255 as float32 from -1 to 1."""
    return (pixels.astype(np.float32) - 127.5) / 127.5


def framed(pixels: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "1 k l 3"]:
    """A batch of one, mirrored at the lower and right edge up to multiples of :data:`SIDE`, from -1 to 1."""
    height, width = pixels.shape[:2]
    return scaled(np.pad(pixels, ((0, -height % SIDE), (0, -width % SIDE), (0, 0)), mode="symmetric"))[None]


def unframed(images: Array, shape: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """Grey levels of the first image of a batch, cut to its height and width."""
    return np.asarray(images, dtype=np.float64)[0, : shape[0], : shape[1]] * 127.5 + 127.5


def steps_of(budget: int, effort: float) -> int:
    """Training steps: a share of the budget, at least one."""
    return max(1, round(budget * effort))


def batches(
    images: UInt8[np.ndarray, "n h w 3"], steps: int, noises: int, rng: np.random.Generator
) -> Iterator[tuple[Float[np.ndarray, "b s s 3"], Float[np.ndarray, "b s s c"]]]:
    """Random crops, half of them mirrored, with normal noise beside them.

    Images smaller than a crop are first continued by mirroring.

    Args:
        images: uint8 RGB.
        steps: number of batches.
        noises: channels of noise.
        rng: random source.
    """
    height, width = images.shape[1:3]
    below, beside = max(0, CROP - height), max(0, CROP - width)
    if below or beside:
        images = np.pad(images, ((0, 0), (0, below), (0, beside), (0, 0)), mode="symmetric")
    height, width = images.shape[1:3]
    for _ in range(steps):
        crops = np.empty((_BATCH, CROP, CROP, 3), np.float32)
        for place in range(_BATCH):
            index, top, left = (
                rng.integers(len(images)),
                rng.integers(height - CROP + 1),
                rng.integers(width - CROP + 1),
            )
            crop = images[index, top : top + CROP, left : left + CROP]
            crops[place] = scaled(crop if rng.random() < 0.5 else crop[:, ::-1])
        yield crops, rng.standard_normal((_BATCH, CROP, CROP, noises), dtype=np.float32)


def principal_cells(
    images: UInt8[np.ndarray, "n h w 3"], side: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"], Float[np.ndarray, " d"]]:
    """Mean, principal directions (rows, leading ones first) and standard deviations of squares of pixels.

    The squares are those of :func:`into_channels`, with levels from -1 to 1; linear networks that start from them start
    where training would lead (Lucas et al., "Don't Blame the ELBO", NeurIPS 2019, https://arxiv.org/abs/1911.02469).
    """
    crops = np.concatenate([crop for crop, _ in batches(images, 12, 1, rng)])
    grid = crops.reshape(len(crops), CROP // side, side, CROP // side, side, 3)
    cells = grid.swapaxes(2, 3).reshape(-1, side * side * 3).astype(np.float64)
    mean = cells.mean(axis=0)
    variances, directions = np.linalg.eigh((cells - mean).T @ (cells - mean) / len(cells))
    deviations = np.sqrt(np.maximum(variances[::-1], 0))
    return mean.astype(np.float32), directions[:, ::-1].T.astype(np.float32), deviations.astype(np.float32)


@functools.cache
def update_of(loss: Loss) -> Update:
    """One compiled step of Adam on a loss: ``(params, state, rate, images, noise) -> (params, state, loss)``.

    Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, with gradients clipped to a norm of 1.
    """

    @jax.jit
    def update(
        params: Params, state: optax.OptState, rate: Array, images: Array, noise: Array
    ) -> tuple[Params, optax.OptState, Array]:
        value, gradients = jax.value_and_grad(loss)(params, images, noise)
        moves, state = ADAM.update(gradients, state)
        return jax.tree.map(lambda p, m: p - rate * m, params, moves), state, value

    return update


ADAM = optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.9, 0.99)))
"""Direction of a step; the rate is given at each call. One vector of all parameters compiles faster than many."""


def rate(step: int, steps: int, peak: float) -> np.float32:
    """Learning rate that rises over the first tenth of the steps and falls to zero along a cosine."""
    warm = max(1, steps // 10)
    return np.float32(peak * min(1, (step + 1) / warm) * 0.5 * (1 + np.cos(np.pi * step / steps)))


def train(
    what: str,
    loss: Loss,
    params: Params,
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    steps: int,
    noises: int,
    peak: float,
    rng: np.random.Generator,
) -> tuple[dict[str, np.ndarray], Float[np.ndarray, " steps"]]:
    """Train on random crops.

    Args:
        what: the network's name, for the error.
        loss: a function at module level, compiled once.
        params: to start from.
        images: uint8 RGB.
        steps: of Adam.
        noises: channels of noise the loss takes.
        peak: largest learning rate.
        rng: random source of crops and noise.

    Returns:
        Trained parameters as float32, and the loss before every step.

    Raises:
        InputError: the loss is no longer finite.
    """
    update = update_of(loss)
    losses = []
    with on_cpu():
        state = ADAM.init(dict(params))
        for step, (crops, noise) in enumerate(batches(images, steps, noises, rng)):
            params, state, value = update(dict(params), state, rate(step, steps, peak), crops, noise)
            losses.append(value)
    return checked(what, params), np.array(losses, dtype=np.float32)


def checked(what: str, params: Params) -> dict[str, np.ndarray]:
    """Parameters as NumPy arrays.

    Raises:
        InputError: one is not finite.
    """
    arrays = {name: np.asarray(value) for name, value in params.items()}
    if not all(np.isfinite(value).all() for value in arrays.values()):
        raise InputError(f"the training of the {what} left the finite numbers; choose another seed.")
    return arrays
