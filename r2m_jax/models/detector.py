"""A detector: CLIP backbone, linear head, and the preprocessing that belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from r2m_jax.models.clip_vision import TowerOptions, TowerOutput
from r2m_jax.models.functional import Params, apply_tower, init_head, parameter_shapes
from r2m_jax.trees import same_structure

if TYPE_CHECKING:
    from PIL.Image import Image


def apply_head(head: Params, pooled: Float[Array, "batch d"]) -> Float[Array, "batch 2"]:
    """Logits of the linear head, in float32 whatever the inputs' dtype; class 1 is fake."""
    kernel, bias = head["kernel"].astype(jnp.float32), head["bias"].astype(jnp.float32)
    return jnp.matmul(pooled.astype(jnp.float32), kernel, precision="highest") + bias


def apply_detector(
    config: Any, options: TowerOptions | None = None
) -> Callable[[Params, Float[Array, "batch h w 3"]], Float[Array, "batch 2"]]:
    """The detector of ``config`` as a pure function ``logits(params, images)``."""
    tower = apply_tower(config, options)

    def logits(params: Params, images: Float[Array, "batch h w 3"]) -> Float[Array, "batch 2"]:
        return apply_head(params["head"], tower(params["backbone"], images).pooled)

    return logits


def prepared(processor: Any, images: Image | Sequence[Image]) -> Float[np.ndarray, "batch h w 3"]:
    """What transformers' image processor makes of PIL images, channels last: float32 ``[B, H, W, 3]``."""
    batch = processor(images, return_tensors="np")["pixel_values"]
    return np.ascontiguousarray(np.moveaxis(batch, 1, -1), dtype=np.float32)


@dataclass(frozen=True)
class Detector:
    """Everything needed to score an image.

    Attributes:
        config: transformers' ``CLIPVisionConfig``.
        params: ``{"backbone": …, "head": {"kernel" [d, 2], "bias" [2]}}``.
        processor: transformers' ``CLIPImageProcessorPil``.
        options: how the tower computes.
        provenance: content of ``r2m.json``, empty when unknown.
    """

    config: Any
    params: Params
    processor: Any
    options: TowerOptions = field(default_factory=TowerOptions)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    _tower: Callable[..., TowerOutput] = field(repr=False, compare=False, kw_only=True)

    @classmethod
    def create(
        cls,
        config: Any,
        params: Params,
        processor: Any,
        *,
        options: TowerOptions | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Detector:
        """Check the parameters against the config and compile-cache the tower.

        Args:
            config, processor, options, provenance: see the attributes.
            params: a tree without ``"head"`` gets a zero head.

        Raises:
            InputError: a leaf is missing, unknown or of a wrong shape.
        """
        if "head" not in params:
            params = {**params, "head": init_head(config.hidden_size)}
        same_structure(parameter_shapes(config), params, "the detector")
        options = options or TowerOptions()
        tower = jax.jit(apply_tower(config, options), static_argnames="hidden_states")
        params = jax.tree.map(jnp.asarray, params)
        return cls(config, params, processor, options, dict(provenance or {}), _tower=tower)

    def replace_params(self, params: Params) -> Detector:
        """The same detector with other parameters; compiled functions are shared."""
        same_structure(self.params, params, "the new parameters")
        return Detector(self.config, params, self.processor, self.options, {}, _tower=self._tower)

    def __call__(self, images: Float[Array, "batch h w 3"]) -> Float[Array, "batch 2"]:
        """Logits of normalised images; ``softmax(logits)[:, 1]`` is the probability of fake."""
        return apply_head(self.params["head"], self.features(images))

    def features(self, images: Float[Array, "batch h w 3"]) -> Float[Array, "batch d"]:
        """Pooled output (``pooler_output``) of normalised images."""
        chex.assert_rank(images, 4)
        return self._tower(self.params["backbone"], jnp.asarray(images)).pooled

    def hidden_states(
        self, images: Float[Array, "batch h w 3"], which: Sequence[int]
    ) -> Float[Array, "chosen batch tokens d"]:
        """Hidden states of the chosen layers (0 is the input of the first block)."""
        chex.assert_rank(images, 4)
        return self._tower(self.params["backbone"], jnp.asarray(images), hidden_states=tuple(which)).hidden

    def preprocess(self, images: Image | Sequence[Image]) -> Float[np.ndarray, "batch h w 3"]:
        """Resize, crop and normalise PIL images as the model was trained: float32 ``[B, H, W, 3]``."""
        return prepared(self.processor, images)
