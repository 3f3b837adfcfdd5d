"""A CoRIT detector: frozen tower, trained head, switches, and the preprocessing that belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from r2m_jax.models.clip_vision import TowerOptions
from r2m_jax.models.corit.forward import corit_features
from r2m_jax.models.corit.head import apply_corit_head, corit_parameter_shapes, init_corit_head
from r2m_jax.models.corit.settings import CoritSettings
from r2m_jax.models.functional import Params
from r2m_jax.trees import same_structure


@dataclass(frozen=True)
class CoritDetector:
    """Everything needed to score an image together with its self-blended images.

    Attributes:
        config: transformers' ``CLIPVisionConfig``.
        params: ``{"backbone": …, "head": …}``, see :func:`~r2m_jax.models.corit.init_corit_head`.
        processor: transformers' ``CLIPImageProcessorPil``.
        settings: switches, L' a number.
        options: how the tower computes.
        provenance: content of ``r2m.json``, empty when unknown.
    """

    config: Any
    params: Params
    processor: Any
    settings: CoritSettings
    options: TowerOptions = field(default_factory=TowerOptions)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    _features: Callable[..., Array] = field(repr=False, compare=False, kw_only=True)

    @classmethod
    def create(
        cls,
        config: Any,
        params: Params,
        processor: Any,
        settings: CoritSettings,
        *,
        options: TowerOptions | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> CoritDetector:
        """Check the parameters against config and settings.

        Args:
            config, processor, settings, options, provenance: see the attributes.
            params: a tree without ``"head"`` gets a zero head.

        Raises:
            InputError: the settings do not fit the config, or a leaf is missing, unknown or of a wrong shape.
        """
        settings, options = settings.resolved(config), options or TowerOptions()
        if "head" not in params:
            params = {**params, "head": init_corit_head(config, settings)}
        same_structure(corit_parameter_shapes(config, settings), params, "the CoRIT detector")
        features = jax.jit(corit_features(config, settings, options))
        params = jax.tree.map(jnp.asarray, params)
        return cls(config, params, processor, settings, options, dict(provenance or {}), _features=features)

    def __call__(self, streams: Float[Array, "b s h w 3"], foreground: Float[Array, "b n"]) -> Float[Array, "b 2"]:
        """Logits of normalised images; ``softmax(logits)[:, 1]`` is the probability of fake.

        Args:
            streams: the image, then its self-blended images.
            foreground: share of every patch that is foreground.
        """
        return apply_corit_head(self.params["head"], self.features(streams, foreground))

    def features(self, streams: Float[Array, "b s h w 3"], foreground: Float[Array, "b n"]) -> Float[Array, "b f"]:
        """z, what the head reads, float32."""
        return self._features(self.params["backbone"], jnp.asarray(streams), jnp.asarray(foreground))
