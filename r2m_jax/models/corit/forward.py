"""CoRIT's forward pass: a frozen tower with region tokens, an image and its self-blended images in lockstep.

Liu et al., arXiv 2603.24057, section IV; in every block (equations 17 to 23)::

    cls, X, T̂ = block([cls; X; T])          the image; likewise cls~, X̃, T̃ of its self-blended images
    g = X - X̃                                Contrastive Gradient Proxy
    m_k = patches of region k with ⟨g, ĉ_k⟩ above the threshold, c_k the mean of g over the region
    T_k = T̂_k + mean of X under m_k          Regional Signal Injection; T̃_k likewise under the same masks

and z = [cls; T] of layers L' and L (equation 24) is what the head reads. The streams run through one scan over the
stacked layers, so a patch differs between them for its content alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from r2m_jax.errors import InputError
from r2m_jax.models.clip_vision import ClipVisionTower, TowerOptions, over_layers
from r2m_jax.models.corit.refinement import EPSILON, Refined, gradient_proxy, pool, refine
from r2m_jax.models.corit.regions import regions_of, salient
from r2m_jax.models.corit.settings import CoritSettings
from r2m_jax.models.functional import Params, build_tower


class CoritOutput(NamedTuple):
    """What the forward pass returns.

    Attributes:
        features: z, float32: the class token and the region tokens of layer L', then those of layer L, normalised; what
            the head reads. Of layer L alone without ``hri``.
        tokens: class token and region tokens after every block, not normalised.
        masks: patches pooled in every block; no regions without region tokens.
        empty: where no patch passed the threshold, so that the whole region was pooled.
        regions: patches that each region is made of.
    """

    features: Float[Array, "b f"]
    tokens: Float[Array, "layers b t d"]
    masks: Bool[Array, "layers b k n"]
    empty: Bool[Array, "layers b k"]
    regions: Bool[Array, "b k n"]


def apply_corit(
    config: Any, settings: CoritSettings, options: TowerOptions | None = None
) -> Callable[[Params, Float[Array, "b s h w 3"], Bool[Array, "b k n"]], CoritOutput]:
    """The forward pass as a pure function ``apply(backbone, streams, regions)``.

    Args:
        config: of the tower, any ``CLIPVisionConfig`` or ``ViTConfig``.
        settings: switches.
        options: how the tower computes; masks and pooling are float32 in any case. ``remat`` has no effect, for
            nothing here is trained.

    Returns:
        A function of the backbone, of normalised images ``[b, s, h, w, 3]`` (the image, then ``settings.streams - 1``
        self-blended images of it) and of the regions' patches ``[b, K, n]`` in the order of the rows of the image.

    Raises:
        InputError: the settings do not fit the config; when called, streams or regions of a wrong shape.
    """
    settings = settings.resolved(config)
    options = options or TowerOptions()
    build = build_tower(config, options)

    def apply(backbone: Params, streams: Float[Array, "b s h w 3"], regions: Bool[Array, "b k n"]) -> CoritOutput:
        tower = build(backbone)
        with jax.default_matmul_precision(options.matmul_precision):
            embedded = _embed(tower, streams, settings)
            return _forward(tower, embedded, _checked(regions, embedded, settings), settings)

    return apply


def corit_features(
    config: Any, settings: CoritSettings, options: TowerOptions | None = None
) -> Callable[[Params, Float[Array, "b s h w 3"], Float[Array, "b n"]], Float[Array, "b f"]]:
    """z as a pure function ``features(backbone, streams, foreground)``; see :func:`corit_outputs`."""
    outputs = corit_outputs(config, settings, options)

    def features(
        backbone: Params, streams: Float[Array, "b s h w 3"], foreground: Float[Array, "b n"]
    ) -> Float[Array, "b f"]:
        return outputs(backbone, streams, foreground).features

    return features


def corit_outputs(
    config: Any, settings: CoritSettings, options: TowerOptions | None = None
) -> Callable[[Params, Float[Array, "b s h w 3"], Float[Array, "b n"]], CoritOutput]:
    """The forward pass as ``outputs(backbone, streams, foreground)``, with the regions the settings' rule gives.

    Args:
        config, settings, options: as of :func:`apply_corit`.

    Returns:
        A function of the backbone, the streams, and the share of every patch that is foreground (0 to 1, by rows),
        which the rules ``saliency`` and ``random`` do without.

    Raises:
        InputError: the settings do not fit the config, or their rule is ``user``.
    """
    settings = settings.resolved(config)
    options = options or TowerOptions()
    build = build_tower(config, options)

    def outputs(backbone: Params, streams: Float[Array, "b s h w 3"], foreground: Float[Array, "b n"]) -> CoritOutput:
        tower = build(backbone)
        grid = tuple(side // config.patch_size for side in streams.shape[2:4])
        with jax.default_matmul_precision(options.matmul_precision):
            embedded = _embed(tower, streams, settings)
            if settings.rule == "saliency":
                shares = salient(_middle(tower, embedded[:, 0])[:, 1:])
            else:
                shares = foreground.reshape(foreground.shape[0], *grid)
            regions = regions_of(settings, shares)
            return _forward(tower, embedded, _checked(regions, embedded, settings), settings)

    return outputs


def corit_reading(
    config: Any, settings: CoritSettings, options: TowerOptions | None = None
) -> Callable[[Params, Float[Array, "b r t d"]], Float[Array, "b f"]]:
    """What a head reads of tokens that were kept, ``reading(backbone, tokens)``.

    ``CoritOutput.tokens`` of layers L' and L (of L alone without ``hri``) give ``CoritOutput.features``; other layers
    give what a head on them would read.

    Args:
        config, settings, options: as of :func:`apply_corit`; only the norm counts.
    """
    build = build_tower(config, options or TowerOptions())

    def reading(backbone: Params, tokens: Float[Array, "b r t d"]) -> Float[Array, "b f"]:
        tower = build(backbone)
        layers = [_normalised(tower, tokens[:, place], settings) for place in range(tokens.shape[1])]
        return jnp.stack(layers, axis=1).reshape(len(tokens), -1)

    return reading


def _embed(tower: ClipVisionTower, streams: Array, settings: CoritSettings) -> Float[Array, "b s t d"]:
    if streams.ndim != 5 or streams.shape[1] != settings.streams:
        raise InputError(
            f"CoRIT was given images of shape {list(streams.shape)}; with these settings it reads "
            f"[batch, {settings.streams}, height, width, 3], an image and {settings.streams - 1} self-blended."
        )
    embedded = tower.embed(streams.reshape(-1, *streams.shape[2:]))
    return embedded.reshape(*streams.shape[:2], *embedded.shape[1:])


def _checked(regions: Array, embedded: Array, settings: CoritSettings) -> Bool[Array, "b k n"]:
    batch, _, tokens, _ = embedded.shape
    if not settings.region_tokens:
        return jnp.zeros((batch, 0, tokens - 1), jnp.bool_)
    wanted = (batch, settings.region_tokens, tokens - 1)
    if regions.shape != wanted:
        raise InputError(f"regions have shape {list(regions.shape)}, not [batch, K, patches] = {list(wanted)}.")
    return regions.astype(jnp.bool_)


def _middle(tower: ClipVisionTower, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Tokens after half of the blocks, without region tokens."""
    graph, stacked = nnx.split(tower.layers)
    half = jax.tree.map(lambda leaf: leaf[: tower.depth // 2], stacked)
    return over_layers(lambda x, layer: (nnx.merge(graph, layer)(x), None), x, half, tower.options.unrolled)[0]


def _forward(
    tower: ClipVisionTower, embedded: Float[Array, "b s n1 d"], regions: Bool[Array, "b k n"], settings: CoritSettings
) -> CoritOutput:
    batch, streams, plain, d = embedded.shape
    count = settings.region_tokens
    graph, stacked = nnx.split(tower.layers)
    seen = None
    if count and settings.attention == "read_only":
        seen = jnp.asarray(np.arange(plain + count) < plain) | (jnp.arange(plain + count) >= plain)[:, None]

    def block(x: Array, layer: Any) -> tuple[Array, tuple[Array, Array, Array]]:
        x = nnx.merge(graph, layer)(x.reshape(batch * streams, -1, d), seen).reshape(x.shape)
        if not count:
            return x, (x[:, 0, :1], regions, regions.any(axis=-1))
        patches, injected = x[:, :, 1:plain], x[:, :, plain:]
        found = _masks(patches, regions, settings)
        injected = injected + pool(found.mask, patches, settings.pooling).astype(x.dtype)
        x = jnp.concatenate([x[:, :, :plain], injected], axis=2)
        return x, (jnp.concatenate([x[:, 0, :1], injected[:, 0]], axis=1), *found)

    x = jnp.concatenate([embedded, _start(embedded, regions, settings)], axis=2) if count else embedded
    _, (tokens, masks, empty) = over_layers(block, x, stacked, tower.options.unrolled)
    read = [settings.fusion_layer - 1, -1] if settings.hri and settings.fusion_layer else [-1]
    chosen = [_normalised(tower, tokens[layer], settings).reshape(batch, -1) for layer in read]
    return CoritOutput(jnp.concatenate(chosen, axis=1), tokens, masks, empty, regions)


def _masks(patches: Float[Array, "b s n d"], regions: Bool[Array, "b k n"], settings: CoritSettings) -> Refined:
    if not settings.refined:
        return Refined(regions, jnp.zeros(regions.shape[:2], jnp.bool_))
    proxy = gradient_proxy(patches, settings.proxy)
    return refine(proxy, regions, settings.gamma, settings.threshold)


def _start(
    embedded: Float[Array, "b s n1 d"], regions: Bool[Array, "b k n"], settings: CoritSettings
) -> Float[Array, "b s k d"]:
    if settings.start == "regions":
        return pool(regions, embedded[:, :, 1:]).astype(embedded.dtype)
    shape = (*embedded.shape[:2], regions.shape[1], embedded.shape[-1])
    if settings.start == "zeros":
        return jnp.zeros(shape, embedded.dtype)
    return jnp.broadcast_to(embedded[:, :, :1], shape)


def _normalised(
    tower: ClipVisionTower, tokens: Float[Array, "b t d"], settings: CoritSettings
) -> Float[Array, "b t d"]:
    if settings.feature_norm == "ln_post":
        return tower.post_norm(tokens).astype(jnp.float32)
    tokens = tokens.astype(jnp.float32)
    if settings.feature_norm == "none":
        return tokens
    return tokens / jnp.sqrt((tokens**2).mean(axis=-1, keepdims=True) + EPSILON)
