"""Weights as small integers and scales: symmetric, per tensor or per output channel, 2 to 8 bits.

The grid is that of PyTorch's MinMax observer for symmetric ``qint8`` (zero point 0, scale = max|w| / 127.5, integers
-128…127), which is what Compression & transfer (https://arxiv.org/abs/2504.21066) quantises linear layers with;
``b`` bits have scale = max|w| / (2^b - 1) · 2. No value is further than half a scale from what is stored of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Integer

from r2m_jax.checkpoints.compressed import BITS
from r2m_jax.compression.pruning import selected
from r2m_jax.compression.selection import output_axis, weights
from r2m_jax.errors import InputError
from r2m_jax.merging.selection import Select, is_stack
from r2m_jax.trees import flatten, refuse_non_finite, unflatten

Granularity = Literal["channel", "tensor"]
_LEAST = float(np.finfo(np.float32).tiny)
"""No scale is smaller: a tensor of zeros has one to divide by."""


class Quantised(NamedTuple):
    """Integers and what they are multiplied by.

    Attributes:
        values: int8, of the tensor's shape; of fewer bits they use fewer values.
        scale: float32, of as many axes, 1 along those that share a scale.
    """

    values: Int8[Array, ...]
    scale: Float[Array, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.values.shape


class Affine(NamedTuple):
    """Activations as integers: x ≈ scale · (values - zero).

    Attributes:
        values: int8.
        scale: float32 scalar.
        zero: int32 scalar in -128…127, the integer that stands for 0.
    """

    values: Int8[Array, ...]
    scale: Float[Array, ""]
    zero: Integer[Array, ""]


def quantise(tensor: Float[Array | np.ndarray, ...], bits: int = 8, own_scale: tuple[int, ...] = ()) -> Quantised:
    """A tensor as integers of ``bits`` bits.

    Args:
        tensor: finite, of any float dtype; worked on in float32.
        bits: 2…8.
        own_scale: axes along which every index has a scale of its own; none for one scale.

    Raises:
        InputError: another number of bits.
    """
    if bits not in BITS:
        raise InputError(f"bits={bits} is not among {BITS.start}…{BITS.stop - 1}.")
    wide = jnp.asarray(tensor, jnp.float32)
    shared = tuple(axis for axis in range(wide.ndim) if axis not in own_scale)
    most = 2 ** (bits - 1)
    scale = jnp.maximum(jnp.abs(wide).max(axis=shared, keepdims=True, initial=0.0) / (most - 0.5), _LEAST)
    values = jnp.clip(jnp.round(wide / scale), -most, most - 1).astype(jnp.int8)
    return Quantised(values, scale)


def dequantise(stored: Quantised) -> Float[Array, ...]:
    """The float32 tensor that integers stand for."""
    return stored.values.astype(jnp.float32) * stored.scale


def quantise_tree(
    params: Mapping[str, Any], bits: int = 8, granularity: Granularity = "channel", select: Select = weights
) -> dict[str, Any]:
    """The tree with :class:`Quantised` in place of the leaves selected; each layer of a stack has scales of its own.

    Raises:
        InputError: nothing is selected, a leaf holds NaN or infinity, or ``bits`` is out of range.
    """
    flat = dict(flatten(params))
    chosen = selected(params, select)
    refuse_non_finite(chosen, "the parameters to quantise")
    for path, leaf in chosen.items():
        own = {0} if is_stack(path) else set()
        own |= {output_axis(path, leaf)} if granularity == "channel" else set()
        flat[path] = quantise(leaf, bits, tuple(sorted(own)))
    return unflatten(flat)


def dequantise_tree(params: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with float32 arrays in place of :class:`Quantised` leaves: weight-only quantisation, at run time."""
    return unflatten(
        {path: dequantise(leaf) if isinstance(leaf, Quantised) else leaf for path, leaf in flatten(params).items()}
    )


def activation_range(x: Float[Array, ...]) -> Float[Array, " 2"]:
    """The least and largest value, 0 among them: what a static scale is calibrated from."""
    return jnp.stack([jnp.minimum(x.min(), 0.0), jnp.maximum(x.max(), 0.0)]).astype(jnp.float32)


def quantise_activations(x: Float[Array, ...], bounds: Float[Array, " 2"] | None = None) -> Affine:
    """Activations as integers with one scale and zero point, which stands for 0 exactly.

    Args:
        x: any shape.
        bounds: of :func:`activation_range` over calibration data, what lies outside is clipped (static); those of
            ``x`` itself when None (dynamic).
    """
    low, high = activation_range(x) if bounds is None else bounds
    scale = jnp.maximum((high - low) / 255.0, _LEAST)
    zero = jnp.clip(jnp.round(-128.0 - low / scale), -128, 127).astype(jnp.int32)
    values = jnp.clip(jnp.round(x.astype(jnp.float32) / scale) + zero, -128, 127).astype(jnp.int8)
    return Affine(values, scale, zero)
