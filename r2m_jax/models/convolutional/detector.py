"""A convolutional detector: plan, parameters with running statistics, and the preprocessing that belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from r2m_jax.models.convolutional.forward import (
    ConvolutionalOutput,
    apply_backbone,
    convolutional_shapes,
    init_convolutional,
)
from r2m_jax.models.convolutional.plan import ADAPTER, Place, Plan
from r2m_jax.models.detector import apply_head, prepared
from r2m_jax.models.functional import Params
from r2m_jax.trees import same_structure

if TYPE_CHECKING:
    from PIL.Image import Image


def apply_convolutional(
    plan: Plan, dtype: DTypeLike = jnp.float32
) -> Callable[[Params, Float[Array, "b h w 3"]], Float[Array, "b 2"]]:
    """The detector of ``plan`` as a pure function ``logits(params, images)``, as it scores (torch's eval mode)."""
    backbone = apply_backbone(plan, dtype)
    return lambda params, images: apply_head(params["head"], backbone(params, images).features)


@dataclass(frozen=True)
class ConvolutionalDetector:
    """Everything needed to score an image.

    Attributes:
        config: the plan.
        params: ``{"backbone", "head", "statistics"}``, see :mod:`r2m_jax.models.convolutional.forward`.
        processor: transformers' ``CLIPImageProcessorPil``.
        dtype: of activations and products.
        provenance: content of ``r2m.json``, empty when unknown.
    """

    config: Plan
    params: Params
    processor: Any
    dtype: DTypeLike = jnp.float32
    provenance: Mapping[str, Any] = field(default_factory=dict)
    _backbone: Callable[..., ConvolutionalOutput] = field(repr=False, compare=False, kw_only=True)

    @classmethod
    def create(
        cls,
        config: Plan,
        params: Params,
        processor: Any,
        *,
        dtype: DTypeLike = jnp.float32,
        provenance: Mapping[str, Any] | None = None,
    ) -> ConvolutionalDetector:
        """Check the parameters against the plan.

        Raises:
            InputError: a leaf is missing, unknown or of a wrong shape.
        """
        same_structure(convolutional_shapes(config), params, "the convolutional detector")
        backbone = jax.jit(apply_backbone(config, dtype))
        params = jax.tree.map(jnp.asarray, params)
        return cls(config, params, processor, dtype, dict(provenance or {}), _backbone=backbone)

    def replace_params(self, params: Params) -> ConvolutionalDetector:
        """The same detector with other parameters; compiled functions are shared."""
        same_structure(self.params, params, "the new parameters")
        return ConvolutionalDetector(self.config, params, self.processor, self.dtype, {}, _backbone=self._backbone)

    def with_adapter(self, place: Place | int, residual: bool, key: Key[Array, ""]) -> ConvolutionalDetector:
        """The detector with a fresh adapter and everything else as it is.

        Args:
            place, residual: see :meth:`Plan.with_adapter`.
            key: of the adapter's draw.

        Raises:
            InputError: it has an adapter, or no such block.
        """
        plan = self.config.with_adapter(place, residual)
        fresh = init_convolutional(plan, key)
        params = {
            part: {**self.params[part], **({ADAPTER: fresh[part][ADAPTER]} if ADAPTER in fresh[part] else {})}
            for part in self.params
        }
        return ConvolutionalDetector.create(plan, params, self.processor, dtype=self.dtype, provenance=self.provenance)

    def __call__(self, images: Float[Array, "batch h w 3"]) -> Float[Array, "batch 2"]:
        """Logits of normalised images; ``softmax(logits)[:, 1]`` is the probability of fake."""
        return apply_head(self.params["head"], self.features(images))

    def features(self, images: Float[Array, "batch h w 3"]) -> Float[Array, "batch d"]:
        """What the last linear layer reads of normalised images."""
        chex.assert_rank(images, 4)
        return self._backbone(self.params, jnp.asarray(images)).features

    def preprocess(self, images: Image | Sequence[Image]) -> Float[np.ndarray, "batch h w 3"]:
        """Resize, crop and normalise PIL images as the model was trained: float32 ``[B, H, W, 3]``."""
        return prepared(self.processor, images)
