"""Structured pruning: towers that get smaller, by MLP channels, attention heads or whole layers.

Every layer loses as many channels or heads, because layers are stacked. Importance is read off the weights for
channels and heads, by the size of the map each contributes to the stream, and off hidden states for layers (the block
influence of ShortGPT, https://arxiv.org/abs/2403.03853). None of it is in https://arxiv.org/abs/2504.21066, which
prunes single weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from r2m_jax.errors import InputError
from r2m_jax.models.architecture import KEPT_HEADS, attention_heads
from r2m_jax.models.functional import Params, apply_tower

Smaller = tuple[Any, Params]
"""A config and the parameters that fit it."""


def channel_importance(backbone: Mapping[str, Any]) -> Float[np.ndarray, "layers m"]:
    """Size of what each MLP channel adds to the stream: ‖(w1, b1)‖ · ‖w2‖, 0 for dead ones."""
    first, second = backbone["layers"]["mlp"]["fc1"], backbone["layers"]["mlp"]["fc2"]
    reads = _squares(first["kernel"], axis=1) + _squares(first["bias"])
    return np.sqrt(reads * _squares(second["kernel"], axis=2))


def head_importance(config: Any, backbone: Mapping[str, Any]) -> Float[np.ndarray, "layers h"]:
    """Size of what each head adds to the stream: ‖(Wv; bv) Wo‖ (Frobenius), 0 for dead ones."""
    heads, attention = attention_heads(config), backbone["layers"]["attn"]
    values = np.concatenate([_float64(attention["v"]["kernel"]), _float64(attention["v"]["bias"])[:, None]], axis=1)
    outputs = _float64(attention["out"]["kernel"])
    layers, rows, width = values.shape
    values = values.reshape(layers, rows, heads, width // heads)
    outputs = outputs.reshape(layers, heads, width // heads, -1)
    # ‖V O‖² = tr(VᵀV · OOᵀ), which never makes the product
    left = np.einsum("lrhi,lrhj->lhij", values, values, optimize=True)
    right = np.einsum("lhio,lhjo->lhij", outputs, outputs, optimize=True)
    return np.sqrt(np.maximum((left * right).sum(axis=(-2, -1)), 0.0))


def layer_importance(
    config: Any, backbone: Params, images: Float[np.ndarray, "n h w 3"], *, batch_size: int = 8
) -> Float[np.ndarray, " layers"]:
    """How much each layer turns its tokens: 1 - mean cosine between what goes in and what comes out.

    Args:
        config, backbone: of a tower.
        images: normalised.
        batch_size: images at a time.

    Raises:
        InputError: a hidden state is not finite.
    """
    depth, tower = config.num_hidden_layers, apply_tower(config)

    @jax.jit
    def turns(backbone: Params, images: Any) -> Any:
        hidden = tower(backbone, images, tuple(range(depth + 1))).hidden
        unit = hidden / jnp.linalg.norm(hidden, axis=-1, keepdims=True)
        return 1 - (unit[1:] * unit[:-1]).sum(axis=-1).mean(axis=-1)

    found = [np.asarray(turns(backbone, images[at : at + batch_size])) for at in range(0, len(images), batch_size)]
    mean = np.concatenate(found, axis=1).mean(axis=1)
    if not np.isfinite(mean).all():
        raise InputError("the hidden states of the model are not finite; its layers cannot be compared.")
    return mean


def best(importance: Float[np.ndarray, "... n"], keep: int) -> Int[np.ndarray, "... keep"]:
    """Places of the ``keep`` most important, in their order; of equals the first.

    Raises:
        InputError: ``keep`` is none of 1…n.
    """
    count = importance.shape[-1]
    if not 1 <= keep <= count:
        raise InputError(f"keep={keep} is none of 1…{count}.")
    return np.sort(np.argsort(-importance, axis=-1, kind="stable")[..., :keep], axis=-1)


def keep_channels(config: Any, params: Params, places: Int[np.ndarray, "layers k"]) -> Smaller:
    """The detector with k MLP channels in every layer, those at ``places``; ``intermediate_size`` is k."""
    places = _within(places, config, config.intermediate_size, "channels")

    def cut(layers: dict[str, Any]) -> None:
        first, second = layers["mlp"]["fc1"], layers["mlp"]["fc2"]
        first["kernel"] = _take(first["kernel"], places, 2)
        first["bias"] = _take(first["bias"], places, 1)
        second["kernel"] = _take(second["kernel"], places, 1)

    return _config(config, intermediate_size=places.shape[1]), _changed(params, cut)


def keep_heads(config: Any, params: Params, places: Int[np.ndarray, "layers k"]) -> Smaller:
    """The detector with k attention heads in every layer, those at ``places``.

    The config says so as :data:`~r2m_jax.models.architecture.KEPT_HEADS`; transformers' classes cannot build it.
    """
    heads, head_dim = attention_heads(config), config.hidden_size // config.num_attention_heads
    places = _within(places, config, heads, "heads")
    wide = (places[..., None] * head_dim + np.arange(head_dim)).reshape(len(places), -1)

    def cut(layers: dict[str, Any]) -> None:
        attention = layers["attn"]
        for name in "qkv":
            attention[name]["kernel"] = _take(attention[name]["kernel"], wide, 2)
            attention[name]["bias"] = _take(attention[name]["bias"], wide, 1)
        attention["out"]["kernel"] = _take(attention["out"]["kernel"], wide, 1)

    return _config(config, **{KEPT_HEADS: places.shape[1]}), _changed(params, cut)


def keep_layers(config: Any, params: Params, places: Sequence[int] | Int[np.ndarray, " k"]) -> Smaller:
    """The detector with only the layers at ``places``, in their order."""
    chosen = np.asarray(places)
    depth = config.num_hidden_layers
    if (
        chosen.ndim != 1
        or not len(chosen)
        or (chosen < 0).any()
        or (chosen >= depth).any()
        or (np.diff(chosen) <= 0).any()
    ):
        raise InputError(f"layers {list(places)} are no ascending numbers of layers in 0…{depth - 1}.")
    backbone = dict(params["backbone"])
    backbone["layers"] = jax.tree.map(lambda leaf: np.asarray(leaf)[chosen], backbone["layers"])
    return _config(config, num_hidden_layers=len(chosen)), {**params, "backbone": backbone}


def _changed(params: Params, cut: Callable[[dict[str, Any]], None]) -> Params:
    layers = _copied(params["backbone"]["layers"])
    cut(layers)
    return {**params, "backbone": {**params["backbone"], "layers": layers}}


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _config(config: Any, **changes: int) -> Any:
    made = copy.deepcopy(config)
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def _take(leaf: Any, places: Int[np.ndarray, "layers k"], axis: int) -> np.ndarray:
    array = np.asarray(leaf)
    shape = [1] * array.ndim
    shape[0], shape[axis] = places.shape
    return np.take_along_axis(array, places.reshape(shape), axis=axis)


def _within(places: Any, config: Any, count: int, what: str) -> Int[np.ndarray, "layers k"]:
    array = np.asarray(places)
    fits = array.ndim == 2 and array.shape[0] == config.num_hidden_layers and array.shape[1] > 0
    if not fits or (array < 0).any() or (array >= count).any():
        raise InputError(
            f"{what} to keep of shape {array.shape} do not fit {config.num_hidden_layers} layers of {count}."
        )
    return array


def _squares(leaf: Any, axis: int | None = None) -> np.ndarray:
    square = _float64(leaf) ** 2
    return square if axis is None else square.sum(axis=axis)


def _float64(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.float64)
