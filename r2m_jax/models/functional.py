"""The models as pure functions of plain nested dicts.

NNX describes the modules; everything outside this package sees ``{"backbone": …, "head": {"kernel", "bias"}}``
with arrays for leaves, the form in which detectors are merged, sharded and stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from r2m_jax.models.clip_vision import ClipVisionTower, TowerOptions, TowerOutput

Params = dict[str, Any]
CLASSES = 2
"""Logits per image; class 1 is fake."""


def _abstract_tower(config: Any, options: TowerOptions | None) -> tuple[Any, Any]:
    """The tower's graph and the shapes of its parameters, without allocating any."""
    tower = nnx.eval_shape(lambda: ClipVisionTower(config, options, rngs=nnx.Rngs(0)))
    return nnx.split(tower, nnx.Param)


def apply_tower(config: Any, options: TowerOptions | None = None) -> Callable[..., TowerOutput]:
    """The tower of ``config`` as ``apply(backbone, images, hidden_states=()) -> TowerOutput``.

    The returned function is pure and jit-able (``hidden_states`` is static) and accepts parameters of any
    float dtype. See :class:`ClipVisionTower` for shapes and errors.

    Example:
        >>> from transformers import CLIPVisionConfig
        >>> config = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        ...                           num_attention_heads=2, image_size=32, patch_size=16)
        >>> apply = apply_tower(config)
        >>> apply(init_backbone(config, jax.random.key(0)), jnp.zeros((1, 32, 32, 3))).pooled.shape
        (1, 32)
    """
    tower = build_tower(config, options)

    def apply(
        backbone: Params, images: Float[Array, "batch h w c"], hidden_states: tuple[int, ...] = ()
    ) -> TowerOutput:
        return tower(backbone)(images, hidden_states)

    return apply


def build_tower(config: Any, options: TowerOptions | None = None) -> Callable[[Params], ClipVisionTower]:
    """The tower of ``config`` as ``build(backbone) -> module``, for programs that go through its parts themselves.

    The parameters may be traced ones.
    """
    graph, abstract = _abstract_tower(config, options)

    def build(backbone: Params) -> ClipVisionTower:
        state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy: the next line writes into it
        nnx.replace_by_pure_dict(state, backbone)
        return nnx.merge(graph, state)

    return build


def init_backbone(config: Any, key: Key[Array, ""]) -> Params:
    """Fresh float32 backbone parameters (for tests and distillation; detectors start from CLIP weights)."""
    tower = ClipVisionTower(config, rngs=nnx.Rngs(params=key))
    return nnx.to_pure_dict(nnx.state(tower, nnx.Param))


def init_head(width: int, key: Key[Array, ""] | None = None) -> Params:
    """A linear head ``{"kernel": [width, 2], "bias": [2]}``, float32.

    With a key, uniform in ±1/√width as ``torch.nn.Linear`` (the start of a fine-tuning); without one, zeros: a
    head that says p(fake) = 0.5 of everything until it is trained or replaced.
    """
    if key is None:
        return {"kernel": jnp.zeros((width, CLASSES)), "bias": jnp.zeros(CLASSES)}
    bound = width**-0.5
    kernel_key, bias_key = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel_key, (width, CLASSES), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias_key, (CLASSES,), minval=-bound, maxval=bound),
    }


def parameter_shapes(config: Any) -> Params:
    """Shape and dtype of every parameter of a detector with this config, as a tree of ShapeDtypeStruct."""
    _, abstract = _abstract_tower(config, None)
    head = jax.eval_shape(lambda: init_head(config.hidden_size))
    return {"backbone": nnx.to_pure_dict(abstract), "head": head}
