"""Convolutional networks as pure functions of nested dicts.

``params`` is ``{"backbone": {"layer1": {"conv", "pointwise", "norm"}, …, "fc1": …}, "head": {"kernel", "bias"},
"statistics": {"layer1": {"mean", "var"}, …}}``: kernels are ``[h, w, in, out]`` and ``[in, out]``, the head is the last
linear layer, and statistics are the running ones of batch normalisation, which no optimiser touches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from r2m_jax.models.convolutional.plan import ADAPTER, Layer, Plan
from r2m_jax.models.functional import CLASSES, Params

EPSILON = 1e-5
MOMENTUM = 0.1
"""Both are torch's defaults of ``BatchNorm2d``; the new statistics count a tenth."""


class ConvolutionalOutput(NamedTuple):
    """What a network gives.

    Attributes:
        features: what the last linear layer reads, float32.
        statistics: running statistics after the batch, by layer; those given where nothing was learnt.
    """

    features: Float[Array, "b d"]
    statistics: Params


def apply_backbone(plan: Plan, dtype: DTypeLike = jnp.float32) -> Callable[..., ConvolutionalOutput]:
    """The network without its last linear layer, as a pure function.

    Args:
        plan: of the network.
        dtype: of activations and products; batch normalisation is computed in float32 either way.

    Returns:
        ``apply(params, images, *, key=None, learning=())``; with a key, hidden layers drop inputs by it, and the layers
        named in ``learning`` normalise by the batch and move their running statistics (torch's training mode).
    """
    layers = plan.layers()

    def apply(
        params: Params,
        images: Float[Array, "b h w 3"],
        *,
        key: Key[Array, ""] | None = None,
        learning: Collection[str] = (),
    ) -> ConvolutionalOutput:
        backbone, statistics = params["backbone"], dict(params["statistics"])
        x = images.astype(dtype)
        for layer in layers:
            if layer.block is None:
                x = _pool(x)
                continue
            name = layer.name
            x, statistics[name] = _block(layer, backbone[name], x, statistics[name], name in learning)
        # Torch flattens [c, h, w]; the same order here makes its linear layers ours.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], plan.flat)
        for number in range(1, len(plan.hidden) + 1):
            if key is not None and plan.dropout:
                kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - plan.dropout, x.shape)
                x = jnp.where(kept, x / (1 - plan.dropout), 0)
            x = jax.nn.relu(_linear(backbone[f"fc{number}"], x))
        return ConvolutionalOutput(x.astype(jnp.float32), statistics)

    return apply


def _block(
    layer: Layer, params: Params, x: Float[Array, "b h w i"], statistics: Params, learning: bool
) -> tuple[Float[Array, "b h w o"], Params]:
    assert layer.block is not None
    y = _convolution(params["conv"], x, layer.block.groups)
    if layer.residual:
        y, statistics = _normalise(params["norm"], y, statistics, learning)
        return x + _convolution(params["pointwise"], jax.nn.relu(y)), statistics
    if layer.block.pointwise:
        y = _convolution(params["pointwise"], y)
    y, statistics = _normalise(params["norm"], y, statistics, learning)
    return jax.nn.relu(y), statistics


def _convolution(params: Params, x: Float[Array, "b h w i"], groups: int = 1) -> Float[Array, "b h w o"]:
    kernel, bias = params["kernel"].astype(x.dtype), params["bias"].astype(x.dtype)
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        precision="highest" if x.dtype == jnp.float32 else None,
    )  # fmt: skip
    return y + bias


def _pool(x: Float[Array, "b h w c"]) -> Float[Array, "b p q c"]:
    """Maximum of every 2x2 places; an odd row or column at the end is left out, as torch does it.

    Not ``reduce_window``, which the ONNX exporter takes for a pooling with channels in the place of rows.
    """
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    whole = x[:, : 2 * rows, : 2 * columns]
    return whole.reshape(x.shape[0], rows, 2, columns, 2, x.shape[3]).max(axis=(2, 4))


def _linear(params: Params, x: Float[Array, "b i"]) -> Float[Array, "b o"]:
    kernel, bias = params["kernel"].astype(x.dtype), params["bias"].astype(x.dtype)
    return jnp.matmul(x, kernel, precision="highest" if x.dtype == jnp.float32 else None) + bias


