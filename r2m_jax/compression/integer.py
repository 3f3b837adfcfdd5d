"""Products of integers: int8 activations times int8 kernels, summed in int32, for dense and convolution layers.

Activations get their scale from the batch at hand (dynamic, as PyTorch's ``quantize_dynamic`` and
https://arxiv.org/abs/2504.21066) or from calibration images (static). Whether that is faster than float32 depends on
the device's int8 units; weight-only quantisation (:func:`r2m_jax.compression.dequantise_tree`) saves storage anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from r2m_jax.compression.quantisation import (
    Quantised,
    activation_range,
    dequantise,
    dequantise_tree,
    quantise_activations,
)
from r2m_jax.errors import InputError
from r2m_jax.models import Params, apply_head
from r2m_jax.models.functional import build_tower

Ranges = dict[str, Float[np.ndarray, "layers 2"]]
"""Least and largest input of every dense layer, by its path in a block, over calibration images."""

LINEAR = ("attn/q", "attn/k", "attn/v", "attn/out", "mlp/fc1", "mlp/fc2")
"""The dense layers of a block."""


def integer_dense(
    x: Float[Array, "*batch i"], kernel: Quantised, bounds: Float[Array, " 2"] | None = None
) -> Float[Array, "*batch o"]:
    """``x @ kernel`` from an int8 product.

    Args:
        x: activations, quantised with a zero point.
        kernel: ``[i, o]``, with one scale or one per output.
        bounds: of the activations (static); None for those of ``x`` (dynamic).

    Returns:
        float32.
    """
    given = quantise_activations(x, bounds)
    over = (((given.values.ndim - 1,), (0,)), ((), ()))
    product = jax.lax.dot_general(given.values, kernel.values, over, preferred_element_type=jnp.int32)
    # Σ (q - zero) w = Σ q w - zero Σ w
    product = product - given.zero * kernel.values.astype(jnp.int32).sum(axis=0)
    return product.astype(jnp.float32) * given.scale * kernel.scale.reshape(-1)


def integer_conv(
    x: Float[Array, "batch h w c"],
    kernel: Quantised,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    groups: int = 1,
    largest: Float[Array, ""] | None = None,
) -> Float[Array, "batch h2 w2 o"]:
    """A convolution (NHWC, kernel HWIO) from an int8 product.

    Args:
        x: activations, quantised symmetrically so that padding by zeros stays exact.
        kernel: ``[h, w, i, o]``, with one scale or one per output.
        strides, padding, groups: as of ``jax.lax.conv_general_dilated``.
        largest: magnitude of the activations (static); that of ``x`` when None (dynamic).

    Returns:
        float32.
    """
    scale = jnp.maximum((jnp.abs(x).max() if largest is None else largest) / 127.0, jnp.finfo(jnp.float32).tiny)
    values = jnp.clip(jnp.round(x.astype(jnp.float32) / scale), -127, 127).astype(jnp.int8)
    product = jax.lax.conv_general_dilated(
        values, kernel.values, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups, preferred_element_type=jnp.int32,
    )  # fmt: skip
    return product.astype(jnp.float32) * scale * kernel.scale.reshape(-1)


def integer_detector(config: Any) -> Callable[..., Float[Array, "batch 2"]]:
    """A CLIP detector whose blocks' dense layers are int8 products: ``logits(params, images, ranges=None)``.

    ``params`` is the tree of :func:`r2m_jax.compression.quantise_tree`; what is not :class:`Quantised` in it is used as
    it is, and patches are embedded by the dequantised kernel. With ``ranges`` (:func:`calibrate`) activations are
    scaled statically, without dynamically.
    """

    def logits(params: Params, images: Float[Array, "batch h w 3"], ranges: Ranges | None = None) -> Array:
        def dense(path: str, layer: int, x: Array, kernel: Any) -> Array:
            if not isinstance(kernel, Quantised):
                return jnp.matmul(x, kernel, precision="highest")
            return integer_dense(x, kernel, None if ranges is None else jnp.asarray(ranges[path][layer]))

        return _run(config, params, images, dense)

    return logits


def calibrate(config: Any, params: Params, images: Float[np.ndarray, "n h w 3"], *, batch_size: int = 8) -> Ranges:
    """Ranges of the inputs of every dense layer, on normalised images.

    Args:
        config: of the detector.
        params: quantised or not; products are those of floats.
        images: to calibrate on.
        batch_size: images at a time.

    Raises:
        InputError: there are no images, or a range is not finite.
    """
    if not len(images):
        raise InputError("calibration needs at least one image.")

    @jax.jit
    def ranges(params: Params, images: Array) -> dict[str, Array]:
        found: dict[str, list[Array]] = {path: [] for path in LINEAR}

        def dense(path: str, layer: int, x: Array, kernel: Any) -> Array:
            found[path].append(activation_range(x))
            whole = dequantise(kernel) if isinstance(kernel, Quantised) else kernel
            return jnp.matmul(x, whole, precision="highest")

        _run(config, params, images, dense)
        return {path: jnp.stack(each) for path, each in found.items()}

    parts = [ranges(params, images[at : at + batch_size]) for at in range(0, len(images), batch_size)]
    out = {}
    for path in LINEAR:
        each = np.stack([np.asarray(part[path]) for part in parts])
        out[path] = np.stack([each[..., 0].min(axis=0), each[..., 1].max(axis=0)], axis=-1)
        if not np.isfinite(out[path]).all():
            raise InputError(f"the inputs of {path} are not finite on the calibration images.")
    return out


def _run(config: Any, params: Params, images: Array, dense: Callable[[str, int, Array, Any], Array]) -> Array:
    """The detector with ``dense(path, layer, x, kernel)`` for the products of its blocks, layer after layer."""
    kernels = {path: _at(params["backbone"]["layers"], path)["kernel"] for path in LINEAR}
    floats = dequantise_tree(params)
    tower = build_tower(config)(floats["backbone"])
    graph, stacked = nnx.split(tower.layers)
    x = tower.embed(images)
    for layer in range(tower.depth):
        block, *here = jax.tree.map(lambda leaf, at=layer: leaf[at], (stacked, *(kernels[path] for path in LINEAR)))
        block = nnx.merge(graph, block)
        for path, kernel in zip(LINEAR, here, strict=True):

            def product(
                x: Array, *_: Any, path: str = path, layer: int = layer, kernel: Any = kernel, **__: Any
            ) -> Array:
                return dense(path, layer, x, kernel)

            part, name = path.split("/")
            getattr(getattr(block, part), name).dot_general = product
        x = block(x)
    return apply_head(floats["head"], tower.post_norm(x[:, 0]))


def _at(tree: Mapping[str, Any], path: str) -> Any:
    for key in path.split("/"):
        tree = tree[key]
    return tree