def _normalise(
    params: Params, x: Float[Array, "b h w c"], statistics: Params, learning: bool
) -> tuple[Float[Array, "b h w c"], Params]:
    """Batch normalisation over batch and places; the running variance is the unbiased one, as torch keeps it."""
    whole = x.astype(jnp.float32)
    mean, var = statistics["mean"].astype(jnp.float32), statistics["var"].astype(jnp.float32)
    if learning:
        mean, var = whole.mean(axis=(0, 1, 2)), whole.var(axis=(0, 1, 2))
        count = x.shape[0] * x.shape[1] * x.shape[2]
        fresh = lax.stop_gradient({"mean": mean, "var": var * count / max(count - 1, 1)})
        statistics = jax.tree.map(lambda old, new: (1 - MOMENTUM) * old + MOMENTUM * new, dict(statistics), fresh)
    y = (whole - mean) * (lax.rsqrt(var + EPSILON) * params["scale"]) + params["bias"]
    return y.astype(x.dtype), statistics


def init_convolutional(plan: Plan, key: Key[Array, ""]) -> Params:
    """Fresh float32 parameters and statistics.

    Kernels and biases are uniform in ±1/√(numbers a place reads), as torch's ``Conv2d`` and ``Linear`` start; the last
    convolution of a residual adapter is zero.

    Args:
        plan: of the network.
        key: an adapter changes no other layer's draw.
    """
    backbone: Params = {}
    statistics: Params = {}
    names = [layer.name for layer in plan.layers() if layer.block and layer.name != ADAPTER]
    for layer in plan.layers():
        if layer.block is None:
            continue
        number = len(names) if layer.name == ADAPTER else names.index(layer.name)
        backbone[layer.name], statistics[layer.name] = _init_block(layer, jax.random.fold_in(key, number))
    widths = (plan.flat, *plan.hidden, CLASSES)
    linear = [
        _uniform(jax.random.fold_in(key, len(names) + 1 + number), (before, after), before)
        for number, (before, after) in enumerate(itertools.pairwise(widths))
    ]
    backbone |= {f"fc{number}": layer for number, layer in enumerate(linear[:-1], start=1)}
    return {"backbone": backbone, "head": linear[-1], "statistics": statistics}


def _init_block(layer: Layer, key: Key[Array, ""]) -> tuple[Params, Params]:
    assert layer.block is not None
    block, (first, second) = layer.block, jax.random.split(key)
    reads = layer.inputs // block.groups
    params: Params = {"conv": _uniform(first, (3, 3, reads, block.channels), 9 * reads)}
    if block.pointwise:
        params["pointwise"] = _uniform(second, (1, 1, block.channels, block.pointwise), block.channels)
        if layer.residual:
            params["pointwise"] = jax.tree.map(jnp.zeros_like, params["pointwise"])
    params["norm"] = {"scale": jnp.ones(block.out), "bias": jnp.zeros(block.out)}
    return params, {"mean": jnp.zeros(block.out), "var": jnp.ones(block.out)}


def _uniform(key: Key[Array, ""], shape: tuple[int, ...], reads: int) -> Params:
    bound = reads**-0.5
    kernel, bias = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel, shape, minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias, shape[-1:], minval=-bound, maxval=bound),
    }


def convolutional_shapes(plan: Plan) -> Params:
    """Shape and dtype of every leaf of a network, as a tree of ShapeDtypeStruct."""
    shapes: Params = jax.eval_shape(lambda: init_convolutional(plan, jax.random.key(0)))
    return shapes


def learning_layers(plan: Plan, trained: Callable[[str], bool]) -> tuple[str, ...]:
    """Layers whose batch normalisation learns: those of which a scale or a bias is trained.

    A frozen layer keeps its statistics too, so that what is trained after it sees what it will see when scoring.

    Args:
        plan: of the network.
        trained: of a leaf's path, e.g. ``backbone/layer1/norm/scale``.
    """
    names = [layer.name for layer in plan.layers() if layer.block]
    return tuple(name for name in names if any(trained(f"backbone/{name}/norm/{leaf}") for leaf in ("scale", "bias")))


def trained_parameters(params: Params) -> dict[str, Any]:
    """The parameters without running statistics: what counts as the size of a network."""
    return {name: tree for name, tree in params.items() if name != "statistics"}
